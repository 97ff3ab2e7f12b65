"""GAN networks under a condition: a class, any modalities, or both.

What is given of an example is a `Given`; a `ConditionEncoder` makes one vector of it,
whatever is missing. Generator and discriminator have an encoder each, as they have
class embeddings of their own in Miyato and Koyama, 2018,
https://arxiv.org/abs/1802.05637: so each network's parameters serve one loss only, and
the averaged generator is all that sampling needs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmgen_jax.data.modality import Modality
from mmgen_jax.fusion.feature import make_fusion
from mmgen_jax.models.layers import Condition, Dense
from mmgen_jax.models.multimodal import as_grid, encoder_trunk


class Given(NamedTuple):
  """What a GAN is conditioned on.

  Attributes:
    label: the class of each example, None for a model without classes.
    values: {modality: [b ...]}; empty for a model without such a condition.
    mask: {modality: whether the example has it, and it is to be told}.
  """

  label: Int[Array, "b"] | None
  values: dict[str, Array]
  mask: dict[str, Bool[Array, "b"]]


class ConditionEncoder(nn.Module):
  """[b features + 1]: fused features of what is given, and 1 where nothing is.

  Features are normalised to unit variance (Ba, Kiros and Hinton, "Layer Normalization",
  2016, https://arxiv.org/abs/1607.06450), zero where nothing is given: then the last
  entry selects an embedding of its own, that of an unconditional sample.

  Attributes:
    modalities: those of the condition, by name.
    widths: channels or embedding size, by modality kind.
    features: of each modality, and of what they are fused to.
    blocks: residual or transformer blocks.
    fusion: a name in `mmgen_jax.fusion.feature.FUSIONS`.
    dtype: of the computation; parameters stay float32.
  """

  modalities: Mapping[str, Modality]
  widths: Mapping[str, int]
  features: int = 64
  blocks: int = 1
  fusion: str = "mean"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, values: Mapping[str, Array], mask: Mapping[str, Array]
  ) -> Float[Array, "b e"]:
    h = []
    for name, m in sorted(self.modalities.items()):
      width = self.widths[m.kind]
      net = encoder_trunk(m, width, self.features, self.blocks, self.dtype, name=name)
      h.append(nn.silu(net(as_grid(m, values[name]))).astype(jnp.float32))
    there = jnp.stack([mask[name] for name in sorted(self.modalities)])
    fused = make_fusion(self.fusion)(jnp.stack(h), there)
    fused = nn.LayerNorm(use_bias=False, use_scale=False)(fused)
    nothing = ~there.any(0)[:, None]
    return jnp.concatenate([fused, nothing.astype(jnp.float32)], -1)


def _condition(encoder, classes: int, given: Given) -> Condition:
  """The label, or the vector of the modalities with, before it, the label's."""
  if encoder is None:
    return given.label
  vector = encoder(given.values, given.mask)
  if given.label is None:
    return vector
  return jnp.concatenate([jax.nn.one_hot(given.label, classes), vector], -1)


class ConditionalGenerator(nn.Module):
  """`net(z, condition)`, grids [b h w c] from noise and what is given.

  Attributes:
    net: a generator of this package.
    encoder: of the condition's modalities, if there are any.
    classes: how many labels there are; 0 for none.
  """

  net: nn.Module
  encoder: ConditionEncoder | None = None
  classes: int = 0

  def __call__(self, z: Float[Array, "b z"], given: Given) -> Float[Array, "b h w c"]:
    return self.net(z, _condition(self.encoder, self.classes, given))


class Verdict(NamedTuple):
  """What a discriminator says of examples.

  Attributes:
    logits: real or not, under the condition if there is one.
    classes: [b k] logits of the class, of an auxiliary classifier.
    image: [b e] what the example says, to compare with `given`.
    given: [b e] what the condition says.
  """

  logits: Float[Array, "b"]
  classes: Float[Array, "b k"] | None = None
  image: Float[Array, "b e"] | None = None
  given: Float[Array, "b e"] | None = None


class ConditionalDiscriminator(nn.Module):
  """A Verdict of examples and what is given.

  Attributes:
    net: a discriminator of this package.
    encoder: of the condition's modalities, if there are any.
    classes: how many labels there are; 0 for none.
    projection: whether the logits see the condition.
    auxiliary: whether there is a classifier of the label: Odena, Olah and Shlens,
      "Conditional Image Synthesis with Auxiliary Classifier GANs", 2017,
      https://arxiv.org/abs/1610.09585.
    contrast: size of the vectors of example and condition that are compared; 0 for none.
  """

  net: nn.Module
  encoder: ConditionEncoder | None = None
  classes: int = 0
  projection: bool = True
  auxiliary: bool = False
  contrast: int = 0

  def embed(self, given: Given) -> Condition:
    """The condition, once for all that is judged under it."""
    return _condition(self.encoder, self.classes, given)

  @nn.compact
  def judge(self, x: Float[Array, "b h w c"], condition: Condition) -> Verdict:
    """The Verdict of examples under a condition from `embed`."""
    seen = condition if self.projection else None
    logits, h = self.net(x, seen, features=True)
    h = h.astype(jnp.float32)
    classes = Dense(self.classes, name="classes")(h) if self.auxiliary else None
    if not self.contrast:
      return Verdict(logits, classes)
    image = Dense(self.contrast, name="image")(h)
    return Verdict(
      logits, classes, image, Dense(self.contrast, name="given")(condition)
    )

  def __call__(self, x: Float[Array, "b h w c"], given: Given) -> Verdict:
    """The Verdict of examples and what is given."""
    return self.judge(x, self.embed(given))
