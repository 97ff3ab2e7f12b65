"""Feature fusion by attention: pooling, cross-attention, bottlenecks, latent queries.

Layers map features [m b d], or tokens [m b t d], and a mask [m b] to [b d], by the rules
of `mmgen_jax.fusion.feature`. Within a modality the order of its tokens does not matter.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmgen_jax.models.layers import Dense

Features = Float[Array, "m b d"] | Float[Array, "m b t d"]
Mask = Bool[Array, "m b"]


def blank(features: Features, mask: Mask) -> Features:
  """The features, zero where they are missing: not even a NaN gets through."""
  return jnp.where(mask.reshape(*mask.shape, *[1] * (features.ndim - 2)), features, 0.0)


def zero_if_nothing(out: Float[Array, "b d"], mask: Mask) -> Float[Array, "b d"]:
  """`out`, zero for the examples of which nothing is there."""
  return jnp.where(mask.any(0)[:, None], out, 0.0)


def mean_of_present(x: Float[Array, "m b *rest"], mask: Mask) -> Array:
  """The mean over the modalities that are there, [b *rest]; zero if none is."""
  count = jnp.maximum(mask.sum(0), 1).reshape(-1, *[1] * (x.ndim - 2))
  return blank(x, mask).sum(0) / count


def _tokens(features: Features, mask: Mask) -> Float[Array, "m b t d"]:
  return blank(features if features.ndim == 4 else features[:, :, None], mask)


def _join(x: Float[Array, "m b t d"], mask: Mask):
  """All modalities' tokens [b m*t d] and which are there [b m*t]."""
  m, b, t, d = x.shape
  return x.transpose(1, 0, 2, 3).reshape(b, m * t, d), jnp.repeat(mask.T, t, axis=1)


def _kinds(module: nn.Module, m: int, d: int) -> Float[Array, "m 1 1 d"]:
  """A learned vector per modality, which tells tokens which is which."""
  return module.param("kind", nn.initializers.normal(0.02), (m, 1, 1, d))


class Attention(nn.Module):
  """Multi-head attention of queries to the tokens that are there; zero if none is.

  softmax(Q K^T / sqrt(d / heads)) V per head: Vaswani et al., "Attention Is All You
  Need", 2017, eq. 1, https://arxiv.org/abs/1706.03762. Keys have no bias: it adds the
  same to every logit, which a softmax does not see. The weights [b heads q n] are sown as
  "intermediates", for `mmgen_jax.attribution.fusion_weights`.

  Attributes:
    heads: of the attention.
    over_modalities: whether the tokens are those of all modalities, one after the other;
      the weights of others say nothing of modalities, and are not sown.
  """

  heads: int = 4
  over_modalities: bool = True

  @nn.compact
  def __call__(
    self,
    queries: Float[Array, "b q d"],
    tokens: Float[Array, "b n d"],
    keep: Bool[Array, "b n"],
  ) -> Float[Array, "b q d"]:
    d = queries.shape[-1]
    if d % self.heads:
      raise ValueError(f"{self.heads} heads do not divide {d} features")
    split = lambda x: x.reshape(*x.shape[:2], self.heads, d // self.heads)
    q = split(Dense(d, name="query")(queries))
    k = split(Dense(d, name="key", use_bias=False)(tokens))
    v = split(Dense(d, name="value")(tokens))
    logits = jnp.einsum("bqhd,bnhd->bhqn", q, k) / math.sqrt(d // self.heads)
    there = keep[:, None, None, :]
    weights = jnp.where(there, nn.softmax(jnp.where(there, logits, -1e9)), 0.0)
    if self.over_modalities:
      self.sow("intermediates", "weights", weights)
    out = jnp.einsum("bhqn,bnhd->bqhd", weights, v).reshape(queries.shape)
    out = Dense(d, name="out")(out)
    return jnp.where(keep.any(1)[:, None, None], out, 0.0)


class AttentionBlock(nn.Module):
  """x + Attention(LN x, LN context), then x + MLP(LN x); its own context by default.

  Attributes as of `Attention`.
  """

  heads: int = 4
  over_modalities: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "b q d"], keep, context=None) -> Array:
    d, h = x.shape[-1], nn.LayerNorm()(x)
    context = h if context is None else nn.LayerNorm()(context)
    x = x + Attention(self.heads, self.over_modalities)(h, context, keep)
    h = nn.silu(Dense(2 * d)(nn.LayerNorm()(x)))
    return x + Dense(d)(h)


class AttentionFusion(nn.Module):
  """One learned query that attends to the tokens that are there.

  Pooling by multihead attention, Lee et al., "Set Transformer", 2019, eq. 11,
  https://arxiv.org/abs/1810.00825.

  Attributes:
    heads: of the attention.
    kinds: whether modalities are told apart by a learned vector each; without, their
      order does not matter.
  """

  heads: int = 4
  kinds: bool = True

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    x = _tokens(features, mask)
    m, b, _, d = x.shape
    x = x + _kinds(self, m, d) if self.kinds else x
    query = self.param("query", nn.initializers.normal(1.0), (1, 1, d))
    out = Attention(self.heads)(jnp.tile(query, (b, 1, 1)), *_join(x, mask))
    return out[:, 0]


class CrossAttentionFusion(nn.Module):
  """Each modality attends to the tokens of all others; then the mean of what is there.

  Crossmodal attention as in Tsai et al., "Multimodal Transformer for Unaligned
  Multimodal Language Sequences", 2019, section 3.1, https://arxiv.org/abs/1906.00295,
  with one block for a modality's view of all others, not one for every pair. A modality
  that is alone attends to nothing and goes through its MLPs only.

  Attributes:
    heads: of the attention.
    blocks: of each modality, one after the other, on the others' original tokens.
  """

  heads: int = 4
  blocks: int = 1

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    x = _tokens(features, mask)
    m, _, t, d = x.shape
    x = x + _kinds(self, m, d)
    context, _ = _join(x, mask)
    views = []
    for i in range(m):
      others = jnp.repeat((mask & (jnp.arange(m) != i)[:, None]).T, t, axis=1)
      h = x[i]
      for block in range(self.blocks):
        name = f"modality_{i}_block_{block}"
        h = AttentionBlock(self.heads, name=name)(h, others, context)
      views.append(h.mean(1))
    return mean_of_present(jnp.stack(views), mask)


class BottleneckFusion(nn.Module):
  """Modalities that exchange what they know through a few shared tokens only.

  Nagrani et al., "Attention Bottlenecks for Multimodal Fusion", 2021, section 3.2,
  https://arxiv.org/abs/2107.00135: in every layer each modality's transformer sees its
  own tokens and the bottleneck's; the bottleneck goes on as the mean of what the
  modalities that are there made of it. The result is the mean of their tokens.

  Attributes:
    heads: of the attention.
    blocks: layers; the first one writes to the bottleneck, later ones can read.
    bottlenecks: shared tokens.
  """

  heads: int = 4
  blocks: int = 2
  bottlenecks: int = 4

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    if self.blocks < 2:
      raise ValueError(f"blocks={self.blocks}: modalities meet in the second one only")
    x = _tokens(features, mask)
    m, b, t, d = x.shape
    init = nn.initializers.normal(1.0)
    shared = self.param("bottleneck", init, (1, self.bottlenecks, d))
    shared = jnp.tile(shared, (b, 1, 1))
    keep = jnp.pad(
      jnp.repeat(mask[..., None], t, axis=2),
      ((0, 0), (0, 0), (0, self.bottlenecks)),
      constant_values=True,
    )
    for block in range(self.blocks):
      both = []
      for i in range(m):
        name = f"modality_{i}_block_{block}"
        layer = AttentionBlock(self.heads, over_modalities=False, name=name)
        both.append(layer(jnp.concatenate([x[i], shared], axis=1), keep[i]))
      both = jnp.stack(both)
      x, shared = both[:, :, :t], mean_of_present(both[:, :, t:], mask)
    return mean_of_present(x.mean(2), mask)


class LatentFusion(nn.Module):
  """Learned latent queries that read all tokens and then talk among themselves.

  Jaegle et al., "Perceiver: General Perception with Iterative Attention", 2021, section
  3.1, https://arxiv.org/abs/2103.03206. The result is the mean of the latents.

  Attributes:
    heads: of the attention.
    blocks: times that the latents read the tokens, with weights of their own.
    latents: how many queries.
    kinds: as in `AttentionFusion`.
  """

  heads: int = 4
  blocks: int = 1
  latents: int = 4
  kinds: bool = True

  @nn.compact
  def __call__(self, features: Features, mask: Mask) -> Float[Array, "b d"]:
    x = _tokens(features, mask)
    m, b, _, d = x.shape
    x = x + _kinds(self, m, d) if self.kinds else x
    tokens, keep = _join(x, mask)
    h = self.param("latent", nn.initializers.normal(1.0), (1, self.latents, d))
    h = jnp.tile(h, (b, 1, 1))
    for block in range(self.blocks):
      h = AttentionBlock(self.heads, name=f"read_{block}")(h, keep, tokens)
      always = jnp.ones((b, self.latents), bool)
      talk = AttentionBlock(self.heads, over_modalities=False, name=f"talk_{block}")
      h = talk(h, always)
    return zero_if_nothing(h.mean(1), mask)
