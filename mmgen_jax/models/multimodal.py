"""The multimodal VAE: one encoder and one decoder per modality, and a latent.

Part of the latent is shared by all modalities; the rest is private to one each.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.likelihoods import Likelihood, make_likelihood
from mmgen_jax.models.conv import ConvDecoder, ConvEncoder
from mmgen_jax.models.layers import Dense
from mmgen_jax.models.r3gan import R3Generator
from mmgen_jax.models.text import TextDecoder, TextEncoder


def modality_likelihood(modality: Modality, scale: float) -> Likelihood:
  """The observation model of a modality; `scale` is for those that have a fixed one."""
  if modality.likelihood == "categorical":
    return make_likelihood("categorical", classes=len(modality.vocabulary))
  fixed = modality.likelihood in ("gaussian", "laplace")
  return make_likelihood(modality.likelihood, **({"scale": scale} if fixed else {}))


def as_grid(modality: Modality, x: Array) -> Float[Array, "b h w c"]:
  """Images as they are, log-mels [b frames mels] with a channel axis."""
  return x[..., None] if modality.kind == "audio" else x


def encoder_trunk(
  modality: Modality,
  width: int,
  features: int,
  blocks: int,
  dtype: DTypeLike,
  name: str | None = None,
) -> nn.Module:
  """The network that makes features [b, features] of one modality."""
  if modality.kind == "text":
    words = len(modality.vocabulary)
    return TextEncoder(words, width, features, blocks, dtype, name=name)
  return ConvEncoder(width, features, blocks, dtype=dtype, name=name)


class Encoder(nn.Module):
  """The expert q(z | x_m) of one modality: mean and log-variance [b z]."""

  modality: Modality
  latent: int
  width: int
  features: int
  blocks: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    net = encoder_trunk(
      self.modality, self.width, self.features, self.blocks, self.dtype
    )
    h = nn.silu(net(as_grid(self.modality, x))).astype(jnp.float32)
    return _head(h, self.latent)


BOUND = 8.0  # of a log-variance, either way


@jax.custom_vjp
def bounded(x: Array) -> Array:
  """`x` cut off at +-`BOUND`, with the gradients that lead back inside.

  Those of a plain clip are zero beyond it: an expert whose log-variances have all gone
  there learns no more.
  """
  return jnp.clip(x, -BOUND, BOUND)


def _bounded_gradient(x, g):
  outwards = ((x > BOUND) & (g < 0)) | ((x < -BOUND) & (g > 0))  # what descent does
  return (jnp.where(outwards, 0.0, g),)


bounded.defvjp(lambda x: (bounded(x), x), _bounded_gradient)


def _head(h: Float[Array, "b d"], latent: int) -> tuple[Array, Array]:
  mean, logvar = jnp.split(Dense(2 * latent, name="head")(h), 2, axis=-1)
  return mean, bounded(logvar)


class JointEncoder(nn.Module):
  """q(z | x_1 .. x_M) of all modalities together: JMVAE's.

  Suzuki, Nakayama and Matsuo, 2016, https://arxiv.org/abs/1611.01891. Attributes as of
  `MultimodalVAE`.
  """

  modalities: Mapping[str, Modality]
  latent: int
  widths: Mapping[str, int]
  features: int
  blocks: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    features = []
    for name, modality in sorted(self.modalities.items()):
      width = self.widths[modality.kind]
      net = encoder_trunk(modality, width, self.features, self.blocks, self.dtype)
      features.append(net(as_grid(modality, batch[name])))
    h = nn.silu(jnp.concatenate(features, -1)).astype(jnp.float32)
    h = nn.silu(Dense(self.features, name="joint")(h))
    return _head(h, self.latent)


class Decoder(nn.Module):
  """The parameters [b ... outputs] of p(x_m | z) of one modality.

  With `r3`, attributes of `R3Generator`, a grid's decoder is a GAN's generator: weights
  move between the two.
  """

  modality: Modality
  outputs: int
  width: int
  blocks: int = 1
  r3: Mapping[str, Any] = FrozenDict()
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "b z"]) -> Array:
    shape = self.modality.shape
    if self.modality.kind == "text":
      return TextDecoder(shape[0], self.outputs, self.width, self.blocks, self.dtype)(z)
    channels = shape[2] if self.modality.kind == "image" else 1
    size, outputs = (shape[0], shape[1]), channels * self.outputs
    if self.r3:
      grid = R3Generator(size, outputs, **self.r3, dtype=self.dtype)(z)
    else:
      grid = ConvDecoder(size, outputs, self.width, self.blocks, dtype=self.dtype)(z)
    return grid.reshape(len(z), *shape, self.outputs)


class MultimodalVAE(nn.Module):
  """Encoders and decoders of the sorted modalities; with one modality, a VAE's.

  Attributes:
    modalities: by name.
    latent: size of what modalities share of z.
    private: size of what each has of its own besides, by modality kind. z is the shared
      part, then the private ones in sorted order of names. An expert says nothing of
      the private parts of others, and no decoder sees them: else experts that are sure
      of the little that they know leave no room for what only a picture shows
      (shared and private latents: Palumbo, Daunhawer and Vogt, "MMVAE+", 2023,
      https://openreview.net/forum?id=sdQGxouELX).
    widths: channels (grids) or embedding size (text), by modality kind.
    features: size of every encoder's last hidden layer.
    blocks: blocks per resolution (grids) or in all (text).
    scales: scale of Gaussian and Laplace likelihoods, by modality kind.
    dtype: of the computation; parameters and latents stay float32.
    r3: attributes of `R3Generator`, to have that as the decoder of grids.
    joint: whether there is an encoder of all modalities together besides.
  """

  modalities: Mapping[str, Modality]
  latent: int
  widths: Mapping[str, int]
  features: int
  blocks: int
  scales: Mapping[str, float]
  private: Mapping[str, int] = FrozenDict()
  dtype: DTypeLike = jnp.float32
  r3: Mapping[str, Any] = FrozenDict()
  joint: bool = False

  def own(self, name: str) -> slice:
    """Where z holds what is private to a modality."""
    sizes = {n: self.private.get(m.kind, 0) for n, m in sorted(self.modalities.items())}
    start = self.latent + sum(size for n, size in sizes.items() if n < name)
    return slice(start, start + sizes[name])

  @property
  def size(self) -> int:
    """Of z: what is shared, and all that is private."""
    return max(self.own(name).stop for name in self.modalities)

  def setup(self):
    names = sorted(self.modalities)
    sizes = {n: self.latent + self.own(n).stop - self.own(n).start for n in names}
    self.encoders = {
      name: Encoder(
        self.modalities[name],
        sizes[name],
        self.widths[self.modalities[name].kind],
        self.features,
        self.blocks,
        self.dtype,
      )
      for name in names
    }
    self.decoders = {
      name: Decoder(
        self.modalities[name],
        self.likelihood(name).outputs,
        self.widths[self.modalities[name].kind],
        self.blocks,
        self.r3,
        self.dtype,
      )
      for name in names
    }

    if self.joint:
      self.joint_encoder = JointEncoder(
        self.modalities,
        self.latent,
        self.widths,
        self.features,
        self.blocks,
        self.dtype,
      )

  def likelihood(self, name: str) -> Likelihood:
    """The observation model of one modality."""
    modality = self.modalities[name]
    return modality_likelihood(modality, self.scales.get(modality.kind, 1.0))

  def encode(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Experts' means and log-variances, each [m b z], in sorted order of names.

    A modality that `batch` does not hold cannot be encoded: all must be there, those
    that are missing with any content, to be masked by the posterior.
    """
    means, logvars = [], []
    for name in sorted(self.modalities):
      mean, logvar = self.encoders[name](batch[name])
      means.append(self._place(name, mean, 0.0))
      logvars.append(self._place(name, logvar, jnp.inf))
    return jnp.stack(means), jnp.stack(logvars)

  def encode_jointly(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Mean and log-variance [b z] of the joint encoder; `joint` only."""
    return self.joint_encoder(batch)

  def _place(self, name: str, x: Array, fill: float) -> Float[Array, "b z"]:
    """What is shared and private to a modality where it belongs in z, else `fill`."""
    own, of = self.own(name), partial(jnp.full, fill_value=fill, dtype=x.dtype)
    shared, private = x[:, : self.latent], x[:, self.latent :]
    before, after = own.start - self.latent, self.size - own.stop
    parts = [shared, of((len(x), before)), private, of((len(x), after))]
    return jnp.concatenate(parts, axis=1)

  def decode(
    self, z: Float[Array, "b z"], names: Sequence[str] | None = None
  ) -> dict[str, Array]:
    """The likelihood parameters of every modality, or of those in `names`."""
    wanted = sorted(self.modalities if names is None else names)
    seen = lambda name: jnp.concatenate([z[:, : self.latent], z[:, self.own(name)]], 1)
    return {name: self.decoders[name](seen(name)) for name in wanted}

  def __call__(self, batch: Mapping[str, Array]):
    """Touches every parameter once: for `init`."""
    means, _ = self.encode(batch)
    if self.joint:
      self.joint_encoder(batch)
    return self.decode(means[0])
