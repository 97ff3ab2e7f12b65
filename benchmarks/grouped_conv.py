"""Grouped 3x3 convolutions: `grouped_conv` beside XLA's, in three orders, on this device.

  python benchmarks/grouped_conv.py
  python benchmarks/grouped_conv.py --batch=256 --channels=1536 --group_size=16 --bfloat16

Prints one JSON line: milliseconds of the forward pass, of a gradient, and of the gradient
of a gradient penalty (what R1 and R2 need), for both, and the ratios (above 1:
`grouped_conv` is faster).
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from mmgen_jax.losses import gradient_penalty  # noqa: E402
from mmgen_jax.models.r3gan import grouped_conv  # noqa: E402


def xla(x, kernel):
  """XLA's own."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def orders(conv):
  """{"forward", "gradient", "penalty"}: compiled functions of (kernel, x)."""
  logits = lambda k, x: jnp.tanh(conv(x, k).astype(jnp.float32)).sum((1, 2, 3))
  penalty = lambda k, x: gradient_penalty(lambda x: logits(k, x), x).mean()
  return {
    "forward": jax.jit(lambda k, x: conv(x, k)),
    "gradient": jax.jit(jax.grad(lambda k, x: logits(k, x).mean(), (0, 1))),
    "penalty": jax.jit(jax.grad(penalty)),
  }


def milliseconds(f, *args, repeats: int) -> float:
  """The median of `repeats` calls, after one to compile."""
  jax.block_until_ready(f(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    times.append(time.perf_counter() - start)
  return 1e3 * float(np.median(times))


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--size", type=int, default=16)
  parser.add_argument("--channels", type=int, default=256)
  parser.add_argument("--group_size", type=int, default=16)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--bfloat16", action="store_true")
  a = parser.parse_args()
  dtype = jnp.bfloat16 if a.bfloat16 else jnp.float32
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (a.batch, a.size, a.size, a.channels), dtype)
  kernel = jax.random.normal(keys[1], (3, 3, a.group_size, a.channels), dtype) / 10
  ours, theirs = orders(grouped_conv), orders(xla)
  found = {}
  for name in ours:
    mine, other = (
      milliseconds(f[name], kernel, x, repeats=a.repeats) for f in (ours, theirs)
    )
    found[name] = {"ours": round(mine, 2), "xla": round(other, 2)}
    found[name]["ratio"] = round(other / mine, 2)
  print(json.dumps({"device": jax.devices()[0].device_kind, **vars(a), **found}))


if __name__ == "__main__":
  main()
