"""Damages checkpoints at random, and counts how often that is noticed.

  python benchmarks/corruption.py --trials=200

Each trial copies a checkpoint folder with two steps of the quickstart's state, then flips
one bit in, truncates or deletes one file of the newest step. Detected means: no weight of
that step was used, it was set aside by name with a message that names the file, and the
older step came back bit for bit. Beside it: what orbax alone makes of the same damage.
Prints "detected n of n"; exit code 1 otherwise.
"""

import argparse
import collections
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402

from mmgen_jax import checkpoint, manifest  # noqa: E402
from mmgen_jax import config as config_lib  # noqa: E402
from mmgen_jax import data as datasets  # noqa: E402
from mmgen_jax.steps import STEPS  # noqa: E402

KINDS = ("bit flip", "truncation", "deletion")


def damage(path: Path, kind: str, rng: random.Random) -> None:
  """Does it to one file."""
  if kind == "deletion":
    path.unlink()
  elif kind == "truncation":
    os.truncate(path, rng.randrange(path.stat().st_size))
  else:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def pick(folder: Path, rng: random.Random) -> Path:
  """A file: half the time any, half the time by its size (so, one with weights)."""
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  weights = [p.stat().st_size for p in files]
  return rng.choices(files, weights if rng.random() < 0.5 else None)[0]


def detected(directory: Path, victim: Path, like, older: str, messages) -> bool:
  """Whether the damage was caught, and the older step used."""
  messages.clear()
  found = checkpoint.restore_latest(directory, like)
  aside = [p for p in directory.iterdir() if p.name.startswith("2.damaged-")]
  named = any(victim.name in message for message in messages)
  good = found is not None and found[1] == 1 and checkpoint.digest(found[0]) == older
  return good and len(aside) == 1 and not (directory / "2").exists() and named


def orbax_alone(folder: Path, expected: str) -> str:
  """What orbax does with a damaged step: "error", "silently wrong" or "right"."""
  try:
    tree = ocp.PyTreeCheckpointer().restore(folder)
  except Exception:
    return "error"
  return "right" if checkpoint.digest(tree) == expected else "silently wrong"


def main() -> int:
  """Runs the trials."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--trials", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  messages: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  logging.getLogger("mmgen_jax").addHandler(handler)
  logging.getLogger("mmgen_jax").propagate = False

  config = config_lib.load(f"{ROOT}/configs/quickstart.py")
  modalities = datasets.spec(config.data.name, **config.data.options).modalities
  init = lambda seed: STEPS[config.family].init(
    jax.random.key(seed), config, modalities
  )
  states = {1: init(1), 2: init(2)}
  like = jax.eval_shape(lambda: init(1))
  rng, counts, alone = random.Random(args.seed), {}, {}
  with tempfile.TemporaryDirectory() as scratch:
    pristine = Path(scratch) / "pristine"
    for step, state in states.items():
      checkpoint.save(pristine, state, step)
    older = checkpoint.digest(states[1])
    # orbax gives back nested dicts, whose digest differs: take it from a sound restore
    plain = checkpoint.digest(ocp.PyTreeCheckpointer().restore(pristine / "2"))
    size = sum(p.stat().st_size for p in (pristine / "2").rglob("*") if p.is_file())
    for i in range(args.trials):
      directory = Path(scratch) / "trial"
      shutil.copytree(pristine, directory)
      kind, victim = KINDS[i % 3], pick(directory / "2", rng)
      damage(victim, kind, rng)
      if victim.name != manifest.NAME:  # orbax knows nothing of it
        outcome = orbax_alone(directory / "2", plain)
        alone.setdefault(kind, collections.Counter())[outcome] += 1
      caught = detected(directory, victim, like, older, messages)
      counts.setdefault(kind, []).append(caught)
      if not caught:
        print(f"MISSED: {kind} in {victim.relative_to(directory)}")
      shutil.rmtree(directory)
  print(f"state of {config.family}, {size / 1e6:.1f} MB a step")
  for kind, caught in counts.items():
    others = ", ".join(f"{k} {n}" for k, n in sorted(alone[kind].items()))
    print(f"{kind}: detected {sum(caught)} of {len(caught)}; orbax alone: {others}")
  total = sum(map(sum, counts.values()))
  print(f"detected {total} of {args.trials}")
  return 0 if total == args.trials else 1


if __name__ == "__main__":
  sys.exit(main())
