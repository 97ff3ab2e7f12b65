"""Feature fusion: what encoders say about several modalities, as one vector.

Every layer maps features [m b d] and a mask [m b] to [b d]. Masked modalities change
nothing, whatever they hold; with nothing there the result is zero.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmgen_jax.models.layers import Dense

Features = Float[Array, "m b d"]
Mask = Bool[Array, "m b"]


def _blank(features: Features, mask: Mask) -> Features:
  return jnp.where(mask[..., None], features, 0.0)


class MeanFusion(nn.Module):
  """The mean of the features that are there.

  A sum pooling as in Zaheer et al., "Deep Sets", 2017, eq. 4,
  https://arxiv.org/abs/1703.06114, divided by the count.
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    count = jnp.maximum(mask.sum(0), 1)[:, None]
    return _blank(features, mask).sum(0) / count


class GatedFusion(nn.Module):
  """sum_m g_m * tanh(W_m h_m), gates g a softmax over modalities, per feature.

  The gated multimodal unit of Arevalo et al., 2017, https://arxiv.org/abs/1702.01992,
  eq. 1-4, for any number of modalities: gates see all features and sum to one over
  those that are there.
  """

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    m, b, d = features.shape
    h = _blank(features, mask)
    everything = h.transpose(1, 0, 2).reshape(b, m * d)
    logits = Dense(m * d)(everything).reshape(b, m, d).transpose(1, 0, 2)
    keep = mask[..., None]
    gates = nn.softmax(jnp.where(keep, logits, -1e9), axis=0)
    values = jnp.stack([nn.tanh(Dense(d, name=f"value_{i}")(h[i])) for i in range(m)])
    return (jnp.where(keep, gates, 0.0) * values).sum(0)


class AttentionFusion(nn.Module):
  """One learned query that attends to the modalities that are there.

  Pooling by multihead attention, Lee et al., "Set Transformer", 2019, eq. 11,
  https://arxiv.org/abs/1810.00825. A learned vector per modality tells which is which.
  """

  heads: int = 4

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    m, b, d = features.shape
    kind = self.param("kind", nn.initializers.normal(0.02), (m, 1, d))
    query = self.param("query", nn.initializers.normal(1.0), (1, 1, d))
    h = (_blank(features, mask) + kind).transpose(1, 0, 2)
    attend = nn.MultiHeadDotProductAttention(self.heads)
    out = attend(jnp.tile(query, (b, 1, 1)), h, mask=mask.T[:, None, None, :])
    return jnp.where(mask.any(0)[:, None], out[:, 0], 0.0)
