"""Test NLL of a trained hierarchical VAE by importance sampling, in constant memory.

  python benchmarks/hvae_nll.py --workdir=runs/hvae --samples=256 --images=10000

As benchmarks/vae_nll.py: the K-sample bound of Burda et al., 2016, is above -log p(x),
and K is printed beside it; images are binarised once each, from the seed. Prints one
JSON line on the newest checkpoint's averaged weights.
"""

import argparse
import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.vae_nll import evaluate_params  # noqa: E402
from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax import evaluate  # noqa: E402
from mmgen_jax.data.modality import to_model  # noqa: E402
from mmgen_jax.metrics import likelihood  # noqa: E402
from mmgen_jax.parallel import example_keys  # noqa: E402
from mmgen_jax.steps import hvae  # noqa: E402


def make_bounds(config, modalities, samples: int, chunk: int):
  """`bound(params, rows, key) -> (Bounds, ())`, compiled."""
  prepare, name = hvae.make_log_weights(config, modalities), config.model.modality

  def bound(params, rows, key):
    batch = rows | {name: to_model(modalities[name], rows[name])}
    pairs = jax.vmap(jax.random.split)(example_keys(key, len(rows["index"]), None))
    weigh = prepare(params, batch, pairs[:, 0])
    got = likelihood.importance_bounds(
      lambda keys: weigh(keys, chunk), pairs[:, 1], samples=samples, chunk=chunk
    )
    return got, ()

  return jax.jit(bound)


def main() -> None:
  """Reads a workdir, prints one JSON line."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument("--split", default="test")
  parser.add_argument("--samples", type=int, default=256)
  parser.add_argument("--chunk", type=int, default=8)
  parser.add_argument("--images", type=int, default=10_000)
  parser.add_argument("--batch", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  config: Any = config_lib.from_json((Path(args.workdir) / "config.json").read_text())
  data_dir = args.data_dir or Path(args.workdir) / "data"
  examples = datasets.load(
    config.data.name, args.split, data_dir, **config.data.options
  )
  state, step = evaluate.load_state(config, args.workdir, examples.modalities)
  count = min(args.images, len(examples))
  bound = make_bounds(config, examples.modalities, args.samples, args.chunk)
  b, _, secs = evaluate_params(bound, state.ema, examples, count, args.batch, args.seed)
  nll = -b.log_px.astype(np.float64)
  pixels = math.prod(examples.modalities[config.model.modality].shape)
  bits = likelihood.bits_per_dimension(-nll, pixels).mean()
  print(
    json.dumps(
      {
        "step": step,
        "split": args.split,
        "images": count,
        "samples": args.samples,
        "nll": round(float(nll.mean()), 3),
        "nll_standard_error": round(float(nll.std() / math.sqrt(count)), 3),
        "negative_elbo": round(float(-b.elbo.mean()), 3),
        "bits_per_dimension": round(float(bits), 4),
        "effective_samples": round(float(np.median(b.effective)), 1),
        "images_per_sec": round(count / secs, 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      }
    )
  )


if __name__ == "__main__":
  main()
