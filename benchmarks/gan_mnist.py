"""Frechet distance, precision, recall, density and coverage of trained GANs of MNIST.

  python benchmarks/gan_mnist.py --workdir=runs/gan_mnist --workdir=runs/gan_dcgan

Against the test split, in the features of the project's own classifier, which is named
in the output: no value here is comparable with a published FID. Prints one JSON line
for each newest checkpoint, and one for as many training images (what a perfect model
would get). With `--mixture=3`, of every three workdirs as they come, one more: of their
mixture, each sample from a generator drawn at random, as many samples in all (Wang et
al., "Ensembles of Generative Adversarial Networks", 2016,
https://arxiv.org/abs/1612.00991).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax import evaluate  # noqa: E402
from mmgen_jax.generate import make_sampler  # noqa: E402
from mmgen_jax.metrics import frechet, judges  # noqa: E402
from mmgen_jax.metrics.manifold import manifold  # noqa: E402


def scores(extractor, made: np.ndarray, real: np.ndarray) -> dict[str, Any]:
  """What the features of two sets of stored images say of the first."""
  fake, true = extractor(made)[0], extractor(real)[0]
  moments = frechet.moments(fake), frechet.moments(true)
  found = {k: round(v, 4) for k, v in manifold(true, fake)._asdict().items()}
  return {"frechet": round(frechet.frechet_distance(*moments), 2), **found}


def samples_of(workdir: Path, examples, count: int, seed: int):
  """(stored images from the averaged generator, step) of the newest checkpoint."""
  config: Any = config_lib.from_json((workdir / "config.json").read_text())
  state, step = evaluate.load_state(config, workdir, examples.modalities)
  sampler = make_sampler(config, examples.modalities, batch_size=200)
  samples = sampler(state.ema, examples, np.arange(count), seed)
  return samples.values["image"][0], step


def main() -> None:
  """Scores every workdir, and the training split."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", action="append", required=True)
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument("--samples", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--mixture", type=int, default=0, help="of how many workdirs")
  args = parser.parse_args()
  if args.mixture and (args.mixture < 2 or len(args.workdir) % args.mixture):
    parser.error(
      f"--mixture={args.mixture}: two or more, which divides the {len(args.workdir)}"
      " workdirs"
    )
  data_dir = Path(args.data_dir or Path(args.workdir[0]) / "data")
  options = {"tfds": "mnist", "size": 32}
  train, test = (
    datasets.load("images", split, data_dir, **options) for split in ("train", "test")
  )
  by = judges.make(train, ["image"], data_dir / "judges")
  extractor = by.extractors["image"]
  count = min(args.samples, len(test))
  real = test.columns["image"].take(np.arange(count))
  shared = {"samples": count, "extractor": f"{extractor.name}@{extractor.sha256[:12]}"}

  def tell(**values):
    print(json.dumps(values | shared), flush=True)

  floor = train.columns["image"].take(np.arange(count))
  tell(of="training images", **scores(extractor, floor, real))
  members = []
  for workdir in map(Path, args.workdir):
    made, step = samples_of(workdir, test, count, args.seed)
    tell(of=workdir.name, step=step, **scores(extractor, made, real))
    members.append((workdir.name, made))
    if len(members) == args.mixture:
      names, stacked = zip(*members, strict=True)
      choice = np.random.default_rng(args.seed).integers(len(members), size=count)
      mixed = np.stack(stacked)[choice, np.arange(count)]
      tell(of=f"mixture of {', '.join(names)}", **scores(extractor, mixed, real))
      members = []


if __name__ == "__main__":
  main()
