"""Kills training with SIGKILL at random moments, and compares what comes of it.

  python benchmarks/kill_resume.py --kills=20 --processes=1
  python benchmarks/kill_resume.py --kills=20 --processes=2

Each kill hits a fresh run (fusion, VAE and GAN in turn; real networks, asynchronous
saving every second step, a third of the modalities missing) at a random moment of its
start-up, training or saving; with two processes, one of them or both. The run is started
again, and the sha256 of its whole final state has to be that of the run never killed.
Prints "n of n digests equal"; exit code 1 otherwise.
"""

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("quickstart", "vae_sprites", "gan_sprites")


def work(args) -> None:
  """One process of a run; prints its digest."""
  sys.path.insert(0, str(ROOT))
  from mmgen_jax import checkpoint, loop, process
  from mmgen_jax import config as config_lib

  if args.processes > 1:
    process.join(args.coordinator, args.processes, args.process)
  config = config_lib.load(f"{ROOT}/configs/{args.config}.py:smoke")
  config.train_steps, config.save_steps, config.sample_steps = args.steps, 2, args.steps
  config.data.missing_rate = 0.0 if config.family == "gan" else 0.3
  with config.unlocked():
    config.data.options.update(
      train_examples=256, validation_examples=8, test_examples=8
    )
  state = loop.train(config, args.workdir, data_dir=args.data_dir)
  print("digest", checkpoint.digest(state), flush=True)


def start(args, config: str, workdir: Path) -> list[tuple[subprocess.Popen, Path]]:
  """The processes of a run, each with the file of what it says."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    coordinator = f"localhost:{s.getsockname()[1]}"
  workdir.mkdir(exist_ok=True)
  started = []
  for i in range(args.processes):
    command = [sys.executable, __file__, "--worker", f"--config={config}"]
    command += [f"--workdir={workdir}", f"--data_dir={args.data_dir}"]
    command += [f"--steps={args.steps}", f"--coordinator={coordinator}"]
    command += [f"--processes={args.processes}", f"--process={i}"]
    said = Path(tempfile.mkstemp(suffix=".txt", dir=workdir)[1])
    with open(said, "w") as f:
      started.append((subprocess.Popen(command, stdout=f, stderr=f), said))
  return started


def end(started) -> tuple[list[int], str | None]:
  """Exit codes, and the digest that all processes agree on."""
  codes = [p.wait(timeout=900) for p, _ in started]
  texts = [said.read_text() for _, said in started]
  digests = {m[1] if (m := re.search(r"digest (\w+)", t)) else None for t in texts}
  digest = digests.pop() if len(digests) == 1 else None
  if digest is None and not any(
    c in (-signal.SIGKILL, 71, -signal.SIGABRT) for c in codes
  ):
    print(texts[0][-2000:])
  return codes, digest


def seconds_of_phases(started) -> tuple[float, float]:
  """How long the start-up and the training of a run take."""
  since = time.time()
  wait_for_training(started)
  training = time.time()
  for p, _ in started:
    p.wait()
  return training - since, time.time() - training


def wait_for_training(started) -> None:
  """Until the first step is done."""
  process, said = started[0]
  while process.poll() is None and not re.search(r"^step ", said.read_text(), re.M):
    time.sleep(0.01)


def kill_once(args, config: str, workdir: Path, phases, rng) -> tuple[str, str | None]:
  """(what was hit, the digest of the run that was killed and started again)."""
  startup, training = phases
  started = start(args, config, workdir)
  if rng.random() < 0.2:
    where = "start-up"
    time.sleep(rng.random() * startup)
  else:
    where = "training"
    wait_for_training(started)
    time.sleep(rng.random() * training * 0.9)
  running = [p.poll() is None for p, _ in started]
  victims = rng.choice([[0], [1], [0, 1]]) if args.processes > 1 else [0]
  for i in victims:
    started[i][0].kill()
  end(started)
  if not all(running):
    where = "the end"  # it was faster than usual
  folder = workdir / "checkpoints"
  steps = [p for p in folder.glob("*") if p.name.isdecimal()]
  if any(not (p / "manifest.json").exists() for p in steps):
    where = "a save"
  reached = max(
    (int(p.name) for p in steps if (p / "manifest.json").exists()), default=0
  )
  _, digest = end(start(args, config, workdir))
  return f"{where}, resumed from step {reached}", digest


def main() -> int:
  """Runs the trials."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
  parser.add_argument("--steps", type=int, default=40)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--data_dir", default="")
  for hidden in ("--config", "--workdir", "--coordinator"):
    parser.add_argument(hidden, help=argparse.SUPPRESS)
  parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    work(args)
    return 0
  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    scratch = Path(folder)
    args.data_dir = args.data_dir or str(scratch / "data")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "compile_cache")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    expected, phases = {}, {}
    for config in CONFIGS[: args.kills]:
      for again in ("first", "second"):  # the second has data and a warm cache
        started = start(args, config, scratch / f"{config}-{again}")
        phases[config] = seconds_of_phases(started)
        _, expected[config] = end(started)
      if expected[config] is None:
        return 1
      print(f"{config}: never killed, digest {expected[config][:12]}", flush=True)
    equal = 0
    for i in range(args.kills):
      config = CONFIGS[i % len(CONFIGS)]
      workdir = scratch / f"kill-{i}"
      where, digest = kill_once(args, config, workdir, phases[config], rng)
      same = digest is not None and digest == expected[config]
      equal += same
      print(f"kill {i + 1}: {config}, in {where}: {'equal' if same else 'DIFFERENT'}")
      sys.stdout.flush()
    print(f"{args.processes} process(es): {equal} of {args.kills} digests equal")
  return 0 if equal == args.kills else 1


if __name__ == "__main__":
  sys.exit(main())
