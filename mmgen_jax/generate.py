"""Everything a trained model makes of held-out examples, for every subset of inputs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from mmgen_jax.data.examples import Examples
from mmgen_jax.data.modality import PAD, Modality, to_model
from mmgen_jax.parallel import AXIS, make_mesh
from mmgen_jax.steps import STEPS

Subset = tuple[str, ...]


class Samples(NamedTuple):
  """What was generated from n examples, by each of s subsets of their modalities.

  Attributes:
    subsets: what was given; () is the prior.
    values: {modality: stored form [s, n, ...]}.
    errors: {modality: {"mse", "mae" or "token_accuracy": float32 [s, n]}} against the
      example's own value, in model space.
    losses: {name: float32 [k]} of the evaluation step; of a model of one modality, only
      of the examples that have it.
  """

  subsets: list[Subset]
  values: dict[str, np.ndarray]
  errors: dict[str, dict[str, np.ndarray]]
  losses: dict[str, np.ndarray]


def errors_of(
  modality: Modality, real: Array, made: Array
) -> dict[str, Float[Array, "b"]]:
  """Per example: mean squared and absolute error, or the share of right tokens.

  Tokens count where either text has one, so a text that goes on too long loses.
  """
  axes = tuple(range(1, real.ndim))
  if modality.kind == "text":
    counts = (real != PAD) | (made != PAD)
    right = ((real == made) & counts).sum(axes) / jnp.maximum(counts.sum(axes), 1)
    return {"token_accuracy": right.astype(jnp.float32)}
  difference = made - real
  return {"mse": (difference**2).mean(axes), "mae": jnp.abs(difference).mean(axes)}


def _quantise(modality: Modality, value: Array) -> Array:
  """`to_stored`, inside jit: a quarter of the bytes to fetch."""
  if modality.kind == "text":
    return value.astype(jnp.int32)
  return jnp.clip(jnp.rint((value + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def make_sampler(
  config, modalities: Mapping[str, Modality], *, batch_size: int
) -> Callable[..., Samples]:
  """`sampler(params, examples, indices, seed, say=..., judged=...) -> Samples`.

  One compiled function makes every modality from every subset at once, in batches of
  one size over this process's devices. What is drawn at random follows from the seed,
  the position in `indices` and the size of a batch: `batch_size`, rounded up to a
  multiple of the devices.

  `judged` are the parameters that the evaluation step sees; None: those of generation.
  """
  family: Any = STEPS[config.family]
  generate = family.make_generate(config, modalities)
  eval_step = family.make_eval_step(config, modalities)
  subsets = [tuple(s) for s in family.subsets(config, modalities)]
  names, modelled = sorted(modalities), config.model.get("modality", "")
  givens = np.array([[name in s for name in names] for s in subsets], bool)
  mesh = make_mesh(jax.local_devices())
  batch_size = -(-batch_size // mesh.size) * mesh.size
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

  def run(params, judged, rows, key):
    batch = rows | {name: to_model(modalities[name], rows[name]) for name in names}
    key, loss_key = jax.random.split(key)
    keys = jax.random.split(key, len(subsets))
    # vmap over `given` alone: what does not depend on it, the encoders, runs once.
    each = jax.vmap(generate, in_axes=(None, None, 0, 0))
    made = each(params, batch, givens, keys)
    errors = {
      name: jax.vmap(lambda x, name=name: errors_of(modalities[name], batch[name], x))(
        x
      )
      for name, x in made.items()
    }
    stored = {name: _quantise(modalities[name], x) for name, x in made.items()}
    seen = params if judged is None else judged
    return stored, errors, eval_step(seen, batch, loss_key)

  compiled = jax.jit(run)

  def sampler(
    params,
    examples: Examples,
    indices,
    seed: int,
    say=lambda message: None,
    judged=None,
  ):
    params, judged = jax.device_put((params, judged), whole)
    key = jax.random.key(seed)
    indices = np.asarray(indices)
    parts, pending = [], None
    for first in range(0, len(indices), batch_size):
      part = indices[first : first + batch_size]
      rows = examples.rows(np.resize(part, batch_size))  # repeats; cut off below
      rows, now = jax.device_put(rows, split), jax.random.fold_in(key, first)
      made = compiled(params, judged, rows, now)
      if pending is not None:  # fetched while the next batch computes
        parts.append(_fetch(*pending))
        say(f"generated from {first} of {len(indices)} examples")
      pending = made, len(part)
    assert pending is not None, "no examples"
    parts.append(_fetch(*pending))
    join = lambda axis: lambda *x: np.concatenate(x, axis)
    values = jax.tree.map(join(1), *[p[0] for p in parts])
    errors = jax.tree.map(join(1), *[p[1] for p in parts])
    losses = jax.tree.map(join(0), *[p[2] for p in parts])
    if modelled:
      there = examples.present[modelled][indices]
      losses = {name: x[there] for name, x in losses.items()}
    return Samples(subsets, values, errors, losses)

  return sampler


def _fetch(made, count: int):
  values, errors, losses = jax.device_get(made)
  cut = lambda x: x[:, :count]
  return (
    jax.tree.map(cut, values),
    jax.tree.map(cut, errors),
    {name: x[:count] for name, x in losses.items()},
  )


def showcase(classes: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
  """Positions of `count` examples to show: the first ones, each class in its turn."""
  turn = np.zeros(len(classes), np.int32)
  for value in np.unique(classes):
    turn[classes == value] = np.arange((classes == value).sum())
  return np.lexsort((classes, turn))[:count]
