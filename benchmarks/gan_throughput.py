"""Training images of R3GAN per second, beside the same step in PyTorch.

  pip install -e '.[bench]'   # or --torch_python=INTERPRETER, that of another environment
  python benchmarks/gan_throughput.py
  python benchmarks/gan_throughput.py --size=gpu --bar=1.3

The networks, batch, losses, R1 and R2 at every step and Adam of
`configs/gan_stacked_mnist.py:r3gan`, or of its `:gpu`; noise for data. As in
`vae_throughput.py` each side is a process of its own and rounds alternate. Ours is the
library's whole update: feed, schedules, averaged generator, norms, the check for
non-finite values. PyTorch's is the least that trains, as its users write it: grouped
convolutions of the library, one forward pass of the discriminator for loss and
penalties, fused Adam, averaged generator; `--torch_compile` compiles the networks.
Prints the median over rounds of images/s and of their ratio; exit code 1 where it is
below `--bar`.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from vae_throughput import ask, serve

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
IMAGES, GAMMA = 10_000, 1.0


def config_of(size: str) -> Any:
  """The config of a size, in plain values that both sides read."""
  from mmgen_jax import config as config_lib

  return config_lib.load(f"{ROOT / 'configs/gan_stacked_mnist.py'}:{size}")


def images() -> np.ndarray:
  """Stored images, mostly black."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
  return np.where(rng.random(pixels.shape) < 0.2, pixels, 0).astype(np.uint8)


def ours(size: str) -> Callable[[int], None]:
  """`train(updates)` by this library."""
  import jax

  from mmgen_jax import parallel, process
  from mmgen_jax.data import feeds, modality
  from mmgen_jax.data.examples import Column, Examples
  from mmgen_jax.steps import gan

  process.keep_memory()  # as launch.py does
  config = config_of(size)
  modalities = {"image": modality.image(32, 32, 3)}
  columns = {"image": Column(images())}
  examples = Examples("noise", "train", modalities, {}, {}, columns, "noise")
  feed = feeds.resident_feed(examples, seed=0, batch_size=config.batch_size)
  mesh = parallel.make_mesh(jax.devices()[:1])
  step = gan.make_train_step(config, modalities)
  run = parallel.compile_step(step, mesh, fetch=feed.fetch, updates=1)
  state = gan.init(jax.random.key(0), config, modalities)
  data, key = parallel.put_replicated((feed.data, jax.random.key(1)), mesh)
  held = [parallel.put_replicated(state, mesh), 0]  # and the updates done

  def train(updates: int) -> None:
    for _ in range(updates):
      inputs = parallel.put_inputs(feed.inputs(held[1], 1), mesh)
      held[0], metrics = run(held[0], data, inputs, key)
      held[1] += 1
    loss = float(metrics["gan/d_loss"][-1])  # waits for the last update
    if not math.isfinite(loss):
      raise RuntimeError(f"the loss is {loss}")

  return train


def theirs(size: str, *, compile_networks: bool) -> Callable[[int], None]:
  """The same by PyTorch."""
  import torch  # pyright: ignore[reportMissingImports]
  from torch import nn  # pyright: ignore[reportMissingImports]
  from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config, device = config_of(size), "cuda" if torch.cuda.is_available() else "cpu"
  widths, m = tuple(config.model.widths.image), config.model
  half = torch.bfloat16 if config.bfloat16 else torch.float32
  dtypes = [torch.float32] * max(0, len(widths) - 3) + [half] * min(3, len(widths))
  total = m.blocks * len(widths)
  taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
  blur = (torch.outer(taps, taps) / 64)[None, None].to(device)

  def parameter(*shape, fan_in: int, gain: float = 1.0):
    return nn.Parameter(torch.randn(*shape) * gain / math.sqrt(fan_in))

  def pointwise(x, w):
    return F.conv2d(x, w.to(x.dtype)[:, :, None, None])

  def resample(x, up: bool):
    flat = x.reshape(-1, 1, *x.shape[2:])
    if up:
      y = F.conv_transpose2d(flat, 4 * blur.to(x.dtype), stride=2, padding=1)
    else:
      y = F.conv2d(flat, blur.to(x.dtype), stride=2, padding=1)
    return y.reshape(*x.shape[:2], *y.shape[2:])

  class Block(nn.Module):
    def __init__(self, width: int):
      super().__init__()
      inner, gain = 2 * width, math.sqrt(2 / 1.04) * total**-0.25
      self.first = parameter(inner, width, fan_in=width, gain=gain)
      fan_in = 9 * m.group_size
      self.middle = parameter(inner, m.group_size, 3, 3, fan_in=fan_in, gain=gain)
      self.last = parameter(width, inner, fan_in=inner, gain=0.0)
      self.biases = nn.Parameter(torch.zeros(2, inner, 1, 1))

    def forward(self, x):
      biases = self.biases.to(x.dtype)
      h = F.leaky_relu(pointwise(x, self.first) + biases[0], 0.2)
      groups = self.middle.shape[0] // m.group_size
      h = F.conv2d(h, self.middle.to(h.dtype), padding=1, groups=groups)
      return x + pointwise(F.leaky_relu(h + biases[1], 0.2), self.last)

  def stages():
    return nn.ModuleList(
      nn.Sequential(*(Block(w) for _ in range(m.blocks))) for w in widths
    )

  def changes(coarse_first: bool):
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.ParameterList(
      parameter(*((b, a) if coarse_first else (a, b)), fan_in=a if coarse_first else b)
      for a, b in pairs
    )

  side, outputs = 32 // (m.patch * 2 ** (len(widths) - 1)), 3 * m.patch**2

  class Generator(nn.Module):
    def __init__(self):
      super().__init__()
      self.basis = parameter(widths[0], side, side, fan_in=1)
      self.modulate = parameter(widths[0], m.latent, fan_in=m.latent)
      self.stages, self.changes = stages(), changes(True)
      self.pixels = parameter(outputs, widths[-1], fan_in=widths[-1])

    def forward(self, z):
      x = self.basis * (z @ self.modulate.T)[:, :, None, None]
      for i, blocks in enumerate(self.stages):
        x = x.to(dtypes[i])
        if i:
          if widths[i] != widths[i - 1]:
            x = pointwise(x, self.changes[i - 1])
          x = resample(x, up=True)
        x = blocks(x)
      return F.pixel_shuffle(pointwise(x, self.pixels).float(), m.patch)

  class Discriminator(nn.Module):
    def __init__(self):
      super().__init__()
      self.pixels = parameter(widths[-1], outputs, fan_in=outputs)
      self.stages, self.changes = stages(), changes(False)
      self.basis = parameter(widths[0], side, side, fan_in=side**2)
      self.logit = parameter(1, widths[0], fan_in=widths[0])

    def forward(self, x):
      x = F.pixel_unshuffle(x.to(dtypes[-1]), m.patch)
      x = pointwise(x, self.pixels)
      for i in reversed(range(len(widths))):
        if i < len(widths) - 1 and widths[i] != widths[i + 1]:
          x = pointwise(x, self.changes[i])
        x = self.stages[i](x.to(dtypes[i]))
        x = resample(x, up=False) if i else x
      return ((x.float() * self.basis).sum((2, 3)) @ self.logit.T)[:, 0]

  gen, disc = Generator().to(device), Discriminator().to(device)
  average = [p.detach().clone() for p in gen.parameters()]
  adam = lambda net: torch.optim.Adam(
    net.parameters(), config.optim.learning_rate, betas=(0.0, 0.99), fused=True
  )
  g_adam, d_adam = adam(gen), adam(disc)
  data = torch.from_numpy(images().transpose(0, 3, 1, 2).copy()).to(device)
  call_g = torch.compile(gen) if compile_networks else gen
  call_d = disc  # torch.compile has no second derivatives
  n = config.batch_size

  def update():
    rows = torch.randint(len(data), (n,), device=device)
    real = data[rows].float() / 127.5 - 1.0
    with torch.no_grad():
      fake = call_g(torch.randn(n, m.latent, device=device))
    x = torch.cat([real, fake]).requires_grad_()
    logits = call_d(x)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    penalties = slope.square().sum((1, 2, 3)).reshape(2, n).mean(1)
    loss = F.softplus(logits[n:] - logits[:n]).mean() + GAMMA / 2 * penalties.sum()
    d_adam.zero_grad()
    loss.backward()
    d_adam.step()
    disc.requires_grad_(False)
    fake = call_g(torch.randn(n, m.latent, device=device))
    g_loss = F.softplus(call_d(real) - call_d(fake)).mean()
    g_adam.zero_grad()
    g_loss.backward()
    g_adam.step()
    disc.requires_grad_(True)
    with torch.no_grad():
      torch._foreach_lerp_(average, list(gen.parameters()), 0.01)
    return loss

  def train(updates: int) -> None:
    for _ in range(updates):
      loss = update()
    if not math.isfinite(loss.item()):
      raise RuntimeError("the loss is not finite")

  sizes = [sum(p.numel() for p in net.parameters()) for net in (gen, disc)]
  print(f"PyTorch {torch.__version__} on {device}, parameters {sizes}", file=sys.stderr)
  return train


def compare(args) -> float:
  """Prints one line; the median ratio of the rounds."""
  own = [__file__, f"--side={args.size}", f"--size={args.size}"]
  if args.torch_compile:
    own.append("--torch_compile")
  start = lambda *command: subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  sides = start(sys.executable, *own), start(args.torch_python, *own, "--torch")
  batch = config_of(args.size).batch_size
  try:
    for side in sides:
      ask(side, 3)  # compiles
    rounds = [
      [batch * args.updates / ask(s, args.updates) for s in sides]
      for _ in range(args.rounds)
    ]
  finally:
    for side in sides:
      side.kill()
  rate, peer = (statistics.median(r) for r in zip(*rounds, strict=True))
  ratios = sorted(a / b for a, b in rounds)
  ratio = statistics.median(ratios)
  print(
    f"R3GAN ({args.size}), batch {batch}: {rate:.1f} images/s, PyTorch"
    f" {peer:.1f}; ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} over"
    f" {args.rounds} rounds)",
    flush=True,
  )
  return ratio


def main() -> int:
  """Measures, or is one side's process."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument(
    "--torch_python", default=sys.executable, help="has PyTorch and ml-collections"
  )
  parser.add_argument("--torch_compile", action="store_true")
  parser.add_argument("--size", default="r3gan", choices=("r3gan", "gpu", "published"))
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--updates", type=int, default=10, help="in a round")
  parser.add_argument("--bar", type=float, default=0.8)
  parser.add_argument("--side", help=argparse.SUPPRESS)
  parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    make = theirs if args.torch else ours
    options = {"compile_networks": args.torch_compile} if args.torch else {}
    serve(make(args.size, **options))
    return 0
  return 0 if compare(args) >= args.bar else 1


if __name__ == "__main__":
  sys.exit(main())
