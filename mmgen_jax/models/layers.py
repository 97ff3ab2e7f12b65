"""Blocks used by more than one model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key


def kernel_init(key: Key[Array, ""], shape, dtype=jnp.float32) -> Array:
  """Normal with variance 1 / fan-in (LeCun et al., "Efficient BackProp", 1998).

  Numbers are drawn in blocks of 4^k, so that a network's many shapes need a handful of
  compiled kernels: Flax's own initialisers compile one for each shape, 15 s of start-up
  on a CPU for the quickstart's model.
  """
  n, fan_in = math.prod(shape), math.prod(shape[:-1])
  block = 4 ** math.ceil(math.log(max(n, 2), 4))
  values = _normal(key, block)[:n].reshape(shape)
  return (values / math.sqrt(fan_in)).astype(dtype)


@partial(jax.jit, static_argnums=1)
def _normal(key, n):
  return jax.random.normal(key, (n,))


Dense = partial(nn.Dense, kernel_init=kernel_init)
Conv = partial(nn.Conv, kernel_init=kernel_init)


def embed_init(key: Key[Array, ""], shape, dtype=jnp.float32) -> Array:
  """Normal with variance 1 / features, for tables of vectors [k features]."""
  return kernel_init(key, (shape[1], shape[0]), dtype).T


Embed = partial(nn.Embed, embedding_init=embed_init)


Condition = Int[Array, "b"] | Float[Array, "b e"] | None  # class labels or vectors


def is_label(condition: Array) -> bool:
  """Whether a condition is class labels, not vectors."""
  return jnp.issubdtype(condition.dtype, jnp.integer)


def embed(
  condition: Int[Array, "b"] | Float[Array, "b e"],
  classes: int,
  features: int,
  name: str | None = None,
) -> Float[Array, "b d"]:
  """A table's row for a class label, a linear map of a vector; in a compact method."""
  if is_label(condition):
    if classes < 1:
      raise ValueError(f"a class label needs classes >= 1, got {classes}")
    return Embed(classes, features, name=name)(condition)
  return Dense(features, use_bias=False, name=name)(condition)


def init_params(module: nn.Module, key: Key[Array, ""], *shapes) -> dict:
  """A module's parameters, with no forward pass: `shapes` are ShapeDtypeStructs."""
  return dict(module.lazy_init(key, *shapes).get("params", {}))  # type: ignore[arg-type]


def apply(module: nn.Module, params, *args, method: str | None = None) -> Any:
  """What a module, or one of its methods, makes of its arguments."""
  return module.apply({"params": params}, *args, method=method)


def space_to_depth(x: Float[Array, "b h w c"], factor: int) -> Array:
  """[b h/f w/f f*f*c]: every f x f patch as one pixel of more channels.

  Raises:
    ValueError: if height or width is not a multiple of `factor`.
  """
  b, h, w, c = x.shape
  if h % factor or w % factor:
    raise ValueError(f"height and width {h} x {w} must be multiples of {factor}")
  x = x.reshape(b, h // factor, factor, w // factor, factor, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, -1)


def depth_to_space(x: Float[Array, "b h w c"], factor: int) -> Array:
  """The inverse of `space_to_depth`: [b h*f w*f c/(f*f)]."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, factor, factor, c // factor**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, -1)


class ResidualBlock(nn.Module):
  """x + conv(act(norm(conv(act(norm(x)))))), 3x3, zero at initialisation.

  The last convolution starts at zero, so a block starts as the identity (Zhang, Dauphin
  and Ma, "Fixup Initialization", 2019, https://arxiv.org/abs/1901.09321).

  Attributes:
    act: activation.
    norm: group normalisation (Wu and He, 2018, https://arxiv.org/abs/1803.08494) before
      each activation: per example, so nothing crosses the batch.
    dtype: of the computation; parameters stay float32.
  """

  act: Callable[[Array], Array] = nn.silu
  norm: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    channels, h = x.shape[-1], x
    for init in (kernel_init, nn.initializers.zeros):
      if self.norm:
        h = nn.GroupNorm(math.gcd(channels, 8), dtype=self.dtype)(h)
      h = Conv(channels, (3, 3), dtype=self.dtype, kernel_init=init)(self.act(h))
    return x + h


class TransformerBlock(nn.Module):
  """Pre-norm self-attention and MLP over tokens [b t d].

  Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762;
  layer norm first, as in Xiong et al., 2020, https://arxiv.org/abs/2002.04745.
  """

  heads: int = 4
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"], mask: Array | None = None) -> Array:
    d = x.shape[-1]
    h = nn.LayerNorm(dtype=self.dtype)(x)
    attend = None if mask is None else mask[:, None, None, :]
    x = x + nn.MultiHeadDotProductAttention(
      self.heads, dtype=self.dtype, kernel_init=kernel_init
    )(h, mask=attend)
    h = Dense(2 * d, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
    return x + Dense(d, dtype=self.dtype)(nn.silu(h))


def leaky_relu(x: Array) -> Array:
  """max(x, 0.2 x), the activation of discriminators."""
  return jax.nn.leaky_relu(x, 0.2)
