"""The prior p(z): a mixture of diagonal Gaussians that follows the encoders, by EM.

Attributes are discrete, so what encoders produce is a set of clusters, and a N(0, I) has
most of its mass between them: what is decoded from there belongs to no cluster. The prior
that is best for the ELBO is the mean of the posteriors (Hoffman and Johnson, "ELBO
surgery", 2016; Tomczak and Welling, "VAE with a VampPrior", 2018,
https://arxiv.org/abs/1705.07120). Stepwise EM (Cappe and Moulines, "On-line
expectation-maximization algorithm for latent data models", 2009,
https://arxiv.org/abs/0712.4273) keeps a mixture close to it, where gradients leave most
components unused.
"""

from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmgen_jax.fusion.model import pool
from mmgen_jax.losses import gaussian_log_prob

MIN_VARIANCE = 1e-2  # of a component: sets the scale of z, which a mixture leaves free
MEMORY = 0.1  # of the updates so far, at most
DEAD = 0.1  # a component with less than this part of an equal share is moved


@flax.struct.dataclass
class Mixture:
  """Running means of r, r z and r z^2, r being a component's responsibility for z."""

  weight: Float[Array, "k"]
  first: Float[Array, "k z"]
  second: Float[Array, "k z"]


def init_mixture(key: Key[Array, ""], components: int, latent: int) -> Mixture:
  """N(0, I) for one component; else as many unit Gaussians, close together.

  Broad and overlapping: components that start apart never share what there is.
  """
  weight = jnp.full((components, 1), 1.0 / components, jnp.float32)
  means = jnp.zeros((components, latent))
  if components > 1:
    means = 0.3 * jax.random.normal(key, means.shape)
  return Mixture(weight[:, 0], weight * means, weight * (1.0 + means**2))


def _parameters(p: Mixture) -> tuple[Array, Array, Array]:
  """Log weights [k], means and variances [k z].

  Weights are divided by their sum: merges of networks (task arithmetic, TIES, slerp)
  leave sums that are not one, and weights below zero, which count as none.
  """
  weight = jnp.maximum(p.weight, 1e-9)
  means = p.first / weight[:, None]
  variances = jnp.maximum(p.second / weight[:, None] - means**2, MIN_VARIANCE)
  return jnp.log(weight / weight.sum()), means, variances


def _joint(p: Mixture, z: Float[Array, "b z"]) -> Float[Array, "b k"]:
  """Log p(component, z)."""
  logw, means, variances = _parameters(p)
  return logw + gaussian_log_prob(z[:, None], means, jnp.log(variances))


def log_prob(p: Mixture, z: Float[Array, "b z"]) -> Float[Array, "b"]:
  """Log p(z) in nats."""
  return jax.nn.logsumexp(_joint(p, z), axis=-1)


class GaussianMixture(NamedTuple):
  """A mixture of diagonal Gaussians per example."""

  logits: Float[Array, "b k"]
  means: Float[Array, "b k z"]
  variances: Float[Array, "b k z"]


def posterior(
  p: Mixture,
  means: Float[Array, "m b z"],
  logvars: Float[Array, "m b z"],
  mask: Bool[Array, "m b"],
) -> GaussianMixture:
  """p(z) times the experts that `mask` keeps: the prior as a mixture, sharpened.

  A component w N(mu, v) times experts of total precision T and mean m is Gaussian, with
  mean mu + (1 - s) (m - mu) and variance v s, s = 1 / (1 + T v), and weight
  w sqrt(s) exp(-T s (m - mu)^2 / 2), by dimension: the product of experts of Wu and
  Goodman, 2018, https://arxiv.org/abs/1802.05335, with a mixture as its prior expert.
  With no expert kept it is the prior. Where experts leave z open, a N(0, I) in the place
  of p(z) would draw from between the clusters.
  """
  logw, mu, var = _parameters(p)
  precision, weighted = (x[:, None] for x in pool(means, logvars, mask))  # [b 1 z]
  mean = weighted / jnp.where(precision > 0, precision, 1.0)
  shrink = 1.0 / (1.0 + precision * var)  # [b k z]
  overlap = jnp.log(shrink) - precision * shrink * (mean - mu) ** 2
  return GaussianMixture(
    logw + 0.5 * overlap.sum(-1),
    mu + (1.0 - shrink) * (mean - mu),
    var * shrink,
  )


def log_prob_mixture(q: GaussianMixture, z: Float[Array, "b z"]) -> Float[Array, "b"]:
  """Log q(z) in nats."""
  terms = gaussian_log_prob(z[:, None], q.means, jnp.log(q.variances))
  return jax.nn.logsumexp(jax.nn.log_softmax(q.logits) + terms, axis=-1)


def sample_mixture(keys: Key[Array, "b"], q: GaussianMixture) -> Float[Array, "b z"]:
  """One z per example; its gradient is that of the component it came from."""

  def one(key, logits, means, variances):
    pick, noise = jax.random.split(key)
    k = jax.random.categorical(pick, logits)
    return means[k] + jnp.sqrt(variances[k]) * jax.random.normal(noise, means[k].shape)

  return jax.vmap(one)(keys, *q)


def rate(step: Int[Array, ""], most: float) -> Float[Array, ""]:
  """The rate of EM at an update: `most`, and once that is more, 10 / t.

  Rates have to fall for stepwise EM to settle (Cappe and Moulines, 2009): a mixture that
  knows the last few batches only fits their noise. This one knows the last tenth of all
  updates so far; not more, as encoders move.
  """
  return jnp.minimum(most, 1.0 / (MEMORY * (1.0 + step)))


def expectation(p: Mixture, z: Float[Array, "b z"]) -> Mixture:
  """The E step: means over a batch of r, r z and r z^2.

  In float32 on accelerators too: a variance is the difference of two of them.
  """
  r = jax.nn.softmax(_joint(p, z), axis=-1) / len(z)
  of = partial(jnp.matmul, r.T, precision="highest")
  return Mixture(r.sum(0), of(z), of(z**2))


def maximisation(
  p: Mixture, batch: Mixture, rate: Float[Array, ""] | float, key: Key[Array, ""]
) -> Mixture:
  """The M step: `p` moved by `rate` towards the batch; one component never moves.

  The least used component, once it is dead, takes half of the most used: both keep its
  variance, and move half a standard deviation apart.
  """
  if len(p.weight) == 1:
    return p
  p = jax.tree.map(lambda old, new: old + rate * (new - old), p, batch)
  logw, means, variances = _parameters(p)
  low, high = jnp.argmin(logw), jnp.argmax(logw)
  side = jnp.where(jax.random.bernoulli(key, shape=means[high].shape), 0.25, -0.25)
  away = side * jnp.sqrt(variances[high])
  half = (p.weight[high] + p.weight[low]) / 2

  def split(p):
    for k, mean in ((low, means[high] + away), (high, means[high] - away)):
      p = Mixture(
        p.weight.at[k].set(half),
        p.first.at[k].set(half * mean),
        p.second.at[k].set(half * (variances[high] + mean**2)),
      )
    return p

  dead = p.weight[low] < DEAD / len(p.weight)
  return jax.tree.map(lambda a, b: jnp.where(dead, a, b), split(p), p)
