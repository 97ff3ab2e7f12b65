"""Train steps of the MNIST VAEs per second, beside the same in PyTorch.

  python benchmarks/vae_throughput.py --torch_python=TORCH_ENV/bin/python

The VAE and IWAE-5 of `configs/vae_mnist.py` (784-200-200-50, tanh, batches of its 250 or
of `--batch`, binarised at every use), from data in memory, both by Adam, fused in
PyTorch. PyTorch has an environment of its own, as the two pin different packages: each
side is a process that waits for its turn, so rounds alternate and a busy machine slows
both. Ours is the library's whole update: feed, averaged parameters, norms, the check for
non-finite values; PyTorch's is the least that trains (`--torch_compile` compiles its
loss). Prints, per model, the median over rounds of each side's updates/s and of their
ratio; exit code 1 where a ratio is below `--bar`.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"vae": 1, "iwae5": 5}  # variants of the config, and their samples
PIXELS, LATENT, RATE = 784, 50, 3e-3


def images() -> np.ndarray:
  """As many as MNIST's training set, of grey values that are mostly black."""
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (54_000, 28, 28, 1), np.uint8)
  return np.where(rng.random(grey.shape) < 0.2, grey, 0).astype(np.uint8)


def ours(model: str, batch: int) -> Callable[[int], None]:
  """`train(updates)` by this library."""
  sys.path.insert(0, str(ROOT))
  import jax

  from mmgen_jax import config as config_lib
  from mmgen_jax import parallel
  from mmgen_jax.data import feeds, modality
  from mmgen_jax.data.examples import Column, Examples
  from mmgen_jax.steps import vae

  config: Any = config_lib.load(f"{ROOT / 'configs/vae_mnist.py'}:{model}")
  config.batch_size = batch
  config.optim.update(name="adam", learning_rate=RATE)
  modalities = {"image": modality.image(28, 28, 1)}
  columns = {"image": Column(images())}
  examples = Examples("noise", "train", modalities, {}, {}, columns, "noise")
  feed = feeds.resident_feed(examples, seed=0, batch_size=batch)
  mesh, dispatch = parallel.make_mesh(jax.devices()[:1]), config.updates_per_dispatch
  step = vae.make_train_step(config, modalities)
  run = parallel.compile_step(
    step,
    mesh,
    fetch=feed.fetch,
    updates=dispatch,
    scan=config.scan,
    compiler_options=config.compiler_options,
  )
  state = vae.init(jax.random.key(0), config, modalities)
  data, key = parallel.put_replicated((feed.data, jax.random.key(1)), mesh)
  held = [parallel.put_replicated(state, mesh), 0]  # and the updates done

  def train(updates: int) -> None:
    for _ in range(updates // dispatch):
      inputs = parallel.put_inputs(feed.inputs(held[1], dispatch), mesh)
      held[0], metrics = run(held[0], data, inputs, key)
      held[1] += dispatch
    loss = float(metrics["vae/loss"][-1])  # waits for the last update
    if not math.isfinite(loss):
      raise RuntimeError(f"the loss is {loss}")

  return train


def theirs(model: str, batch: int, *, compile_loss: bool) -> Callable[[int], None]:
  """The same by PyTorch."""
  import torch  # pyright: ignore[reportMissingImports]
  from torch import nn  # pyright: ignore[reportMissingImports]

  cross_entropy = nn.functional.binary_cross_entropy_with_logits

  def perceptron(*sizes):
    layers = []
    for a, b in zip(sizes[:-2], sizes[1:-1], strict=True):
      layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))

  encoder = perceptron(PIXELS, 200, 200, 2 * LATENT)
  decoder = perceptron(LATENT, 200, 200, PIXELS)
  parameters = [*encoder.parameters(), *decoder.parameters()]
  optimizer = torch.optim.Adam(parameters, RATE, fused=True)
  data = torch.from_numpy(images().reshape(-1, PIXELS))
  samples = MODELS[model]

  def loss_of(x, noise):
    mean, log_sigma = encoder(x).chunk(2, -1)
    z = mean + log_sigma.exp() * noise
    logits, x = decoder(z), x.expand(samples, -1, -1)
    log_px = -cross_entropy(logits, x, reduction="none").sum(-1)
    if samples == 1:
      kl = 0.5 * ((2 * log_sigma).exp() - 1 - 2 * log_sigma + mean**2).sum(-1)
      return (kl - log_px[0]).mean()
    log_ratio = (0.5 * (noise**2 - z**2) + log_sigma).sum(-1)
    bound = torch.logsumexp(log_px + log_ratio, 0) - math.log(samples)
    return -bound.mean()

  loss_of = torch.compile(loss_of) if compile_loss else loss_of

  def train(updates: int) -> None:
    for _ in range(updates):
      rows = torch.randint(len(data), (batch,))
      x = torch.bernoulli(data[rows].float() / 255.0)
      loss = loss_of(x, torch.randn(samples, batch, LATENT))
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    if not math.isfinite(loss.item()):
      raise RuntimeError("the loss is not finite")

  return train


def serve(train: Callable[[int], None]) -> None:
  """A side's process: a number of updates on a line in, their seconds on a line out."""
  for line in sys.stdin:
    since = time.perf_counter()
    train(int(line))
    print(f"secs {time.perf_counter() - since}", flush=True)


def ask(side: subprocess.Popen, updates: int) -> float:
  """Seconds that a side takes."""
  assert side.stdin is not None and side.stdout is not None
  side.stdin.write(f"{updates}\n")
  side.stdin.flush()
  for line in side.stdout:
    if line.startswith("secs "):
      return float(line.split()[1])
  raise RuntimeError(f"a side ended with exit code {side.wait()}")


def compare(model: str, args) -> float:
  """Prints one line; the median ratio of the rounds."""
  own = [__file__, f"--side={model}", f"--batch={args.batch}"]
  if args.torch_compile:
    own.append("--torch_compile")
  start = lambda *command: subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  sides = start(sys.executable, *own), start(args.torch_python, *own, "--torch")
  try:
    for side in sides:
      ask(side, 200)  # compiles
    rounds = [
      [args.updates / ask(s, args.updates) for s in sides] for _ in range(args.rounds)
    ]
  finally:
    for side in sides:
      side.kill()
  rate, peer = (statistics.median(r) for r in zip(*rounds, strict=True))
  ratios = sorted(a / b for a, b in rounds)
  ratio = statistics.median(ratios)
  print(
    f"{model}: {rate:.0f} updates/s, PyTorch {peer:.0f}; ratio {ratio:.2f}"
    f" ({ratios[0]:.2f} to {ratios[-1]:.2f} over {args.rounds} rounds)",
    flush=True,
  )
  return ratio


def main() -> int:
  """Measures every model, or is one side's process."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--torch_python", help="an interpreter that has PyTorch")
  parser.add_argument("--torch_compile", action="store_true")
  parser.add_argument("--batch", type=int, default=250)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--updates", type=int, default=1000, help="a multiple of 100")
  parser.add_argument("--bar", type=float, default=2.0)
  parser.add_argument("--side", choices=MODELS, help=argparse.SUPPRESS)
  parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    make = theirs if args.torch else ours
    options = {"compile_loss": args.torch_compile} if args.torch else {}
    serve(make(args.side, args.batch, **options))
    return 0
  if not args.torch_python:
    parser.error("--torch_python names an interpreter that has PyTorch")
  return 0 if min([compare(m, args) for m in MODELS]) >= args.bar else 1


if __name__ == "__main__":
  sys.exit(main())
