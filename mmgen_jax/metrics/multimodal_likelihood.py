"""Log p(x_A) and log p(x_B | x_A) of any modalities, by importance sampling.

Every marginal is the K-sample bound of `metrics.likelihood` with a proposal that has
seen just the modalities in question; a conditional is the difference of two,

  log p(x_B | x_A) = log p(x_A, x_B) - log p(x_A),

each with its own proposal: one alone, the posterior of everything say, would be far from
the other's posterior. Both are bounds from below, so their difference is none; it tends
to the truth as K grows. Samples of an example are averaged over their own axis (public
code of two papers views [K b] weights as [b K], and averages over other data points).
"""

import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import Modality, to_model
from mmgen_jax.metrics.likelihood import Bounds, importance_bounds
from mmgen_jax.steps import STEPS
from mmgen_jax.steps.inputs import blank_missing
from mmgen_jax.steps.latents import Latents

Subset = tuple[str, ...]


def make_log_likelihood(
  latents: Latents,
  modalities: Mapping[str, Modality],
  *,
  samples: int,
  chunk: int,
  defensive: float = 0.1,
) -> Callable[..., Bounds]:
  """`f(params, batch, subset, key) -> Bounds` on log p(x_S) of each example.

  `subset` (bool [m], in sorted order of names) is a value: one compilation serves all.
  Of an example that lacks some of S, what it has counts. Of nothing, log p is 0.

  Args:
    latents: the model's distributions.
    modalities: of the data.
    samples: K, a multiple of `chunk`.
    chunk: how many samples are in memory at once.
    defensive: this part of the samples comes from the prior, so that no weight is more
      than p(x | z) / `defensive`, however sure of itself the posterior is (Hesterberg,
      "Weighted Average Importance Sampling and Defensive Mixture Distributions", 1995).
  """
  if not 0.0 <= defensive <= 1.0:
    raise ValueError(f"defensive is a share, got {defensive}")
  tiny = 1e-30  # of a share that is zero, whose log is asked for

  def bounds(params, batch, subset: Bool[Array, "m"], key: Key[Array, ""]) -> Bounds:
    values, mask = blank_missing(batch, modalities)
    mask &= subset[:, None]
    b = mask.shape[1]
    experts = latents.encode(params, values)
    tiled = {name: jnp.repeat(x, chunk, axis=0) for name, x in values.items()}

    def draw(keys: Key[Array, "b"]):
      keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
      z = latents.sample(params, experts, mask, keys[:, 0])
      wide = latents.sample(params, experts, jnp.zeros_like(mask), keys[:, 1])
      pick = lambda key: jax.random.bernoulli(key, defensive)
      return jnp.where(jax.vmap(pick)(keys[:, 2])[:, None], wide, z)

    def log_w(keys: Key[Array, "b"]) -> Float[Array, "c b"]:
      each = jax.vmap(lambda k: jax.random.split(k, chunk), out_axes=1)(keys)
      z = jax.vmap(draw)(each)  # [c b z]
      log_prior = jax.vmap(lambda z: latents.log_prior(params, z))(z)
      log_q = jax.vmap(lambda z: latents.log_q(params, experts, mask, z))(z)
      log_q = jnp.logaddexp(
        math.log(max(1.0 - defensive, tiny)) + log_q,
        math.log(max(defensive, tiny)) + log_prior,
      )
      flat = jnp.swapaxes(z, 0, 1).reshape(b * chunk, -1)  # an example's side by side
      log_px = latents.log_px(tiled, latents.decode(params, flat))
      log_px = jnp.swapaxes(log_px.reshape(-1, b, chunk), 1, 2)  # [m c b]
      log_px = jnp.where(mask[:, None], log_px, 0.0).sum(0)
      return log_px + log_prior - log_q

    return importance_bounds(
      log_w, jax.random.split(key, b), samples=samples, chunk=chunk
    )

  return bounds


def conditional(joint: Bounds, given: Bounds) -> Float[Array, "b"]:
  """Log p(x_B | x_A) of the bounds on log p(x_A, x_B) and log p(x_A)."""
  return joint.log_px - given.log_px


def check(family: str) -> None:
  """Raises ValueError if a family has no importance-sampled likelihood."""
  if not {"make_latents", "make_log_weights"} & set(dir(STEPS[family])):
    raise ValueError(
      f"family {family!r} has no importance-sampled likelihood: eval.likelihood.samples"
      " must be 0"
    )


def make_bounds(
  config, modalities: Mapping[str, Modality], *, samples: int, chunk: int
) -> Callable[..., Bounds]:
  """`bounds(params, batch, subset, key) -> Bounds` of a config's model, compiled.

  Of a model of one modality `subset` is of no account: its own is meant, binarised once
  where the config says so.

  Raises:
    ValueError: if the family has no importance-sampled likelihood.
  """
  check(config.family)
  family = STEPS[config.family]
  options = dict(config.get("compiler_options", {}))
  if hasattr(family, "make_latents"):
    latents = family.make_latents(config, modalities)
    found = make_log_likelihood(latents, modalities, samples=samples, chunk=chunk)
    return jax.jit(found, compiler_options=options)
  prepare = family.make_log_weights(config, modalities)

  def bounds(params, batch, subset: Bool[Array, "m"], key: Key[Array, ""]) -> Bounds:
    del subset
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(batch["index"])))
    weigh = prepare(params, batch, keys[:, 0])
    log_w = lambda keys: weigh(keys, chunk)
    return importance_bounds(log_w, keys[:, 1], samples=samples, chunk=chunk)

  return jax.jit(bounds, compiler_options=options)


def table(
  config,
  params,
  examples: Examples,
  indices,
  subsets: Iterable[Subset],
  *,
  samples: int,
  chunk: int,
  batch_size: int = 50,
  seed: int = 0,
) -> dict[Subset, Bounds]:
  """`Bounds` [n] of every subset of modalities, of a config's model.

  Raises:
    ValueError: as `make_bounds`; for a subset of other modalities, or that is a string.
  """
  modalities, names = examples.modalities, sorted(examples.modalities)
  subsets = list(subsets)
  for subset in subsets:
    if isinstance(subset, str) or not set(subset) <= set(names):
      raise ValueError(f"subsets are tuples of {names}, got {subset!r}")
  bounds = make_bounds(config, modalities, samples=samples, chunk=chunk)
  indices, parts = np.asarray(indices), {subset: [] for subset in subsets}
  for first in range(0, len(indices), batch_size):
    part = indices[first : first + batch_size]
    rows = examples.rows(np.resize(part, batch_size))  # repeats; cut off below
    batch = rows | {name: to_model(modalities[name], rows[name]) for name in names}
    for subset, found in parts.items():
      given = np.array([name in subset for name in names])
      # The same noise for every subset: differences are less noisy than their parts.
      key = jax.random.fold_in(jax.random.key(seed), first)
      made = jax.device_get(bounds(params, batch, given, key))
      found.append(Bounds(*(x[: len(part)] for x in made)))
  join = lambda *x: np.concatenate(x)
  return {subset: jax.tree.map(join, *found) for subset, found in parts.items()}
