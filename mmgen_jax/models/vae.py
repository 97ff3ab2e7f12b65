"""A VAE of fully connected layers, with the interface of a one-modality MultimodalVAE."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mmgen_jax.data.modality import Modality
from mmgen_jax.likelihoods import Likelihood
from mmgen_jax.models.multimodal import modality_likelihood

Dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())


class MLP(nn.Module):
  """Layers of the given sizes, tanh or what `act` says, then a linear one."""

  hidden: Sequence[int]
  outputs: int
  bias: float = 0.0  # of the last layer, at the start
  act: Callable[[Array], Array] = jnp.tanh
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b outputs"]:
    for size in self.hidden:
      x = self.act(Dense(size, dtype=self.dtype)(x))
    bias = nn.initializers.constant(self.bias)
    x = Dense(self.outputs, dtype=self.dtype, bias_init=bias)(x)
    return x.astype(jnp.float32)


class MLPVAE(nn.Module):
  """Encoder x - hidden - z and decoder z - hidden reversed - x, both tanh.

  With hidden (200, 200), latent 50 and Bernoulli pixels the one-layer network of Burda
  et al., 2016, section 5, https://arxiv.org/abs/1509.00519: Glorot initialisation, the
  encoder's second head is log sigma. There the output bias starts at the logit of each
  pixel's training mean; here at that of one mean for all pixels.

  Attributes:
    modalities: the one modality, by name; an image or a sound.
    latent: size of z.
    hidden: sizes of the encoder's hidden layers.
    mean: of a value, (x + 1) / 2, over the data; for Bernoulli outputs only.
    scale: of Gaussian and Laplace likelihoods.
    dtype: of the computation; parameters and latents stay float32.
  """

  modalities: Mapping[str, Modality]
  latent: int = 50
  hidden: Sequence[int] = (200, 200)
  mean: float = 0.5
  scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @property
  def size(self) -> int:
    """Of z."""
    return self.latent

  def setup(self):
    ((name, modality),) = self.modalities.items()
    outputs = self.likelihood(name).outputs
    bias = math.log(self.mean / (1 - self.mean))
    bernoulli = modality.likelihood == "bernoulli"
    self.encoder = MLP(self.hidden, 2 * self.latent, dtype=self.dtype)
    self.decoder = MLP(
      tuple(reversed(self.hidden)),
      math.prod(modality.shape) * outputs,
      bias if bernoulli else 0.0,
      dtype=self.dtype,
    )

  def likelihood(self, name: str) -> Likelihood:
    """The observation model."""
    return modality_likelihood(self.modalities[name], self.scale)

  def encode(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Mean and log-variance of q(z | x), [1 b z] each."""
    (name,) = self.modalities
    x = (batch[name].reshape(len(batch[name]), -1) + 1.0) / 2.0  # as the paper feeds it
    mean, log_sigma = jnp.split(self.encoder(x), 2, axis=-1)
    return mean[None], 2.0 * log_sigma[None]

  def decode(self, z: Float[Array, "b z"]) -> dict[str, Array]:
    """The likelihood's parameters [b ... outputs], by name."""
    ((name, modality),) = self.modalities.items()
    out = self.decoder(z)
    return {name: out.reshape(len(z), *modality.shape, -1)}

  def __call__(self, batch: Mapping[str, Array]):
    """Touches every parameter once: for `init`."""
    return self.decode(self.encode(batch)[0][0])


def binarise(keys, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """Grey values as probabilities of white: -1 or 1, drawn by example.

  A new draw at every use is the dynamic binarisation of Burda et al., 2016, in training
  and test alike; one draw for good is another data set, with an NLL higher by 2 nats.
  Probabilities are rounded up to multiples of 2^-16: black stays black, white white.
  """
  draw = lambda key, p: _uniform16(key, p.shape) < p * 2.0**16
  white = jax.vmap(draw)(keys, (x + 1.0) / 2.0)
  return jnp.where(white, 1.0, -1.0)


def _uniform16(key, shape) -> Array:
  """Integers in [0, 2^16), as floats: two of each random word."""
  n = math.prod(shape)
  words = jax.random.bits(key, (-(-n // 2),), jnp.uint32)
  halves = jnp.concatenate([words >> 16, words & 0xFFFF])[:n]
  return halves.reshape(shape).astype(jnp.float32)
