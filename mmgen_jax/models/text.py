"""Text encoder and decoder: token embeddings and a small transformer."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mmgen_jax.data.modality import PAD
from mmgen_jax.models.layers import Dense, Embed, TransformerBlock, embed_init


class TextEncoder(nn.Module):
  """Features [b, features] of tokens [b t]: the mean over tokens that are not padding.

  Attributes:
    vocabulary: number of token ids.
    width: size of the embedding.
    features: size of the output.
    blocks: transformer blocks.
    dtype: of the computation; parameters stay float32.
  """

  vocabulary: int
  width: int = 64
  features: int = 128
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
    real = tokens != PAD
    x = Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens)
    position = self.param("position", embed_init, (tokens.shape[1], self.width))
    x = x + position.astype(self.dtype)
    for _ in range(self.blocks):
      x = TransformerBlock(dtype=self.dtype)(x, real)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    total = jnp.where(real[..., None], x, 0).sum(1)
    mean = total / jnp.maximum(real.sum(1, keepdims=True), 1)
    return Dense(self.features, dtype=self.dtype)(nn.silu(mean))


class TextDecoder(nn.Module):
  """Token logits [b t vocabulary] from vectors [b z], all positions at once.

  Given z the tokens are independent, so everything that makes a sentence one sentence
  is in z, where the other modalities share it (an autoregressive decoder could ignore
  z), and a caption costs one pass.

  Attributes:
    length: number of positions.
    vocabulary: number of token ids.
    width: size of the residual stream.
    blocks: transformer blocks.
    dtype: of the computation; parameters stay float32.
  """

  length: int
  vocabulary: int
  width: int = 64
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"]) -> Float[Array, "b t v"]:
    x = Dense(self.length * self.width, dtype=self.dtype)(z)
    x = x.reshape(len(z), self.length, self.width)
    for _ in range(self.blocks):
      x = TransformerBlock(dtype=self.dtype)(x)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    return Dense(self.vocabulary, dtype=self.dtype)(x).astype(jnp.float32)
