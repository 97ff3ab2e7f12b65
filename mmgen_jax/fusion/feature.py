"""Feature fusion: what encoders say about several modalities, as one vector.

Every layer maps features [m b d], or tokens [m b t d], and a mask [m b] to [b d].
Masked modalities change nothing, whatever they hold; with nothing there the result is
zero. Layers of this file take the mean of a modality's tokens; those of
`mmgen_jax.fusion.attention` take tokens as they are. `make_fusion` has them by name.
"""

import inspect
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmgen_jax.fusion.attention import (
  AttentionFusion,
  BottleneckFusion,
  CrossAttentionFusion,
  Features,
  LatentFusion,
  Mask,
  blank,
  mean_of_present,
  zero_if_nothing,
)
from mmgen_jax.models.layers import Dense, kernel_init

__all__ = [
  "FUSIONS",
  "AttentionFusion",
  "BottleneckFusion",
  "ConcatFusion",
  "CrossAttentionFusion",
  "FilmFusion",
  "GatedFusion",
  "LatentFusion",
  "LowRankFusion",
  "MeanFusion",
  "TensorFusion",
  "make_fusion",
]
_LARGEST = 2**18  # entries of an outer product


def _vectors(features: Features, mask: Mask) -> Float[Array, "m b d"]:
  """One vector per modality, zero where it is missing."""
  h = blank(features, mask)
  return h.mean(2) if h.ndim == 4 else h


def _side_by_side(h: Float[Array, "m b d"], mask: Mask) -> Float[Array, "b m*(d+1)"]:
  """All vectors in a row, each with a flag that says whether it is there."""
  flagged = jnp.concatenate([h, mask[..., None].astype(h.dtype)], axis=-1)
  return flagged.transpose(1, 0, 2).reshape(h.shape[1], -1)


class MeanFusion(nn.Module):
  """The mean of the features that are there; the order of modalities does not matter.

  A sum pooling as in Zaheer et al., "Deep Sets", 2017, eq. 4,
  https://arxiv.org/abs/1703.06114, divided by the count.
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    return mean_of_present(_vectors(features, mask), mask)


class ConcatFusion(nn.Module):
  """W [h_1; s_1; ...; h_m; s_m] + b, with s_m = 1 where modality m is there, else 0.

  The flag's column of W is a learned stand-in for what is missing.
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    h = _vectors(features, mask)
    return zero_if_nothing(Dense(h.shape[-1])(_side_by_side(h, mask)), mask)


class GatedFusion(nn.Module):
  """sum_m g_m * tanh(W_m h_m), gates g a softmax over modalities, per feature.

  The gated multimodal unit of Arevalo et al., 2017, https://arxiv.org/abs/1702.01992,
  eq. 1-4, for any number of modalities: gates see all features and sum to one over
  those that are there. They [m b d] are sown as "intermediates".
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    h = _vectors(features, mask)
    m, b, d = h.shape
    everything = h.transpose(1, 0, 2).reshape(b, m * d)
    logits = Dense(m * d)(everything).reshape(b, m, d).transpose(1, 0, 2)
    keep = mask[..., None]
    gates = nn.softmax(jnp.where(keep, logits, -1e9), axis=0)
    self.sow("intermediates", "gates", jnp.where(keep, gates, 0.0))
    values = jnp.stack([nn.tanh(Dense(d, name=f"value_{i}")(h[i])) for i in range(m)])
    return (jnp.where(keep, gates, 0.0) * values).sum(0)


class FilmFusion(nn.Module):
  """The mean, over what is there, of (1 + gamma_m) * h_m + beta_m.

  gamma_m and beta_m are linear in the other modalities' features and flags: feature-wise
  linear modulation, Perez et al., "FiLM", 2018, eq. 1-2,
  https://arxiv.org/abs/1709.07871, of each modality by the others and not of one main
  modality, which might be missing. gamma is an offset from one, as in their code.
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    h = _vectors(features, mask)
    m, _, d = h.shape
    modulated = []
    for i in range(m):
      others = np.delete(np.arange(m), i)
      seen = _side_by_side(h[others], mask[others])
      gamma, beta = jnp.split(Dense(2 * d, name=f"film_{i}")(seen), 2, axis=-1)
      modulated.append((1.0 + gamma) * h[i] + beta)
    return mean_of_present(jnp.stack(modulated), mask)


class TensorFusion(nn.Module):
  """W vec([1; z_1] x ... x [1; z_m]), an outer product of z_m = silu(W_m h_m + b_m).

  The fusion layer of Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment
  Analysis", 2017, https://arxiv.org/abs/1707.07250. The constant one keeps the products
  of every subset, so z_m = 0 for a missing modality leaves just those of the others.

  Attributes:
    size: of z_m; the product has (size + 1)^m entries.
  """

  size: int = 8

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    h = _vectors(features, mask)
    m, b, d = h.shape
    if (self.size + 1) ** m > _LARGEST:
      raise ValueError(
        f"size={self.size}: {m} modalities make a product of {(self.size + 1) ** m}"
        f" entries; at most {_LARGEST}: take a smaller size, or low_rank"
      )
    z = [nn.silu(Dense(self.size, name=f"value_{i}")(h[i])) for i in range(m)]
    z = blank(jnp.stack(z), mask)
    product = jnp.ones((b, 1))
    for one in jnp.pad(z, ((0, 0), (0, 0), (1, 0)), constant_values=1.0):
      product = (product[:, :, None] * one[:, None, :]).reshape(b, -1)
    return zero_if_nothing(Dense(d, use_bias=False, name="out")(product), mask)


class LowRankFusion(nn.Module):
  """sum_r w_r prod_m (W_m^r [h_m; 1]) + b: a tensor fusion whose W has rank r.

  Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors",
  2018, section 3.2, https://arxiv.org/abs/1806.00064; the w_r are in its published
  code only. The constants' rows start at one, so that a product of many starts near one.

  Attributes:
    rank: how many products.
  """

  rank: int = 4

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    h = _vectors(features, mask)
    m, b, d = h.shape
    ones = nn.initializers.ones
    factors = [
      Dense(self.rank * d, bias_init=ones, name=f"factor_{i}")(h[i]) for i in range(m)
    ]
    product = math.prod(factors, start=jnp.ones(())).reshape(b, self.rank, d)
    weights = self.param("weights", kernel_init, (self.rank, 1))
    bias = self.param("bias", nn.initializers.zeros, (d,))
    return zero_if_nothing((weights * product).sum(1) + bias, mask)


FUSIONS = {
  "mean": MeanFusion,
  "concat": ConcatFusion,
  "gated": GatedFusion,
  "film": FilmFusion,
  "tensor": TensorFusion,
  "low_rank": LowRankFusion,
  "attention": AttentionFusion,
  "cross_attention": CrossAttentionFusion,
  "bottleneck": BottleneckFusion,
  "latent_queries": LatentFusion,
}


def make_fusion(name: str, **options) -> nn.Module:
  """The fusion layer of a name in `FUSIONS`; `options` are its attributes.

  Raises:
    ValueError: for an unknown name or option.
  """
  if name not in FUSIONS:
    raise ValueError(f"fusion must be one of {sorted(FUSIONS)}, got {name!r}")
  layer = FUSIONS[name]
  known = sorted(set(inspect.signature(layer).parameters) - {"name", "parent"})
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(f"fusion {name!r} has no option {unknown}; it has {known}")
  return layer(**options)
