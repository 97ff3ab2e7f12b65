"""Alignment: an encoder per modality into one space of directions."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.contrastive import START, normalise
from mmgen_jax.data.modality import Modality
from mmgen_jax.models.layers import Dense
from mmgen_jax.models.recognition import FeatureEncoder

MAX_SCALE = 100.0  # of the logits: Radford et al., 2021, section 2.5


class Aligner(nn.Module):
  """Embeddings of length one, and the logits' scale and bias.

  Attributes:
    modalities: by name.
    size: of the embeddings.
    widths: channels (grids) or embedding size (text), by modality kind.
    features: size of every encoder's output, which one matrix projects.
    loss: whose published scale and bias to start from.
    blocks: blocks per resolution (grids) or in all (text).
    dtype: of the encoders' computation; all else is float32.
  """

  modalities: Mapping[str, Modality]
  size: int
  widths: Mapping[str, int]
  features: int
  loss: str
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  def setup(self):
    scale, bias = START[self.loss]
    start = lambda value: lambda key: jnp.full((), value, jnp.float32)
    self.log_scale = self.param("log_scale", start(math.log(scale)))
    self.bias = self.param("bias", start(bias)) if bias else 0.0
    self.encoders = {
      name: FeatureEncoder(
        m, self.widths[m.kind], self.features, self.blocks, self.dtype
      )
      for name, m in sorted(self.modalities.items())
    }
    self.projections = {
      name: Dense(self.size, use_bias=False) for name in sorted(self.modalities)
    }

  def temper(self) -> tuple[Array, Array | float]:
    """Scale, which the step keeps at most `MAX_SCALE`, and bias."""
    return jnp.exp(self.log_scale), self.bias

  def __call__(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "b d"]]:
    return {
      name: normalise(self.projections[name](self.encoders[name](batch[name])))
      for name in sorted(self.modalities)
    }
