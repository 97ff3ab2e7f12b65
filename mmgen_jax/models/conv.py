"""Convolutional encoder and decoder of grids: images, and log-mels as one-channel images.

Both work on patches: the first layer folds 4 x 4 pixels into one position by a matrix
product, so that all 3x3 convolutions run on small maps with many channels. That is what
a CPU does well, and accelerators do not mind.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.models.layers import Dense, ResidualBlock, depth_to_space, space_to_depth


def stages(height: int, width: int, patch: int) -> int:
  """How many halvings lead from the patch grid to at most 4 positions a side (or 5, 7).

  Raises:
    ValueError: if the size does not allow that.
  """
  n, side = 0, max(height, width) // patch
  while side > 4 and not (side < 8 and side % 2):
    side, n = side // 2, n + 1
  if height % (patch * 2**n) or width % (patch * 2**n):
    raise ValueError(
      f"grid {height} x {width}: both sides must be multiples of {patch * 2**n};"
      " pad or resize the data"
    )
  return n


class ConvEncoder(nn.Module):
  """Features [b, features] of a grid [b h w c].

  Attributes:
    width: channels at the patch grid; they double at each halving.
    features: size of the output.
    blocks: residual blocks per resolution.
    patch: pixels folded into one position, a side.
    act: activation; leaky ReLU for discriminators.
    norm: group normalisation in the blocks; none in discriminators.
    dtype: of the computation; parameters stay float32.
  """

  width: int = 64
  features: int = 128
  blocks: int = 1
  patch: int = 4
  act: Callable[[Array], Array] = nn.silu
  norm: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    down = stages(x.shape[1], x.shape[2], self.patch)
    width = self.width
    x = Dense(width, dtype=self.dtype)(space_to_depth(x, self.patch))
    for stage in range(down + 1):
      if stage:
        width *= 2
        x = Dense(width, dtype=self.dtype)(space_to_depth(x, 2))
      for _ in range(self.blocks):
        x = ResidualBlock(self.act, self.norm, self.dtype)(x)
    x = self.act(x).reshape(len(x), -1)
    return Dense(self.features, dtype=self.dtype)(x)


class ConvDecoder(nn.Module):
  """Grids [b h w outputs] from vectors [b z], in float32: ConvEncoder upside down.

  Attributes:
    shape: (h, w) of the grid.
    outputs: channels of the grid, times the likelihood's outputs per value.
    width: channels at the patch grid; they double at each coarser resolution.
    blocks: residual blocks per resolution.
    patch: pixels unfolded from one position, a side.
    dtype: of the computation; parameters stay float32.
  """

  shape: tuple[int, int]
  outputs: int
  width: int = 64
  blocks: int = 1
  patch: int = 4
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"]) -> Float[Array, "b h w c"]:
    up = stages(*self.shape, self.patch)
    h, w = (s // (self.patch * 2**up) for s in self.shape)
    width = self.width * 2**up
    x = Dense(h * w * width, dtype=self.dtype)(z).reshape(len(z), h, w, width)
    for stage in range(up + 1):
      if stage:
        width //= 2
        x = depth_to_space(Dense(4 * width, dtype=self.dtype)(x), 2)
      for _ in range(self.blocks):
        x = ResidualBlock(dtype=self.dtype)(x)
    # Wide enough for every pixel of a patch to be what it wants.
    x = nn.GroupNorm(math.gcd(width, 8), dtype=self.dtype)(x)
    x = Dense(4 * width, dtype=self.dtype)(nn.silu(x))
    x = Dense(self.patch**2 * self.outputs, dtype=self.dtype)(nn.silu(x))
    return depth_to_space(x, self.patch).astype(jnp.float32)
