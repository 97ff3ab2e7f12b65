"""Fusion layers against single modalities: digits degraded in image and in sound.

  export MMGEN_DATA_DIR=... MMGEN_RAW_AUDIO=...
  python benchmarks/recognition_digits.py --workdir=runs/recognition_digits

Trains every variant of configs/recognition_digits.py with every seed, each in a folder
of its own; what is finished is not done again, so the command can be stopped and started.
Then prints a table (Markdown), of the speaker never heard: accuracy given both, the image
and the sound; errors of the better single network over those of the fusion; accuracy
under damage, the mean over kinds and strengths, and what is left of it over what concat
would lose. Means and 95 % intervals of Student's t over seeds; differences are paired by
seed. Exit code 1
unless the best fusion at least halves the errors of the best single network, and loses
nothing against it, within the interval, when the other modality is missing.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from configs.recognition_digits import LAYERS  # noqa: E402
from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import evaluate, loop, process, records  # noqa: E402
from mmgen_jax.metrics import robustness  # noqa: E402

SINGLE = ("image", "sound")
SPLIT = "test_speaker"


def run(variant: str, seed: int, workdir: Path, data_dir: Path) -> list[dict[str, Any]]:
  """The records of one run, trained and evaluated if it was not yet.

  Networks that it has from other runs are those of the same seed, made before it.
  """
  config: Any = config_lib.load(f"{ROOT}/configs/recognition_digits.py:{variant}")
  config.seed = seed
  folder = workdir / f"{variant}_{seed}"
  for name in config.get("initial", {}):
    config.initial[name] = str(workdir / f"{name}_{seed}")
  if config.train_steps not in records.steps(folder):
    since = time.time()
    loop.train(config, folder, data_dir=data_dir)
    evaluate.evaluate(config, folder, data_dir)
    print(f"{variant}, seed {seed}: {time.time() - since:.0f} s", flush=True)
  return records.read(folder, config.train_steps)


def accuracy(found: list[dict[str, Any]], given, split: str = SPLIT) -> float:
  """Of the digit; NaN if the network does not take these inputs."""
  r = records.find(found, "accuracy/digit", given, "digit", split)
  return r["value"] if r else np.nan


def spread(values) -> tuple[float, float]:
  """Mean, and half the 95 % interval of Student's t over seeds."""
  values = np.asarray(values, float)
  if len(values) < 2:
    return float(values.mean()), float("nan")
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean()), float(half)


def percent(values, digits: int = 1) -> str:
  """Mean +- half an interval, in percent."""
  mean, half = spread(values)
  return f"{100 * mean:.{digits}f} ± {100 * half:.{digits}f}"


def curves(found: list[dict[str, Any]], given) -> np.ndarray:
  """Accuracy by severity, the mean over all damage of both modalities, [6]."""
  of = [r for r in found if r["metric"].startswith("robustness/")]
  of = [r for r in of if r["given"] == list(given) and r["data"]["split"] == SPLIT]
  return np.mean([r["curve"] for r in of], axis=0)


def row(name: str, found, single, concat: np.ndarray) -> tuple[list[str], dict]:
  """A fusion's cells, and per single network what is lost when it alone is given."""
  get = lambda given: np.array([accuracy(f, given) for f in found])
  both = get(SINGLE)
  ratios = {n: (1 - x[: len(both)]) / (1 - both) for n, x in single.items()}
  best = min(ratios, key=lambda n: ratios[n].mean())
  mean, half = spread(ratios[best])
  cells = [name, percent(both), f"{mean:.2f} ± {half:.2f}"]
  less = {}
  for n in SINGLE:
    alone = get([n])
    less[n] = alone - single[n][: len(alone)]
    cells += [percent(alone), percent(less[n])]
  fallen = [curves(f, SINGLE) for f in found]
  cells.append(percent([robustness.relative_robustness(c) for c in fallen]))
  if np.ndim(concat):
    cells.append(percent([robustness.excess_robustness(c, concat) for c in fallen]))
  else:
    cells.append("")
  return cells, {"ratio": ratios[best], "best": best, "less": less}


HEAD = (
  "network | both | errors, times fewer | image only | less the image's own | sound only"
  " | less the sound's own | damaged | excess over concat"
)


def table(done: dict[str, list[list[dict[str, Any]]]]) -> bool:
  """Prints what was found; whether the bar was reached."""
  single = {n: np.array([accuracy(f, [n]) for f in done[n]]) for n in SINGLE}
  for name, x in single.items():
    print(f"{name} alone: {percent(x)} ({len(x)} seeds)")
  late = [curves(f, SINGLE) for f in done.get("concat", [])]
  concat = np.mean(late, axis=0) if late else np.array(0.0)
  print(f"\n| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}")
  found = {}
  for name in done:
    if name not in SINGLE:
      cells, found[name] = row(name, done[name], single, concat)
      print(f"| {' | '.join(cells)} |")
  top = max(found, key=lambda name: found[name]["ratio"].mean())
  ratio, less = found[top]["ratio"].mean(), found[top]["less"]
  never_below = all(d.mean() + np.nan_to_num(spread(d)[1]) >= 0 for d in less.values())
  good = ratio >= 2.0 and never_below
  print(
    f"{'reached' if good else 'MISSED'}: {top} makes {ratio:.2f} times fewer errors than"
    f" {found[top]['best']} alone (bar 2); below the single one with the other missing:"
    f" {'no' if never_below else 'yes'}"
  )
  return good


def main() -> int:
  """Trains what is missing, seed by seed, and prints the table."""
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--workdir", required=True, type=Path)
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument("--seeds", type=int, default=5)
  variants = [*SINGLE, *LAYERS, "late", "experts", "balance", "fused"]
  parser.add_argument("--variants", default=",".join(variants))
  args = parser.parse_args()
  data_dir = Path(args.data_dir or args.workdir / "data")
  process.use_compile_cache(args.workdir)
  done: dict[str, list] = {name: [] for name in args.variants.split(",")}
  for seed in range(args.seeds):
    for name in done:
      done[name].append(run(name, seed, args.workdir, data_dir))
  return 0 if table(done) else 1


if __name__ == "__main__":
  sys.exit(main())
