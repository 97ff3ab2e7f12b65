"""Speed and memory of the test NLL of a trained VAE, flat or hierarchical.

  python benchmarks/vae_nll.py --workdir=runs/iwae5 --samples=5000
  python benchmarks/vae_nll.py --workdir=runs/hvae --samples=256 --chunk=8 --batch=50

What `--mode=evaluate --config.eval.likelihood.samples=5000` records, timed. The K-sample
bound of Burda et al., 2016, is above -log p(x); K is printed beside it.
Images are binarised once each, from the seed. Prints one JSON line on the newest
checkpoint: NLL with its standard error over images, negative ELBO, effective sample
size, images/s (compilation left out), peak memory of the process.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax import evaluate  # noqa: E402
from mmgen_jax.data.modality import to_model  # noqa: E402
from mmgen_jax.metrics import likelihood, multimodal_likelihood  # noqa: E402


def evaluate_params(bounds, params, examples, count: int, batch: int, seed: int):
  """(Bounds [n], seconds after the first batch's compilation)."""
  ((name, modality),) = examples.modalities.items()
  key, out, itself = jax.random.key(seed), [], np.ones(1, bool)

  def bound(first, key):
    rows = examples.rows(np.arange(first, first + batch) % len(examples))
    rows[name] = to_model(modality, rows[name])
    return jax.device_get(bounds(params, rows, itself, key))

  bound(0, key)
  began = time.perf_counter()
  for first in range(0, count, batch):
    out.append(bound(first, jax.random.fold_in(key, first)))
  secs = time.perf_counter() - began
  return jax.tree.map(lambda *x: np.concatenate(x)[:count], *out), secs


def main() -> None:
  """Evaluates the newest checkpoint of a workdir."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument("--split", default="test")
  parser.add_argument("--samples", type=int, default=5000)
  parser.add_argument("--chunk", type=int, default=20)
  parser.add_argument("--images", type=int, default=10_000)
  parser.add_argument("--batch", type=int, default=100)
  parser.add_argument("--weights", choices=("ema", "params"), default="ema")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  config: Any = config_lib.from_json((Path(args.workdir) / "config.json").read_text())
  data_dir = args.data_dir or Path(args.workdir) / "data"
  options = config.data.options
  examples = datasets.load(config.data.name, args.split, data_dir, **options)
  state, step = evaluate.load_state(config, args.workdir, examples.modalities)
  params = getattr(state, args.weights)
  count = min(args.images, len(examples))
  bounds = multimodal_likelihood.make_bounds(
    config, examples.modalities, samples=args.samples, chunk=args.chunk
  )
  b, secs = evaluate_params(bounds, params, examples, count, args.batch, args.seed)
  nll = -b.log_px.astype(np.float64)
  pixels = math.prod(examples.modalities[config.model.modality].shape)
  print(
    json.dumps(
      {
        "step": step,
        "weights": args.weights,
        "split": args.split,
        "images": count,
        "samples": args.samples,
        "nll": round(float(nll.mean()), 3),
        "nll_standard_error": round(float(nll.std() / math.sqrt(count)), 3),
        "negative_elbo": round(float(-b.elbo.mean()), 3),
        "bits_per_dimension": round(
          float(likelihood.bits_per_dimension(-nll, pixels).mean()), 4
        ),
        "effective_samples": round(float(np.median(b.effective)), 1),
        "images_per_sec": round(count / secs, 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      }
    )
  )


if __name__ == "__main__":
  main()
