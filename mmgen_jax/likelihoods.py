"""Observation models p(x | z): what a decoder's outputs mean.

A decoder gives `outputs` numbers per value, as a last axis, and a Likelihood turns them
into the log density of an example and into its mode. Images and sound are in [-1, 1].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Likelihood(NamedTuple):
  """An observation model, as two pure functions.

  Attributes:
    outputs: decoder outputs per value; for a categorical, the vocabulary's size.
    log_prob: (params [b ... outputs], x [b ...]) -> nats per example, float32 [b].
    mode: params -> the value that a sample shows, in model space [b ...].
  """

  outputs: int
  log_prob: Callable[[Array, Array], Float[Array, "b"]]
  mode: Callable[[Array], Array]


@jax.custom_jvp
def sum_softplus(x: Float[Array, "b d"]) -> Float[Array, "b"]:
  """Sum_j log(1 + exp x_j), of finite x, with one logarithm for up to 16 of them.

  log(1 + exp x) = max(x, 0) + log(1 + exp(-|x|)), and the product of 16 numbers between
  1 and 2 loses no more than their sum would. A third of the time of `jax.nn.softplus`
  on CPUs, where decoders of many samples spend much of theirs. The slope is the sigmoid.
  """
  n, d = x.shape
  part = math.gcd(d, 16)
  factors = 1.0 + jnp.exp(-jnp.abs(x))
  logs = jnp.log(factors.reshape(n, part, d // part).prod(1))
  return jnp.maximum(x, 0.0).sum(-1) + logs.sum(-1)


sum_softplus.defjvps(lambda t, _, x: (jax.nn.sigmoid(x) * t).sum(-1))


def _per_example(x: Array) -> Float[Array, "b"]:
  return x.astype(jnp.float32).reshape(len(x), -1).sum(-1)


def gaussian(*, scale: float = 1.0) -> Likelihood:
  r"""Normal with a fixed standard deviation.

  log p = -(x - m)^2 / (2 s^2) - log s - log(2 pi) / 2, summed over values.
  """

  def log_prob(params, x):
    error = (x - params[..., 0].astype(jnp.float32)) / scale
    return _per_example(-0.5 * error**2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))

  return Likelihood(1, log_prob, lambda params: params[..., 0])


def laplace(*, scale: float = 0.75) -> Likelihood:
  """Laplace with a fixed scale: log p = -|x - m| / s - log 2 s, summed over values."""

  def log_prob(params, x):
    error = jnp.abs(x - params[..., 0].astype(jnp.float32)) / scale
    return _per_example(-error - jnp.log(2 * scale))

  return Likelihood(1, log_prob, lambda params: params[..., 0])


def bernoulli() -> Likelihood:
  """Bernoulli by logits, of y = (x + 1) / 2 in [0, 1].

  log p = y log sigmoid(l) + (1 - y) log sigmoid(-l) = y l - softplus(l). For
  grey values between 0 and 1 this is the usual cross-entropy, which is not a normalised
  density.
  """

  def log_prob(params, x):
    logits, y = params[..., 0].astype(jnp.float32), (x + 1.0) / 2.0
    return _per_example(y * logits) - sum_softplus(logits.reshape(len(logits), -1))

  return Likelihood(
    1, log_prob, lambda params: 2.0 * jax.nn.sigmoid(params[..., 0]) - 1.0
  )


def categorical(*, classes: int) -> Likelihood:
  """Categorical by logits, of integer x: log softmax(l)[x], summed over values."""

  def log_prob(params, x):
    logp = jax.nn.log_softmax(params.astype(jnp.float32), axis=-1)
    return _per_example(jnp.take_along_axis(logp, x[..., None], axis=-1)[..., 0])

  return Likelihood(classes, log_prob, lambda params: jnp.argmax(params, axis=-1))


def _logistic_bin(x: Array, mean: Array, log_s: Array, levels: int) -> Array:
  """Log of what a logistic puts in the bin of `levels` on [-1, 1] that x is in."""
  half, inv_s = 1.0 / (levels - 1), jnp.exp(-jnp.maximum(log_s, -7.0))
  upper, lower = inv_s * (x - mean + half), inv_s * (x - mean - half)
  # log(F(u) - F(l)), without cancellation: F(u) F(-l) (1 - exp(l - u)).
  inside = (
    jax.nn.log_sigmoid(upper)
    + jax.nn.log_sigmoid(-lower)
    + jnp.log(-jnp.expm1(lower - upper))
  )
  logp = jnp.where(x <= -1.0 + half, jax.nn.log_sigmoid(upper), inside)
  return jnp.where(x >= 1.0 - half, jax.nn.log_sigmoid(-lower), logp)


def discretised_logistic(*, levels: int = 256) -> Likelihood:
  """A logistic integrated over each of `levels` bins of [-1, 1].

  Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow",
  2016, https://arxiv.org/abs/1606.04934, eq. 16: p(x) = F((x + d/2 - m) / s) -
  F((x - d/2 - m) / s), with d the bin's width and the outermost bins taking the tails.
  Outputs are m and log s (clipped below at -7).
  """

  def log_prob(params, x):
    params = params.astype(jnp.float32)
    return _per_example(_logistic_bin(x, params[..., 0], params[..., 1], levels))

  return Likelihood(2, log_prob, lambda params: jnp.clip(params[..., 0], -1.0, 1.0))


def logistic_mixture(*, components: int = 10, levels: int = 256) -> Likelihood:
  """A mixture of `components` discretised logistics; channels of a pixel share one.

  Salimans et al., "PixelCNN++", 2017, section 2.1-2.2, https://arxiv.org/abs/1701.05517:
  within a component, the mean of a channel moves with the channels before it in the
  pixel, m_g + a x_r, m_b + b x_r + c x_g. Outputs of a value: logits (summed over the
  channels), means, log scales (clipped below at -7), coefficients (through tanh). What
  is not an image [b h w c] counts as one channel.

  Raises:
    ValueError: by `log_prob` and `mode`, for more than 3 channels.
  """

  def split(params):
    params = params.astype(jnp.float32)
    params = params if params.ndim == 5 else params[..., None, :]
    logits, means, log_s, coefficients = jnp.split(params, 4, -1)
    if params.shape[-2] > 3:
      raise ValueError(f"at most 3 channels, got {params.shape[-2]}")
    return logits.sum(-2), means, log_s, jnp.tanh(coefficients)

  def shift(means, coefficients, before):
    """The mean of the next channel [... k], after the channels `before` [... 1]."""
    i = len(before)
    at = ((), (0,), (1, 2))[i]
    terms = (coefficients[..., j, :] * v for j, v in zip(at, before, strict=True))
    return means[..., i, :] + sum(terms, jnp.zeros(()))

  def log_prob(params, x):
    logits, means, log_s, coefficients = split(params)
    x = x if x.ndim == 4 else x[..., None]
    channels = [x[..., i, None] for i in range(x.shape[-1])]
    logp = jax.nn.log_softmax(logits)
    for i, value in enumerate(channels):
      mean = shift(means, coefficients, channels[:i])
      logp += _logistic_bin(value, mean, log_s[..., i, :], levels)
    return _per_example(jax.nn.logsumexp(logp, -1))

  def mode(params):
    """The means of the likeliest component."""
    logits, means, _, coefficients = split(params)
    best = jnp.argmax(logits, -1)[..., None]
    made: list[Array] = []
    for _ in range(means.shape[-2]):
      each = shift(means, coefficients, made)
      made.append(jnp.clip(jnp.take_along_axis(each, best, -1), -1.0, 1.0))
    return jnp.concatenate(made, -1).reshape(params.shape[:-1])

  return Likelihood(4 * components, log_prob, mode)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
  "gaussian": gaussian,
  "laplace": laplace,
  "bernoulli": bernoulli,
  "categorical": categorical,
  "discretised_logistic": discretised_logistic,
  "logistic_mixture": logistic_mixture,
}


def make_likelihood(name: str, **options) -> Likelihood:
  """A likelihood by name.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in LIKELIHOODS:
    raise ValueError(f"likelihood must be one of {sorted(LIKELIHOODS)}, got {name!r}")
  return LIKELIHOODS[name](**options)
