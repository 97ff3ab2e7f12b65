"""An autoencoder whose latent is a map of vectors, to be quantised between its halves."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.likelihoods import Likelihood
from mmgen_jax.models.layers import Dense, ResidualBlock, depth_to_space, space_to_depth
from mmgen_jax.models.multimodal import as_grid, modality_likelihood


class MapAutoencoder(nn.Module):
  """Patches -> a map of vectors of `size` -> patches, by residual convolutions.

  Attributes:
    modality: an image or a sound.
    size: of each vector.
    width: channels of the map.
    blocks: residual blocks, in each half.
    patch: pixels a side that one vector stands for.
    scale: of Gaussian and Laplace likelihoods.
    dtype: of the computation; parameters and vectors stay float32.
  """

  modality: Modality
  size: int
  width: int
  blocks: int = 2
  patch: int = 4
  scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @property
  def likelihood(self) -> Likelihood:
    """The observation model."""
    return modality_likelihood(self.modality, self.scale)

  @property
  def grid(self) -> tuple[int, int]:
    """Height and width of the map."""
    h, w = self.modality.shape[:2]
    return h // self.patch, w // self.patch

  def setup(self):
    blocks = lambda: [ResidualBlock(dtype=self.dtype) for _ in range(self.blocks)]
    self.fold = Dense(self.width, dtype=self.dtype)
    self.encoder_blocks = blocks()
    self.head = Dense(self.size)
    self.widen = Dense(self.width, dtype=self.dtype)
    self.decoder_blocks = blocks()
    self.wide = Dense(4 * self.width, dtype=self.dtype)
    channels = (*self.modality.shape, 1)[2]
    self.last = Dense(self.patch**2 * channels * self.likelihood.outputs)

  def encode(self, x: Array) -> Float[Array, "b h w d"]:
    """The vectors, not yet quantised."""
    h = space_to_depth(as_grid(self.modality, x).astype(self.dtype), self.patch)
    h = self.fold(h)
    for block in self.encoder_blocks:
      h = block(h)
    return self.head(nn.silu(h).astype(jnp.float32))

  def features(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h w f"]:
    """What the last layer sees."""
    h = self.widen(z.astype(self.dtype))
    for block in self.decoder_blocks:
      h = block(h)
    return nn.silu(self.wide(nn.silu(h))).astype(jnp.float32)

  def outputs(self, features: Float[Array, "b h w f"]) -> Array:
    """The last layer alone: the likelihood's parameters [b ... outputs]."""
    x = depth_to_space(self.last(features), self.patch)
    return x.reshape(len(x), *self.modality.shape, self.likelihood.outputs)

  def decode(self, z: Float[Array, "b h w d"]) -> Array:
    """The likelihood's parameters [b ... outputs]."""
    return self.outputs(self.features(z))

  def __call__(self, x: Array) -> Array:
    """Touches every parameter once: for `init`."""
    return self.decode(self.encode(x))
