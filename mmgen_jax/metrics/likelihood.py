"""How likely a model with latents finds data: bounds on log p(x), and what z is used for.

An importance-sampled bound rises towards log p(x) with the number of samples K, so K is
part of its name: numbers of different K, or from different binarisations of the same
images, are not comparable.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


class Bounds(NamedTuple):
  """Of one example each, in nats, from K samples of z.

  Attributes:
    elbo: the mean of log w, the one-sample bound.
    log_px: log of the mean of w, the K-sample bound.
    effective: effective sample size (sum w)^2 / sum w^2, 1 to K; near 1 the bound hangs
      on one sample, and is loose.
  """

  elbo: Float[Array, "b"]
  log_px: Float[Array, "b"]
  effective: Float[Array, "b"]


def importance_bounds(
  log_weights: Callable[[Key[Array, "b"]], Float[Array, "c b"]],
  keys: Key[Array, "b"],
  *,
  samples: int,
  chunk: int,
) -> Bounds:
  """The ELBO and the K-sample bound of Burda et al. in constant memory; traceable.

  log p(x) >= E log (1/K) sum_i w_i, w_i = p(x, z_i) / q(z_i | x): Burda, Grosse and
  Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8,
  https://arxiv.org/abs/1509.00519. Chunks are drawn in a `lax.scan` that keeps running
  logarithms of sums, so K only costs time.

  Args:
    log_weights: keys -> log w of `chunk` samples of each example.
    keys: one per example; its samples follow from it alone, not from `samples`.
    samples: K, a multiple of `chunk`.
    chunk: how many samples are in memory at once.

  Raises:
    ValueError: if `samples` is no multiple of `chunk`.
  """
  if chunk < 1 or samples < 1 or samples % chunk:
    raise ValueError(f"samples = {samples} must be a multiple of chunk = {chunk}")

  def add(total, i):
    each = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    log_w = log_weights(each).astype(jnp.float32)
    if len(log_w) != chunk:
      raise ValueError(f"log_weights gave {len(log_w)} samples, chunk is {chunk}")
    log_sum = lambda log_v: jax.nn.logsumexp(log_v, axis=0)
    # A mean of means: a plain sum of 5,000 times -90 nats would lose digits.
    mean = total[0] + (log_w.mean(0) - total[0]) / (i + 1)
    once = jnp.logaddexp(total[1], log_sum(log_w))
    twice = jnp.logaddexp(total[2], log_sum(2 * log_w))
    return (mean, once, twice), None

  zero, none = jnp.zeros(len(keys)), jnp.full(len(keys), -jnp.inf)
  total, _ = jax.lax.scan(add, (zero, none, none), jnp.arange(samples // chunk))
  mean, once, twice = total
  return Bounds(mean, once - math.log(samples), jnp.exp(2 * once - twice))


def bits_per_dimension(nats: np.ndarray, dimensions: int) -> np.ndarray:
  """-nats / (dimensions ln 2).

  Comparable with published numbers only for a probability of the stored integers
  (`discretised_logistic`, `bernoulli` of binary data): a density of rescaled pixels is
  off by the logarithm of the scale, and unbounded.

  Raises:
    ValueError: if there is no dimension.
  """
  if dimensions < 1:
    raise ValueError(f"dimensions must be at least 1, got {dimensions}")
  return -np.asarray(nats, np.float64) / (dimensions * math.log(2))


def active_units(
  means: Float[np.ndarray, "n z"], *, threshold: float = 1e-2
) -> np.ndarray:
  """Which latents are used, bool [z]: Var_x(E_q[z_j | x]) > threshold.

  Burda et al., 2016, section 5.2, with their threshold. `means` are q's, of many
  examples.
  """
  return np.asarray(means, np.float64).var(0) > threshold


def mean_kl_by_dimension(
  means: Float[np.ndarray, "n z"], logvars: Float[np.ndarray, "n z"]
) -> Float[np.ndarray, " z"]:
  """KL(q(z_j | x) || N(0, 1)) of each latent, in nats, mean over the examples."""
  means, logvars = (np.asarray(x, np.float64) for x in (means, logvars))
  return 0.5 * (np.expm1(logvars) - logvars + means**2).mean(0)
