"""The networks of R3GAN: a generator and a discriminator that mirror each other.

Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", 2024,
appendix D, https://arxiv.org/abs/2501.05441. Residual blocks with a grouped convolution
in the middle; no normalisation, no attention, no style. Everything is per example.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mmgen_jax.models.layers import (
  Condition,
  depth_to_space,
  is_label,
  kernel_init,
  leaky_relu,
  space_to_depth,
)

HALF_STAGES = 3  # how many of the finest resolutions compute in `dtype`


def scaled(gain: float = 1.0) -> Callable:
  """An initialiser: normal with standard deviation gain / sqrt(fan-in)."""
  return lambda key, shape, dtype=jnp.float32: gain * kernel_init(key, shape, dtype)


def grouped_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 i d"]
) -> Float[Array, "b h w d"]:
  """A 3x3 convolution in c / i groups, zeros outside, as three batched matrix products.

  Equal to `lax.conv_general_dilated(..., feature_group_count=c // i)`, whose gradients
  are slow (jax-ml/jax#13800) and for which XLA gathers a sharded batch
  (openxla/xla#47945).
  """
  b, h, w, c = x.shape
  size = kernel.shape[2]
  groups = c // size
  x = jnp.pad(x.reshape(b, h, w, groups, size), [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * 2)
  x = x.transpose(3, 0, 1, 2, 4)  # groups first: they are the batch of the products
  x = jnp.concatenate([x[:, :, :, j : j + w] for j in range(3)], -1)
  k = kernel.reshape(3, 3, size, groups, -1).transpose(0, 3, 1, 2, 4)
  k = k.reshape(3, groups, 3 * size, -1)
  rows = [jnp.einsum("gbhwi,gio->gbhwo", x[:, :, i : i + h], k[i]) for i in range(3)]
  y = rows[0] + rows[1] + rows[2]
  return y.transpose(1, 2, 3, 0, 4).reshape(b, h, w, -1)


def _along(x: Array, axis: int, start: int, stop: int, stride: int = 1) -> Array:
  return jax.lax.slice_in_dim(x, start, stop, stride, axis)


def _pad(x: Array, axis: int) -> Array:
  return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])


def downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
  """Half the size by the kernel [1 3 3 1] / 8 on each axis, zeros outside.

  Raises:
    ValueError: if height or width is odd.
  """
  if x.shape[1] % 2 or x.shape[2] % 2:
    raise ValueError(f"height and width {x.shape[1:3]} must be even")
  for axis in (1, 2):
    n, x = x.shape[axis], _pad(x, axis)
    a, b, c, d = (_along(x, axis, i, i + n - 1, 2) for i in range(4))
    x = (a + 3 * (b + c) + d) / 8
  return x


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Twice the size: zeros in between, then [1 3 3 1] / 4 on each axis.

  Bilinear inside; the transpose of `downsample`, times 4, at the borders too.
  """
  for axis in (1, 2):
    n, x = x.shape[axis], _pad(x, axis)
    before, here, after = (_along(x, axis, i, i + n) for i in range(3))
    both = jnp.stack([before + 3 * here, 3 * here + after], axis + 1) / 4
    x = both.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
  return x


class Linear(nn.Module):
  """x W over the last axis, no bias: a 1x1 convolution where there are positions."""

  features: int
  gain: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    w = self.param("kernel", scaled(self.gain), (x.shape[-1], self.features))
    return x @ w.astype(x.dtype)


class Block(nn.Module):
  """x + 1x1(act(grouped 3x3(act(1x1(x) + b)) + b)); the last starts at zero.

  Attributes:
    total: residual blocks in the whole network, for the scale of the first two
      convolutions: total^(-1 / 4) of the variance-preserving one.
    group_size: channels per group.
    expansion: inner width over outer width.
  """

  total: int
  group_size: int = 16
  expansion: int = 2

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    inner, size = self.expansion * x.shape[-1], self.group_size
    if inner % size:
      raise ValueError(f"group_size {size} must divide the inner width {inner}")
    gain = math.sqrt(2 / (1 + 0.2**2)) * self.total**-0.25
    w = self.param("grouped", scaled(gain), (3, 3, size, inner))
    biases = [
      self.param(f"bias_{i}", nn.initializers.zeros, (inner,)).astype(x.dtype)
      for i in (1, 2)
    ]
    h = leaky_relu(Linear(inner, gain)(x) + biases[0])
    h = leaky_relu(grouped_conv(h, w.astype(x.dtype)) + biases[1])
    return x + Linear(x.shape[-1], 0.0)(h)


def _dtypes(widths: Sequence[int], dtype: DTypeLike) -> list[DTypeLike]:
  """By stage, coarsest first: float32, and `dtype` at the `HALF_STAGES` finest."""
  coarse = max(0, len(widths) - HALF_STAGES)
  return [jnp.float32] * coarse + [dtype] * (len(widths) - coarse)


def _as_vector(
  condition: Int[Array, "b"] | Float[Array, "b e"], classes: int
) -> Float[Array, "b e"]:
  """Class labels as one-hot vectors; an embedding as it is."""
  if not is_label(condition):
    return condition
  if classes < 1:
    raise ValueError(f"a class label needs classes >= 1, got {classes}")
  return jax.nn.one_hot(condition, classes)


class R3Generator(nn.Module):
  """Grids [b h w outputs], in float32 and not bounded, from vectors [b z].

  With a condition, a linear map of it to 64 features is appended to z. A VAE's decoder
  as well.

  Attributes:
    shape: (h, w) of the grid.
    outputs: channels of the grid, times the likelihood's outputs per value.
    widths: channels of each stage, coarsest first; each after the first doubles the size.
    blocks: residual blocks per stage.
    group_size: channels per group of the 3x3 convolutions.
    patch: pixels a side that one position of the finest stage stands for; 1 in the paper.
    classes: how many labels there are, where the condition is a label.
    dtype: of the computation at the three finest stages; parameters stay float32.
  """

  shape: tuple[int, int]
  outputs: int
  widths: tuple[int, ...] = (768, 768, 768, 768)
  blocks: int = 2
  group_size: int = 16
  patch: int = 1
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, z: Float[Array, "b z"], condition: Condition = None
  ) -> Float[Array, "b h w c"]:
    factor = self.patch * 2 ** (len(self.widths) - 1)
    if self.shape[0] % factor or self.shape[1] % factor:
      raise ValueError(
        f"grid {self.shape}: with {len(self.widths)} stages and patch {self.patch} both"
        f" sides must be multiples of {factor}"
      )
    if condition is not None:
      vector = _as_vector(condition, self.classes)
      z = jnp.concatenate([z, Linear(64, name="embed")(vector)], -1)
    first = (self.shape[0] // factor, self.shape[1] // factor, self.widths[0])
    basis = self.param("basis", nn.initializers.normal(1.0), first)
    x = basis * Linear(self.widths[0], name="modulate")(z)[:, None, None]
    total = self.blocks * len(self.widths)
    for stage, dtype in enumerate(_dtypes(self.widths, self.dtype)):
      x = x.astype(dtype)
      if stage:
        if self.widths[stage] != x.shape[-1]:
          x = Linear(self.widths[stage], name=f"widen_{stage}")(x)
        x = upsample(x)
      for i in range(self.blocks):
        x = Block(total, self.group_size, name=f"block_{stage}_{i}")(x)
    x = Linear(self.outputs * self.patch**2, name="pixels")(x)
    return depth_to_space(x.astype(jnp.float32), self.patch)


class R3Discriminator(nn.Module):
  """Logits [b] of grids [b h w c]: R3Generator upside down; `features` come too [b d].

  With a condition, <linear(condition), features(x)> (Miyato and Koyama, "cGANs with
  Projection Discriminator", 2018, https://arxiv.org/abs/1802.05637, its second term).

  Attributes: those of R3Generator; `widths` too are coarsest first.
  """

  widths: tuple[int, ...] = (768, 768, 768, 768)
  blocks: int = 2
  group_size: int = 16
  patch: int = 1
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    condition: Condition = None,
    features: bool = False,
  ):
    dtypes, total = _dtypes(self.widths, self.dtype), self.blocks * len(self.widths)
    x = space_to_depth(x.astype(dtypes[-1]), self.patch)
    x = Linear(self.widths[-1], name="pixels")(x)
    for stage in reversed(range(len(self.widths))):
      if self.widths[stage] != x.shape[-1]:
        x = Linear(self.widths[stage], name=f"widen_{stage}")(x)
      x = x.astype(dtypes[stage])
      for i in range(self.blocks):
        x = Block(total, self.group_size, name=f"block_{stage}_{i}")(x)
      x = downsample(x) if stage else x
    width = x.shape[-1]
    # A depthwise convolution without padding that covers the whole map.
    basis = self.param("basis", kernel_init, x.shape[1:])
    h = (x.astype(jnp.float32) * basis).sum((1, 2))
    if condition is None:
      logits = Linear(1, name="logit")(h)[:, 0]
    else:
      vector = _as_vector(condition, self.classes)
      embedded = Linear(width, width**-0.5, name="embed")(vector)
      logits = (Linear(width, name="logit")(h) * embedded).sum(-1)
    return (logits, h) if features else logits
