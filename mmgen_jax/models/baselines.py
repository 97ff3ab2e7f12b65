"""Older GAN networks to compare with: DCGAN and SNGAN's residual ones.

Discriminators are spectrally normalised, or plain. Nothing crosses the batch and nothing
is kept between steps: generators have group normalisation where the papers have batch
normalisation, and the power iterations start anew at every use. All take and give grids
[b h w c], with 4 to 7 positions a side at the coarsest.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.models.conv import stages
from mmgen_jax.models.layers import (
  Condition,
  Conv,
  Dense,
  embed,
  is_label,
  kernel_init,
  leaky_relu,
)

ITERATIONS = 12  # of the power method: many, where the paper does one and keeps u


def spectral_norm(
  kernel: Float[Array, "*i o"], iterations: int = ITERATIONS
) -> Float[Array, ""]:
  """The largest singular value of `kernel` as a matrix [i o], by the power method.

  Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018,
  https://arxiv.org/abs/1802.05957. Never above the true value; its gradient is that of
  u' W v with u and v held fixed. It starts from the rows' sum, weighted by their norms:
  from noise, the value would depend on the order of the units.
  """
  w = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
  fixed = lax.stop_gradient(w)
  unit = lambda x: x / (jnp.linalg.norm(x) + 1e-12)
  v = fixed.T @ jnp.linalg.norm(fixed, axis=1)
  for _ in range(iterations):
    v = unit(fixed.T @ (fixed @ v))
  return unit(fixed @ v) @ w @ v


def _normalised(kernel: Array) -> Array:
  return kernel / (spectral_norm(kernel) + 1e-12).astype(kernel.dtype)


SNDense = partial(
  Dense, dot_general=lambda x, w, *args, **kw: lax.dot_general(x, _normalised(w), *args)
)
SNConv = partial(
  Conv,
  conv_general_dilated=lambda x, w, *args, **kw: lax.conv_general_dilated(
    x, _normalised(w), *args, **kw
  ),
)


def _norm(x: Array, dtype: DTypeLike) -> Array:
  return nn.relu(nn.GroupNorm(math.gcd(x.shape[-1], 8), dtype=dtype)(x))


def _coarsest(z, condition: Condition, shape, up: int, width: int, classes: int, dtype):
  """The first grid of a generator: a linear map of z and of the condition, if any."""
  if condition is not None:
    z = jnp.concatenate([z, embed(condition, classes, z.shape[-1], "embed")], -1)
  h, w = (side // 2**up for side in shape)
  x = Dense(h * w * width, dtype=dtype, name="coarsest")(z)
  return x.reshape(len(z), h, w, width)


def _logits(net, h: Float[Array, "b d"], condition: Condition, features: bool):
  """A linear map of h, plus <embedding of the condition, h>; with `features`, h too."""
  h, dense = h.astype(jnp.float32), SNDense if net.spectral_norm else Dense
  logits = dense(1, name="logit")(h)[:, 0]
  if condition is not None:
    if is_label(condition):
      condition = jax.nn.one_hot(condition, net.classes)
    embedded = dense(h.shape[-1], use_bias=False, name="embed")(condition)
    logits += (embedded * h).sum(-1)
  return (logits, h) if features else logits


class DCGenerator(nn.Module):
  """Transposed 4x4 convolutions of stride 2, tanh: DCGAN.

  Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep
  Convolutional Generative Adversarial Networks", 2016, https://arxiv.org/abs/1511.06434.

  Attributes:
    shape: (h, w) of the grid.
    outputs: channels of the grid.
    width: channels before the last convolution; they double at each coarser resolution.
    classes: how many labels there are, where the condition is a label.
    dtype: of the computation; parameters stay float32.
  """

  shape: tuple[int, int]
  outputs: int
  width: int = 64
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"], condition: Condition = None):
    up = stages(*self.shape, 1)
    width = self.width * 2 ** (up - 1)
    x = _coarsest(z, condition, self.shape, up, width, self.classes, self.dtype)
    for stage in range(up):
      x, last = _norm(x, self.dtype), stage == up - 1
      width = self.outputs if last else width // 2
      x = nn.ConvTranspose(
        width, (4, 4), (2, 2), dtype=self.dtype, kernel_init=kernel_init
      )(x)
    return jnp.tanh(x.astype(jnp.float32))


class DCDiscriminator(nn.Module):
  """4x4 convolutions of stride 2, spectrally normalised: DCGAN upside down.

  Attributes: those of DCGenerator; `width` is that of the first convolution;
  `spectral_norm`: of all kernels, or of none.
  """

  width: int = 64
  classes: int = 0
  dtype: DTypeLike = jnp.float32
  spectral_norm: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition=None, features=False):
    conv = partial(SNConv if self.spectral_norm else Conv, dtype=self.dtype)
    for stage in range(stages(x.shape[1], x.shape[2], 1)):
      x = leaky_relu(conv(self.width * 2**stage, (4, 4), (2, 2))(x))
    return _logits(self, x.reshape(len(x), -1), condition, features)


def _larger(x: Array) -> Array:
  return x.repeat(2, 1).repeat(2, 2)


def _smaller(x: Array) -> Array:
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class ResGenerator(nn.Module):
  """Residual blocks of one width, each of twice the size: SNGAN's for CIFAR-10.

  Miyato et al., 2018, table 4, https://arxiv.org/abs/1802.05957; published width 256.

  Attributes: those of DCGenerator; `width` is that of all resolutions.
  """

  shape: tuple[int, int]
  outputs: int
  width: int = 256
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"], condition: Condition = None):
    up, conv = stages(*self.shape, 1), partial(Conv, dtype=self.dtype)
    x = _coarsest(z, condition, self.shape, up, self.width, self.classes, self.dtype)
    for _ in range(up):
      h = conv(self.width, (3, 3))(_larger(_norm(x, self.dtype)))
      h = conv(self.width, (3, 3))(_norm(h, self.dtype))
      x = h + conv(self.width, (1, 1))(_larger(x))
    x = conv(self.outputs, (3, 3))(_norm(x, self.dtype))
    return jnp.tanh(x.astype(jnp.float32))


class ResDiscriminator(nn.Module):
  """Four residual blocks, spectrally normalised, the first two of half the size.

  Miyato et al., 2018, table 4; published width 128. Features are summed over positions.

  Attributes: those of ResGenerator; `spectral_norm` as of DCDiscriminator.
  """

  width: int = 128
  classes: int = 0
  dtype: DTypeLike = jnp.float32
  spectral_norm: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition=None, features=False):
    layer = SNConv if self.spectral_norm else Conv
    conv = partial(layer, self.width, dtype=self.dtype)
    for block in range(4):
      shrink = _smaller if block < 2 else lambda x: x
      h = conv((3, 3))(nn.relu(x) if block else x)
      h = shrink(conv((3, 3))(nn.relu(h)))
      x = h + (shrink(conv((1, 1))(x)) if block < 2 else x)
    return _logits(self, nn.relu(x).sum((1, 2)), condition, features)


PAIRS = {
  "dcgan": (DCGenerator, DCDiscriminator),
  "resnet": (ResGenerator, ResDiscriminator),
}
