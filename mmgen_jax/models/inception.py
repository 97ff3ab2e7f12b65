"""The Inception-v3 of the Frechet Inception distance, for inference.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015,
https://arxiv.org/abs/1512.00567, as TensorFlow's graph of 2015-12-05 has it, in which
published FIDs are measured: averages at borders are over the pixels that there are, the
last block pools by maximum, 1008 classes. Batch normalisation is folded into the
convolutions. Modules are named as in PyTorch's ports of that graph.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmgen_jax.models.layers import Dense, kernel_init

SIZE = 299
FEATURES, CLASSES = 2048, 1008
_EPSILON = 1e-3  # of batch normalisation


class Read(NamedTuple):
  """Pooled features [b, 2048], and logits [b, 1008]."""

  features: Float[Array, "b d"]
  logits: Float[Array, "b k"]


class Conv(nn.Module):
  """relu(conv(x) + bias)."""

  features: int
  size: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    kernel = self.param("kernel", kernel_init, (*self.size, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    strides, axes = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
      x, kernel, strides, self.padding, dimension_numbers=axes
    )
    return nn.relu(y + bias)


def _mean_around(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """3 x 3 means over the pixels that there are."""
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
  return nn.max_pool(x, (3, 3), (2, 2))


class _A(nn.Module):
  pooled: int

  @nn.compact
  def __call__(self, x):
    five = Conv(48, name="branch5x5_1")(x)
    three = Conv(64, name="branch3x3dbl_1")(x)
    three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
    parts = [
      Conv(64, name="branch1x1")(x),
      Conv(64, (5, 5), name="branch5x5_2")(five),
      Conv(96, (3, 3), name="branch3x3dbl_3")(three),
      Conv(self.pooled, name="branch_pool")(_mean_around(x)),
    ]
    return jnp.concatenate(parts, -1)


class _B(nn.Module):
  @nn.compact
  def __call__(self, x):
    three = Conv(64, name="branch3x3dbl_1")(x)
    three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
    parts = [
      Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x),
      Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(three),
      _halve(x),
    ]
    return jnp.concatenate(parts, -1)


class _C(nn.Module):
  narrow: int

  @nn.compact
  def __call__(self, x):
    n = self.narrow
    seven = Conv(n, (1, 7), name="branch7x7_2")(Conv(n, name="branch7x7_1")(x))
    twice = Conv(n, name="branch7x7dbl_1")(x)
    for i, size in ((2, (7, 1)), (3, (1, 7)), (4, (7, 1))):
      twice = Conv(n, size, name=f"branch7x7dbl_{i}")(twice)
    parts = [
      Conv(192, name="branch1x1")(x),
      Conv(192, (7, 1), name="branch7x7_3")(seven),
      Conv(192, (1, 7), name="branch7x7dbl_5")(twice),
      Conv(192, name="branch_pool")(_mean_around(x)),
    ]
    return jnp.concatenate(parts, -1)


class _D(nn.Module):
  @nn.compact
  def __call__(self, x):
    three = Conv(192, name="branch3x3_1")(x)
    seven = Conv(192, name="branch7x7x3_1")(x)
    seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
    seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
    parts = [
      Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three),
      Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven),
      _halve(x),
    ]
    return jnp.concatenate(parts, -1)


class _E(nn.Module):
  by_maximum: bool

  @nn.compact
  def __call__(self, x):
    three = Conv(384, name="branch3x3_1")(x)
    twice = Conv(384, (3, 3), name="branch3x3dbl_2")(
      Conv(448, name="branch3x3dbl_1")(x)
    )
    pool = lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME")
    pooled = pool(x) if self.by_maximum else _mean_around(x)
    parts = [
      Conv(320, name="branch1x1")(x),
      Conv(384, (1, 3), name="branch3x3_2a")(three),
      Conv(384, (3, 1), name="branch3x3_2b")(three),
      Conv(384, (1, 3), name="branch3x3dbl_3a")(twice),
      Conv(384, (3, 1), name="branch3x3dbl_3b")(twice),
      Conv(192, name="branch_pool")(pooled),
    ]
    return jnp.concatenate(parts, -1)


class Inception(nn.Module):
  """What it reads in images [b 299 299 3], as `prepare` gives them."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> Read:
    x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
    x = _halve(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _halve(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = _A(pooled, name=f"Mixed_{name}")(x)
    x = _B(name="Mixed_6a")(x)
    for name, narrow in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x = _C(narrow, name=f"Mixed_{name}")(x)
    x = _D(name="Mixed_7a")(x)
    x = _E(False, name="Mixed_7b")(x)
    x = _E(True, name="Mixed_7c")(x)
    features = x.mean((1, 2))
    return Read(features, Dense(CLASSES, name="fc")(features))


def _positions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(left pixel, right pixel, weight of the right) of each of `SIZE` positions."""
  at = np.arange(SIZE) * (size / SIZE)
  left = np.floor(at).astype(np.int32)
  return left, np.minimum(left + 1, size - 1), (at - left).astype(np.float32)


def prepare(x: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
  """Pixels 0 to 255 as the graph takes them: resized, in [-1, 1).

  Bilinear, corner pixels at the corner and no smoothing, as TensorFlow 1 does inside the
  graph. Other resizers give other numbers (Parmar et al., "On Aliased Resizing and
  Surprising Subtleties in GAN Evaluation", 2021, https://arxiv.org/abs/2104.11222).
  """
  for axis in (1, 2):
    left, right, weight = _positions(x.shape[axis])
    weight = weight.reshape([-1 if a == axis else 1 for a in range(4)])
    a, b = jnp.take(x, left, axis), jnp.take(x, right, axis)
    x = a + (b - a) * weight
  return (x - 128.0) / 128.0


def from_torch(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters, from the names of `pt_inception-2015-12-05` and its kin.

  Raises:
    ValueError: if a convolution has no normalisation, or there is no last layer.
  """
  params: dict[str, Any] = {}
  try:
    for name in [n.removesuffix(".conv.weight") for n in weights if ".conv." in n]:
      of = lambda part, name=name: weights[f"{name}.bn.{part}"]
      scale = of("weight") / np.sqrt(of("running_var") + _EPSILON)
      kernel = weights[f"{name}.conv.weight"] * scale[:, None, None, None]
      *outer, last = name.split(".")
      inside = params
      for part in outer:
        inside = inside.setdefault(part, {})
      bias = of("bias") - of("running_mean") * scale
      inside[last] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
    params["fc"] = {"kernel": weights["fc.weight"].T, "bias": weights["fc.bias"]}
  except KeyError as error:
    raise ValueError(
      f"no weights of the FID's Inception: {error} is missing"
    ) from error
  return params
