"""Modes and KL of GANs of StackedMNIST: trains, evaluates and prints them, with floors.

  python benchmarks/stacked_mnist.py --folder=runs/stacked_mnist --base=gpu

One command for the 2 x 2 ablation of R3GAN's loss (Huang et al., 2024, table 3,
https://arxiv.org/abs/2501.05441): relativistic or non-saturating, R1 with or without R2.
A run goes on from where it stopped, and what is evaluated is not evaluated again. Samples
are those of the averaged generator; a classifier of single MNIST digits, which the
project trains, reads each channel; the KL is that of the histogram of the samples to the
uniform distribution over 1000 modes, in nats.

Beside them, at each number of samples: perfect samplers, of the modes (uniform) and of
the data's digits, and real data as the classifier reads them. A value below the first is
a mistake of the measurement. Prints a JSON line for each row, and a table.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax import evaluate, loop, spread  # noqa: E402
from mmgen_jax.data import stacked_mnist  # noqa: E402
from mmgen_jax.generate import make_sampler  # noqa: E402
from mmgen_jax.metrics import channels, judges  # noqa: E402
from mmgen_jax.metrics.modes import modes  # noqa: E402

LOSSES = {  # the variant of configs/gan_stacked_mnist.py -> what it is
  "": "relativistic, R1 + R2",
  "nonsaturating": "non-saturating, R1 + R2",
  "r1": "relativistic, R1",
  "nonsaturating,r1": "non-saturating, R1",
}
CHUNK = 26_000  # samples held at once


def say(message: str) -> None:
  """Tells the person who waits."""
  print(f"stacked_mnist: {message}", file=sys.stderr, flush=True)


def count_modes(seen: np.ndarray, counts: list[int]) -> list[dict[str, Any]]:
  """Modes and KL at each number of samples; of parts, their mean and deviation."""
  rows = []
  for count in counts:
    cut = range(0, len(seen) - count + 1, count)
    parts = [modes(seen[i : i + count], stacked_mnist.MODES) for i in cut]
    kl = [part.reverse_kl for part in parts]
    rows.append(
      {
        "samples": count,
        "modes": round(float(np.mean([part.count for part in parts])), 1),
        "reverse_kl": round(float(np.mean(kl)), 4),
        "sd": round(float(np.std(kl, ddof=1)), 4) if len(kl) > 1 else None,
        "repeats": len(parts),
      }
    )
  return rows


def floor_rows(train, reader: channels.ByChannel, args) -> list[dict[str, Any]]:
  """What perfect samplers and real data get."""
  singles = channels.singles(train, "image")
  data = spread.frequencies(singles.labels[channels.LABEL])
  rows = [
    {"of": name, "samples": count, "modes": None, **values}
    for count in args.samples
    for name, values in spread.floors(count, data).items()
  ]
  # A channel at a time is read: a digit gets one reading, wherever it is stacked.
  read = reader.single(singles.columns["image"].values)[1][channels.LABEL]
  again = stacked_mnist.triples(
    train_seed(args), "train", max(args.samples), len(singles)
  )
  seen = read[again] @ np.array([100, 10, 1])
  return rows + [{"of": "real data", **r} for r in count_modes(seen, args.samples)]


def train_seed(args) -> int:
  """Of triples that no run has seen."""
  return 1_000_000 + args.samples_seed


def trained(config: Any, workdir: Path, data_dir) -> str:
  """Trains to the end, or goes on to it; what went wrong, if it did."""
  diverged = workdir / "diverged.txt"
  if not diverged.exists():
    try:
      loop.train(config, workdir, data_dir=data_dir)
      return ""
    except loop.NonFiniteError as error:
      diverged.write_text(str(error))
  return diverged.read_text()


def modes_of(config: Any, workdir: Path, test, reader, args) -> tuple[np.ndarray, int]:
  """(the modes that the judge sees in samples, step) of the newest checkpoint."""
  state, step = evaluate.load_state(config, workdir, test.modalities)
  sampler = make_sampler(config, test.modalities, batch_size=args.batch_size)
  seen = []
  for i, first in enumerate(range(0, max(args.samples), CHUNK)):
    number = min(CHUNK, max(args.samples) - first)
    indices = np.arange(number) % len(test)  # only how many: nothing is given
    samples = sampler(state.ema, test, indices, args.samples_seed + 10_007 * i)
    read = reader(samples.values["image"][0])[1]
    seen.append(spread.reading(read, reader.labels))
    say(f"{workdir.name}: {first + number} of {max(args.samples)} samples read")
  return np.concatenate(seen), step


def table(rows: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = ["| of | samples | modes | KL | sd |", "|---|---|---|---|---|"]
  for r in rows:
    name = r["of"] if r.get("seed") is None else f"{r['of']}, seed {r['seed']}"
    name += f" ({r['failed']})" if r.get("failed") else ""
    modes_found = "" if r["modes"] is None else f"{r['modes']:g}"
    deviation = "" if r["sd"] is None else f"{r['sd']:.4f}"
    count = f"{r['samples']:,}" if "samples" in r else ""
    kl = "" if r["reverse_kl"] is None else f"{r['reverse_kl']:.4f}"
    lines.append(f"| {name} | {count} | {modes_found} | {kl} | {deviation} |")
  return "\n".join(lines)


def parse() -> argparse.Namespace:
  """The command line."""
  numbers = lambda text: sorted(map(int, text.split(",")))
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--folder", type=Path, required=True, help="of the runs")
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument("--base", default="", help="size: '', gpu or published")
  parser.add_argument(
    "--loss", action="append", choices=LOSSES, help="again for more; default: all four"
  )
  parser.add_argument("--seeds", type=numbers, default=[0], help="e.g. 0,1,2")
  parser.add_argument("--steps", type=int, help="of training, if not the config's")
  parser.add_argument("--samples", type=numbers, default=[26_000, 260_000])
  parser.add_argument("--samples_seed", type=int, default=0)
  parser.add_argument("--batch_size", type=int, default=500, help="of generation")
  args = parser.parse_args()
  args.data_dir = args.data_dir or args.folder / "data"
  args.loss = args.loss or list(LOSSES)
  return args


def main() -> None:
  """Trains and evaluates every run; prints floors, results and the table."""
  args = parse()
  path = f"{ROOT}/configs/gan_stacked_mnist.py"
  options = config_lib.load(path).data.options
  train, test = (
    datasets.load("stacked_mnist", split, args.data_dir, **options)
    for split in ("train", "test")
  )
  judges_dir = Path(args.data_dir) / "judges"
  reader: Any = judges.make(train, ["image"], judges_dir, say=say).extractors["image"]
  judge = f"{reader.name}@{reader.sha256[:12]}"
  rows: list[dict[str, Any]] = []

  def tell(found):
    rows.extend(found)
    for row in found:
      print(json.dumps(row | {"judge": judge}), flush=True)

  tell(floor_rows(train, reader, args))
  for seed in args.seeds:
    for loss in args.loss:
      config: Any = config_lib.load(
        f"{path}:{','.join(filter(None, [args.base, loss]))}"
      )
      config.seed = seed
      if args.steps:
        config.train_steps = config.save_steps = config.sample_steps = args.steps
        config.updates_per_dispatch = config.log_steps = 1
      parts = [args.base or "cpu", *(loss or "relativistic").split(","), f"seed{seed}"]
      workdir = args.folder / "-".join(parts)
      started = time.time()
      failed = trained(config, workdir, args.data_dir)
      say(f"{workdir.name}: trained, {time.time() - started:.0f} s")
      about = {"of": LOSSES[loss], "base": args.base or "cpu", "seed": seed}
      tell(evaluated(config, workdir, test, reader, args, about | {"failed": failed}))
  print(table(rows))


def evaluated(config, workdir, test, reader, args, about) -> list[dict[str, Any]]:
  """The rows of one run, from its folder if they were made before."""
  key = {"samples": args.samples, "seed": args.samples_seed, "judge": reader.sha256}
  try:
    key |= {"step": evaluate.load_state(config, workdir, test.modalities)[1]}
  except FileNotFoundError:  # it diverged before the first checkpoint
    return [about | {"step": 0, "modes": 0, "reverse_kl": None, "sd": None}]
  kept = workdir / "modes.json"
  if kept.exists() and (before := json.loads(kept.read_text()))["key"] == key:
    return before["rows"]
  seen, step = modes_of(config, workdir, test, reader, args)
  about = about | {"step": step, "images": step * config.batch_size}
  rows = [about | row for row in count_modes(seen, args.samples)]
  kept.write_text(json.dumps({"key": key, "rows": rows}))
  return rows


if __name__ == "__main__":
  main()
