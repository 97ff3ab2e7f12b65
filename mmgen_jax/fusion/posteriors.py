"""Posteriors q(z | x_S) of any subset S of the modalities, made of experts q(z | x_m).

Each is a pair of functions that take the experts (means and log-variances [m b z]) and a
mask [m b] that says what S is, per example. Given nothing, each is the prior.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mmgen_jax.fusion import model as fuse
from mmgen_jax.multimodal_objectives import mixture_log_prob


class Density(NamedTuple):
  """A family of densities on the line, by location and log of the squared scale.

  Attributes:
    noise: (key, shape) -> samples at location 0 and scale 1.
    log_prob: (z, location, log of the squared scale) -> nats, elementwise.
  """

  noise: Callable[[Array, tuple[int, ...]], Array]
  log_prob: Callable[[Array, Array, Array], Array]

  def draw(self, keys: Key[Array, "b"], mean, logvar) -> Float[Array, "*s b z"]:
    """A reparametrised sample of each; noise by example, from its key."""
    shape = (*mean.shape[:-2], mean.shape[-1])
    noise = jax.vmap(lambda k: self.noise(k, shape), out_axes=-2)(keys)
    return mean + jnp.exp(0.5 * logvar) * noise


def _normal(z, mean, logvar):
  return -0.5 * ((z - mean) ** 2 * jnp.exp(-logvar) + logvar + jnp.log(2 * jnp.pi))


def _laplace(z, mean, logvar):
  return -jnp.abs(z - mean) * jnp.exp(-0.5 * logvar) - 0.5 * logvar - jnp.log(2.0)


DENSITIES = {
  "normal": Density(jax.random.normal, _normal),
  "laplace": Density(jax.random.laplace, _laplace),
}
NORMAL = DENSITIES["normal"]


class Posterior(NamedTuple):
  """q(z | x_S).

  Attributes:
    sample: (keys [b], means, logvars, mask) -> z [b z].
    log_prob: (z [b z], means, logvars, mask) -> nats [b].
  """

  sample: Callable[..., Float[Array, "b z"]]
  log_prob: Callable[..., Float[Array, "b"]]


def product(prior_precision: float = 1.0) -> Posterior:
  """The product of the experts and N(0, 1 / prior_precision): see `fusion.model`."""

  def of(means, logvars, mask):
    return fuse.product_of_experts(
      means, logvars, mask, prior_precision=prior_precision
    )

  def log_prob(z, means, logvars, mask):
    return NORMAL.log_prob(z, *of(means, logvars, mask)).sum(-1)

  return Posterior(lambda keys, *experts: NORMAL.draw(keys, *of(*experts)), log_prob)


def _only(x: Float[Array, "m b z"], mask: Bool[Array, "m b"]) -> Float[Array, "m b z"]:
  """Zero where masked, whatever was there."""
  return jnp.where(mask[..., None], x, 0.0).astype(jnp.float32)


def mixture(density: Density = NORMAL) -> Posterior:
  """The mixture of the experts with equal weights: Shi et al., 2019.

  https://arxiv.org/abs/1911.03393, section 3.
  """

  def sample(keys, means, logvars, mask):
    keys = jax.vmap(jax.random.split)(keys)
    one = fuse.random_expert(keys[:, 0], mask)
    chosen = (_only(x, one).sum(0) for x in (means, logvars))
    return density.draw(keys[:, 1], *chosen)

  def log_prob(z, means, logvars, mask):
    experts = (_only(x, mask) for x in (means, logvars))
    each = density.log_prob(z, *experts).sum(-1)
    zero = jnp.zeros(())
    none = density.log_prob(z, zero, zero).sum(-1)
    return jnp.where(mask.any(0), mixture_log_prob(each, mask), none)

  return Posterior(sample, log_prob)


def mixture_of_products(prior_precision: float = 0.0) -> Posterior:
  """The mixture of all subsets' products: Sutter et al., 2021.

  https://arxiv.org/abs/2105.02470, eq. 6.
  """

  def sample(keys, means, logvars, mask):
    keys = jax.vmap(jax.random.split)(keys)
    q, _ = fuse.mixture_of_products(
      keys[:, 0], means, logvars, mask, prior_precision=prior_precision
    )
    return NORMAL.draw(keys[:, 1], *q)

  def log_prob(z, means, logvars, mask):
    given = fuse.all_subsets(len(mask))[:, :, None] & mask
    q = fuse.products(means, logvars, given, prior_precision=prior_precision)
    each = NORMAL.log_prob(z, *q).sum(-1)
    broad = -jnp.log(prior_precision or 1.0)  # as `product_of_experts` has it
    none = NORMAL.log_prob(z, jnp.zeros(()), broad).sum(-1)
    mixed = mixture_log_prob(each, fuse.possible_subsets(mask))
    return jnp.where(mask.any(0), mixed, none)

  return Posterior(sample, log_prob)


def said(means: Float[Array, "m b z"], logvars, mask) -> tuple[Array, Array]:
  """What each latent's one expert says of it, [b z] each; 0 and 0 where none does.

  For latents that are private to one modality: the others' log-variances are infinite.
  """
  keep = mask[..., None] & jnp.isfinite(logvars)
  mean, logvar = (jnp.where(keep, x, 0.0).sum(0) for x in (means, logvars))
  return mean, logvar


def with_private(shared: Posterior, latent: int, density: Density) -> Posterior:
  """`shared` of the first `latent` latents; the rest as each one's expert says.

  The posterior of Palumbo, Daunhawer and Vogt, "MMVAE+", 2023, eq. 4,
  https://openreview.net/forum?id=sdQGxouELX.
  """
  common = lambda means, logvars: (means[..., :latent], logvars[..., :latent])
  rest = lambda means, logvars: (means[..., latent:], logvars[..., latent:])

  def sample(keys, means, logvars, mask):
    keys = jax.vmap(jax.random.split)(keys)
    z = shared.sample(keys[:, 0], *common(means, logvars), mask)
    w = density.draw(keys[:, 1], *said(*rest(means, logvars), mask))
    return jnp.concatenate([z, w], -1)

  def log_prob(z, means, logvars, mask):
    log_w = density.log_prob(z[..., latent:], *said(*rest(means, logvars), mask))
    log_z = shared.log_prob(z[..., :latent], *common(means, logvars), mask)
    return log_z + log_w.sum(-1)

  return Posterior(sample, log_prob)
