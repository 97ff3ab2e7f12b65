"""Disentanglement of several objectives over seeds: trains, evaluates, tabulates.

  python benchmarks/disentanglement.py --out=runs/disentanglement
  python benchmarks/disentanglement.py --out=runs/small --variants="beta,small tc,small"

Each run is `launch.py --config=configs/vae_factors.py:VARIANT --config.seed=SEED` in its
own workdir under --out, and goes on where it stopped. Prints, per variant and score, the
mean over seeds, their standard deviation, least and largest; the same as JSON in
--out/disentanglement.json. At full size a run is some hours of two CPU cores; with
`small`, some ten minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmgen_jax import records  # noqa: E402


def run(variant: str, seed: int, args) -> dict[str, float]:
  """{score: value} of one run, trained or gone on with if there are no records."""
  workdir = Path(args.out) / f"{variant.replace(',', '_')}_seed{seed}"
  if not records.read(workdir):
    config = f"--config={ROOT / 'configs/vae_factors.py'}:{variant}"
    command = [sys.executable, str(ROOT / "launch.py"), config]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    command.append(f"--data_dir={args.data_dir or Path(args.out) / 'data'}")
    subprocess.run(command, check=True)
  wanted = ("disentanglement/", "latents/kl", "reconstruction/mse")
  found = [r for r in records.read(workdir) if r["metric"].startswith(wanted)]
  return {r["metric"].split("/")[1]: r["value"] for r in found}


def main() -> None:
  """Every variant with every seed."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--out", required=True)
  parser.add_argument("--data_dir", default=os.environ.get("MMGEN_DATA_DIR"))
  parser.add_argument(
    "--variants", default="beta tc factor", help="with spaces between"
  )
  parser.add_argument("--seeds", type=int, default=5)
  args = parser.parse_args()
  table = {}
  for variant in args.variants.split():
    runs = [run(variant, seed, args) for seed in range(args.seeds)]
    table[variant] = runs
    print(f"{variant}, {args.seeds} seeds: mean (deviation; least to largest)")
    for score in runs[0]:
      values = [r[score] for r in runs]
      spread = statistics.stdev(values) if len(values) > 1 else 0.0
      print(
        f"  {score}: {statistics.mean(values):.3f} ({spread:.3f};"
        f" {min(values):.3f} to {max(values):.3f})",
        flush=True,
      )
  path = Path(args.out) / "disentanglement.json"
  path.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
  main()
