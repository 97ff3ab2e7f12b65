"""Recognition: encoders, a fusion layer, and heads that say a label's class."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.fusion.feature import make_fusion
from mmgen_jax.models.conv import ConvEncoder
from mmgen_jax.models.layers import Dense
from mmgen_jax.models.multimodal import as_grid
from mmgen_jax.models.text import TextEncoder

Logits = dict[str, Float[Array, "b c"]]
LATE = "late"  # the `fusion` of opinions, not of features


class FeatureEncoder(nn.Module):
  """Features [b d] of one modality, layer-normalised so that none is louder."""

  modality: Modality
  width: int
  features: int
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Float[Array, "b d"]:
    if self.modality.kind == "text":
      words = len(self.modality.vocabulary)
      net = TextEncoder(words, self.width, self.features, self.blocks, self.dtype)
    else:
      x = as_grid(self.modality, x)
      net = ConvEncoder(self.width, self.features, self.blocks, dtype=self.dtype)
    return nn.LayerNorm()(nn.silu(net(x)).astype(jnp.float32))


def product(logits: Float[Array, "m b c"], mask: Bool[Array, "m b"]) -> Array:
  """Logits [b c] of the product of what experts say, of those that `mask` keeps.

  log p(c | x) = sum_m log p_m(c | x_m) + const: the posterior if classes are equally
  likely and the x_m independent given the class (the product rule of Kittler et al., "On
  Combining Classifiers", 1998, https://doi.org/10.1109/34.667881). From nothing, zeros.
  """
  said = jax.nn.log_softmax(logits)
  return jnp.where(mask[..., None], said, 0.0).sum(0)


class Expert(nn.Module):
  """One modality by itself: its features, and what heads of its own say of them.

  Attributes:
    encoder: of `FeatureEncoder`.
    labels: {label: how many classes it has} of the heads; {}: none.
  """

  encoder: FeatureEncoder
  labels: Mapping[str, int]

  def setup(self):
    self.heads = {label: Dense(n) for label, n in sorted(self.labels.items())}

  def encode(self, x: Array) -> Float[Array, "b d"]:
    """Features."""
    return self.encoder(x)

  def decide(self, features: Float[Array, "b d"]) -> Logits:
    """Logits of the own heads."""
    return {label: head(features) for label, head in self.heads.items()}


class Recognizer(nn.Module):
  """Logits of every label's classes from any subset of the sorted modalities.

  Attributes:
    modalities: by name.
    labels: {label: how many classes it has}.
    widths: channels (grids) or embedding size (text), by modality kind.
    features: size of every encoder's output, and of what is fused.
    fusion: name of a layer in `mmgen_jax.fusion.feature.FUSIONS`; or "late": no features
      are fused, the answer is the product of the own heads' (`product`).
    fusion_options: the layer's attributes.
    blocks: blocks per resolution (grids) or in all (text).
    own_heads: whether each modality has heads of its own besides; "late" wants them.
    dtype: of the encoders' computation; all else is float32.
  """

  modalities: Mapping[str, Modality]
  labels: Mapping[str, int]
  widths: Mapping[str, int]
  features: int
  fusion: str
  fusion_options: Mapping[str, int] = FrozenDict()
  blocks: int = 1
  own_heads: bool = False
  dtype: DTypeLike = jnp.float32

  def setup(self):
    encoder = lambda m: FeatureEncoder(
      m, self.widths[m.kind], self.features, self.blocks, self.dtype
    )
    labels = self.labels if self.own_heads else FrozenDict()
    self.experts = {
      name: Expert(encoder(m), labels) for name, m in sorted(self.modalities.items())
    }
    if self.fusion != LATE:
      self.layer = make_fusion(self.fusion, **self.fusion_options)
      self.heads = {label: Dense(n) for label, n in sorted(self.labels.items())}

  def encode_one(self, name: str, x: Array) -> Float[Array, "b d"]:
    """Features of one modality."""
    return self.experts[name].encode(x)

  def encode(self, batch: Mapping[str, Array]) -> Float[Array, "m b d"]:
    """Features of all modalities, in sorted order of names."""
    return jnp.stack([self.encode_one(n, batch[n]) for n in sorted(self.modalities)])

  def fuse(self, features: Float[Array, "m b d"], mask: Bool[Array, "m b"]) -> Logits:
    """Logits from what `mask` keeps; from nothing, the heads' biases ("late": zeros).

    Biases are not the classes' shares: no loss is of an example that has nothing.
    """
    if self.fusion == LATE:
      return {label: product(x, mask) for label, x in self.alone(features).items()}
    h = self.layer(features, mask)
    return {label: head(h) for label, head in self.heads.items()}

  def alone(self, features: Float[Array, "m b d"]) -> dict[str, Float[Array, "m b c"]]:
    """Logits of the modalities' own heads; {} without `own_heads`."""
    names = sorted(self.experts)
    said = [self.experts[n].decide(features[i]) for i, n in enumerate(names)]
    return {label: jnp.stack([x[label] for x in said]) for label in said[0]}

  def decide(self, features: Float[Array, "m b d"], mask: Bool[Array, "m b"]) -> Logits:
    """Those of `fuse`; where one modality alone is there, those of its own head, if any.

    The fused head has to serve every subset, the own one just this.
    """
    fused, lone = self.fuse(features, mask), (mask.sum(0) == 1)[:, None]
    own = {label: product(x, mask) for label, x in self.alone(features).items()}
    return {k: jnp.where(lone, own[k], x) if own else x for k, x in fused.items()}

  def __call__(self, batch: Mapping[str, Array], mask: Bool[Array, "m b"]):
    """Touches every parameter once: for `init`."""
    features = self.encode(batch)
    return self.fuse(features, mask), self.alone(features)
