"""Generator and discriminator of grids, unconditional or under a condition."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.models.conv import ConvDecoder, ConvEncoder
from mmgen_jax.models.layers import Condition, Dense, embed, leaky_relu
from mmgen_jax.models.multimodal import as_grid


class Generator(nn.Module):
  """A grid in model space from noise [b z] and a condition: a class or a vector.

  The condition is embedded and concatenated to z (Mirza and Osindero, "Conditional
  Generative Adversarial Nets", 2014, https://arxiv.org/abs/1411.1784). It is a VAE's
  `ConvDecoder` with a tanh, so weights move between the two.
  """

  modality: Modality
  width: int
  blocks: int = 1
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"], condition: Condition = None) -> Array:
    if condition is not None:
      z = jnp.concatenate([z, embed(condition, self.classes, z.shape[-1])], axis=-1)
    shape = self.modality.shape
    channels = shape[2] if self.modality.kind == "image" else 1
    grid = ConvDecoder(
      (shape[0], shape[1]), channels, self.width, self.blocks, dtype=self.dtype
    )(z)
    return jnp.tanh(grid).reshape(len(z), *shape)


class Discriminator(nn.Module):
  """Logits [b] of a grid: h(x) + <embedding of the condition, features(x)>.

  Without a condition only the first term. With `features`, they come too [b d]. Miyato
  and Koyama, "cGANs with Projection Discriminator", 2018, eq. 5,
  https://arxiv.org/abs/1802.05637. No batch statistics: examples stay independent, which
  gradient penalties need.
  """

  modality: Modality
  width: int
  features: int = 128
  blocks: int = 1
  classes: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, condition: Condition = None, features: bool = False
  ) -> Any:
    h = ConvEncoder(
      self.width,
      self.features,
      self.blocks,
      act=leaky_relu,
      norm=False,
      dtype=self.dtype,
    )(as_grid(self.modality, x))
    h = leaky_relu(h).astype(jnp.float32)
    logits = Dense(1)(h)[:, 0]
    if condition is not None:
      logits += (embed(condition, self.classes, self.features) * h).sum(-1)
    return (logits, h) if features else logits


class Discriminators(nn.Module):
  """Logits {name: [b]}: one Discriminator for each of several modalities.

  Attributes:
    modalities: those that are judged, by name.
    widths: by modality kind.
  """

  modalities: Mapping[str, Modality]
  widths: Mapping[str, int]
  features: int = 128
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, values: Mapping[str, Array]) -> dict[str, Float[Array, "b"]]:
    return {
      name: Discriminator(
        modality,
        self.widths[modality.kind],
        self.features,
        self.blocks,
        dtype=self.dtype,
        name=name,
      )(values[name])
      for name, modality in sorted(self.modalities.items())
    }
