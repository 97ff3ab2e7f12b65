"""Model fusion: several experts q(z | x_m) into one posterior.

Experts are diagonal Gaussians stacked on a first axis [m b z]. Which of them count is a
boolean mask [m b], per example: missing data and subsets are values, never branches, so
every pattern runs in one compiled step. What a masked expert says changes nothing, and
no gradient comes from it, not even where it holds NaN.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Gaussian = tuple[Float[Array, "b z"], Float[Array, "b z"]]


def precisions(
  means: Float[Array, "m b z"], logvars: Float[Array, "m b z"], mask: Bool[Array, "m b"]
) -> tuple[Float[Array, "m b z"], Float[Array, "m b z"]]:
  """T_m = exp -logvar and T_m mu_m of each expert; zero for those that are masked.

  An expert with an infinite log-variance says nothing.
  """
  keep = mask[..., None]
  # Values are replaced before and after exp, so that masked NaN or inf leaves no trace
  # in the gradient either.
  means = jnp.where(keep, means, 0.0).astype(jnp.float32)
  logvars = jnp.where(keep, logvars, 0.0).astype(jnp.float32)
  precision = jnp.where(keep, jnp.exp(-logvars), 0.0)
  return precision, precision * means


def pool(
  means: Float[Array, "m b z"], logvars: Float[Array, "m b z"], mask: Bool[Array, "m b"]
) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
  """sum_m T_m and sum_m T_m mu_m over the experts that `mask` keeps: `precisions`."""
  precision, weighted = precisions(means, logvars, mask)
  return precision.sum(0), weighted.sum(0)


def _normalised(precision: Array, weighted: Array) -> Gaussian:
  total = jnp.where(precision > 0, precision, 1.0)
  return weighted / total, -jnp.log(total)


def product_of_experts(
  means: Float[Array, "m b z"],
  logvars: Float[Array, "m b z"],
  mask: Bool[Array, "m b"],
  *,
  prior_precision: float = 1.0,
) -> Gaussian:
  """Mean and log-variance [b z] of the product of the experts that `mask` keeps.

  Precision T = t_0 + sum_m T_m and mean = sum_m T_m mu_m / T, where t_0 is the precision
  of a N(0, 1 / t_0) prior expert. Wu and Goodman, "Multimodal Generative Models for
  Scalable Weakly-Supervised Learning", 2018, eq. 3, https://arxiv.org/abs/1802.05335.

  Where no expert says anything the product is the prior expert (and with
  `prior_precision=0`, where that is not defined, N(0, I)).
  """
  precision, weighted = pool(means, logvars, mask)
  return _normalised(precision + prior_precision, weighted)


def products(
  means: Float[Array, "m b z"],
  logvars: Float[Array, "m b z"],
  given: Bool[Array, "s m b"],
  *,
  prior_precision: float = 0.0,
) -> tuple[Float[Array, "s b z"], Float[Array, "s b z"]]:
  """`product_of_experts` of many subsets of one example's experts, in one einsum."""
  everything = precisions(means, logvars, given.any(0))
  chosen = given.astype(jnp.float32)
  precision, weighted = (
    jnp.einsum("smb,mbz->sbz", chosen, x, precision="highest") for x in everything
  )
  return _normalised(precision + prior_precision, weighted)


def all_subsets(m: int) -> Bool[Array, "k m"]:
  """The 2^m - 1 non-empty subsets of m modalities, as rows."""
  index = jnp.arange(1, 2**m)
  return (index[:, None] >> jnp.arange(m)) % 2 == 1


def possible_subsets(present: Bool[Array, "m b"]) -> Bool[Array, "k b"]:
  """Which of `all_subsets` are subsets of what an example has."""
  absent = (~present.astype(bool)).astype(jnp.float32)
  return (
    jnp.einsum("km,mb->kb", all_subsets(len(present)).astype(jnp.float32), absent) == 0
  )


def random_subset(
  keys: Key[Array, "b"], present: Bool[Array, "m b"], *, power: float = 0.0
) -> Bool[Array, "m b"]:
  """A non-empty subset of each example's present modalities, p(subset) ~ size^-power.

  Uniform by default; with a large `power` nearly always one modality alone. An example
  with nothing present gets the empty subset.
  """
  subsets = all_subsets(len(present))  # [k m]
  weight = -power * jnp.log(subsets.sum(1, keepdims=True))
  logits = jnp.where(possible_subsets(present), weight, -1e9).T
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  return subsets[choice].T & present.astype(bool)


def stand_ins(
  part: Bool[Array, "m b"], present: Bool[Array, "m b"], kinds: Sequence
) -> Float[Array, "m b"]:
  """How much each modality counts as a target of what a part of an example tells.

  Those in the part: 1. Of the others, those that are there also stand for those of their
  kind that are not: each counts (modalities of its kind outside the part) / (those of
  them that are there), 1 in a complete example. Where a kind has some outside the part
  and none of them is there, those of it in the part do not count either. Otherwise
  missing data take targets from what a part has to tell of others and leave it those of
  itself. Without knowing why data are missing: where rates are known, 1 / rate would be
  exact (Horvitz and Thompson, "A generalization of sampling without replacement from a
  finite universe", 1952).

  Args:
    part: what is given.
    present: what the example has, `part` in it.
    kinds: of each modality, anything; equal where one can stand for another. A word
      cannot for a sound: their likelihoods are of other sizes.
  """
  alike = jnp.array([[a == b for b in kinds] for a in kinds], jnp.float32)
  part, present = part.astype(bool), present.astype(bool)
  outside = present & ~part
  count = lambda which: alike @ which.astype(jnp.float32)
  wanted, there = count(~part), count(outside)
  itself = part & present & ((there > 0) | (wanted == 0))
  return jnp.where(outside, wanted / jnp.maximum(there, 1.0), itself)


def beside(part: Bool[Array, "m b"], present: Bool[Array, "m b"]) -> Float[Array, "b"]:
  """How often what an example has beside a part counts as what it could have.

  (Modalities outside the part) / (those of them that are there): 1 in a complete
  example, 0 where nothing is beside the part.
  """
  part, present = part.astype(bool), present.astype(bool)
  there = (present & ~part).sum(0)
  return jnp.where(there > 0, (~part).sum(0) / jnp.maximum(there, 1), 0.0)


def random_expert(
  keys: Key[Array, "b"], present: Bool[Array, "m b"]
) -> Bool[Array, "m b"]:
  """One of each example's present modalities, any with equal chance, as a mask."""
  present = present.astype(bool)
  logits = jnp.where(present, 0.0, -1e9).T
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  return (jnp.arange(len(present))[:, None] == choice) & present


def mixture_of_products(
  keys: Key[Array, "b"],
  means: Float[Array, "m b z"],
  logvars: Float[Array, "m b z"],
  present: Bool[Array, "m b"],
  *,
  prior_precision: float = 1.0,
) -> tuple[Gaussian, Bool[Array, "m b"]]:
  """One component of the mixture of products of experts, and the subset it came from.

  q(z | x) is the uniform mixture, over the non-empty subsets of the modalities that are
  present, of the product of the subset's experts. Sutter, Daunhawer and Vogt,
  "Generalized Multimodal ELBO", 2021, eq. 6, https://arxiv.org/abs/2105.02470. The
  component is drawn per example, at random and not by its place in the batch.
  """
  subset = random_subset(keys, present)
  product = product_of_experts(means, logvars, subset, prior_precision=prior_precision)
  return product, subset


def sample_gaussian(keys: Key[Array, "b"], q: Gaussian) -> Float[Array, "b z"]:
  """A reparametrised sample of each example's Gaussian."""
  mean, logvar = q
  noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
  return mean + jnp.exp(0.5 * logvar) * noise


def precision_shares(
  logvars: Float[Array, "m b z"], mask: Bool[Array, "m b"], *, prior_precision=1.0
) -> Float[Array, "m b"]:
  """How much each expert decided: its share of the total precision, mean over z.

  Shares of the experts and of the prior expert sum to one; masked experts have 0.
  """
  keep = mask[..., None]
  precision = jnp.where(keep, jnp.exp(-jnp.where(keep, logvars, 0.0)), 0.0)
  return (precision / (precision.sum(0) + prior_precision)).mean(-1)
