"""Damage of known strength: what a scene or a sensor does to one example, by its key.

Unlike `mmgen_jax.data.augment` this is no variation that a network should not mind but a
loss of what it could know, so it is applied at test too, and there every example always
gets the same: its key follows from its index.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmgen_jax.data.audio import FLOOR_DB
from mmgen_jax.data.modality import PAD, SPECIAL, Modality

Grid = Float[Array, "h w c"]


def blur(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """Gaussian of standard deviation `strength` cells, in both axes; edges renormalised."""
  del key
  for axis in (0, 1):
    at = jnp.arange(x.shape[axis], dtype=jnp.float32)
    scale = jnp.maximum(strength, 1e-3)
    kernel = jnp.exp(-0.5 * ((at[:, None] - at) / scale) ** 2)
    kernel = kernel / kernel.sum(1, keepdims=True)
    x = jnp.moveaxis(jnp.tensordot(kernel, x, (1, axis)), 0, axis)
  return x


def contrast(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """M + (1 - strength) (x - m), m the mean of the example."""
  del key
  return x.mean() + (1.0 - strength) * (x - x.mean())


def occlusion(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """A rectangle of the grid's form and `strength` of its area, anywhere in it: at -1."""
  side = jnp.sqrt(jnp.asarray(strength, jnp.float32))
  inside = []
  for n, start in zip(x.shape[:2], jax.random.uniform(key, (2,)), strict=True):
    first, at = start * (1.0 - side) * n, jnp.arange(n) + 0.5
    inside.append((at > first) & (at < first + side * n))
  return jnp.where((inside[0][:, None] & inside[1][None])[..., None], -1.0, x)


def noise(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """White Gaussian noise whose standard deviation is `strength` of the range; clipped."""
  return jnp.clip(x + 2.0 * strength * jax.random.normal(key, x.shape), -1.0, 1.0)


def snr(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """A log-mel with noise `strength` decibels below the sound's mean power.

  Powers add: 10 log10(10^(dB / 10) + N e), with e ~ Exp(1) per cell, as a periodogram of
  white noise is distributed, and N the mean power over all cells, less `strength`.
  """
  decibels = FLOOR_DB * (1.0 - x) / 2.0
  power = jnp.where(x > -1.0, 10.0 ** (decibels / 10.0), 0.0)
  level = power.mean() * 10.0 ** (-jnp.asarray(strength, jnp.float32) / 10.0)
  power = power + level * jax.random.exponential(key, x.shape)
  decibels = 10.0 * jnp.log10(jnp.maximum(power, 10.0 ** (FLOOR_DB / 10.0)))
  return jnp.clip(1.0 - 2.0 * decibels / FLOOR_DB, -1.0, 1.0)


def dropout(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """Each row, on a log-mel each moment, is lost with probability `strength`: at -1."""
  lost = jax.random.uniform(key, (x.shape[0], 1, 1)) < strength
  return jnp.where(lost, -1.0, x)


def bands(key: Key[Array, ""], x: Grid, strength) -> Grid:
  """Each column, on a log-mel each band, is lost with probability `strength`: at -1."""
  return dropout(key, x.swapaxes(0, 1), strength).swapaxes(0, 1)


def swap(key: Key[Array, ""], tokens: Array, strength, vocabulary: int) -> Array:
  """Each token that is not padding is drawn anew with probability `strength`."""
  which, what = jax.random.split(key)
  lost = jax.random.uniform(which, tokens.shape) < strength
  drawn = jax.random.randint(what, tokens.shape, len(SPECIAL), vocabulary)
  return jnp.where(lost & (tokens != PAD), drawn, tokens)


# In the order in which they are applied: what the scene does, then what a sensor adds.
GRID: dict[str, Callable] = {
  "blur": blur,
  "contrast": contrast,
  "occlusion": occlusion,
  "dropout": dropout,
  "bands": bands,
  "noise": noise,
  "snr": snr,
}
KINDS = {  # of damage that a kind of modality can take
  "image": ("blur", "contrast", "occlusion", "noise"),
  "audio": ("blur", "dropout", "bands", "snr"),
  "text": ("swap",),
}
# Strengths to test at, from weak to strong; without damage comes before them.
SEVERITIES = {
  "blur": (0.5, 1.0, 1.5, 2.0, 3.0),
  "contrast": (0.2, 0.4, 0.6, 0.8, 0.9),
  "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
  "dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
  "bands": (0.1, 0.2, 0.3, 0.4, 0.5),
  "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
  "snr": (20.0, 10.0, 5.0, 0.0, -5.0),
  "swap": (0.1, 0.2, 0.4, 0.6, 0.8),
}


def corrupt(
  key: Key[Array, ""], x: Array, modality: Modality, how: Mapping[str, Array | float]
) -> Array:
  """One example in model space, damaged by `how`: {kind: strength}.

  Raises:
    ValueError: for a kind that this kind of modality cannot take.
  """
  known = KINDS[modality.kind]
  if unknown := sorted(set(how) - set(known)):
    raise ValueError(f"no damage {unknown[0]!r} of {modality.kind}; there are {known}")
  if modality.kind == "text":
    return swap(key, x, how["swap"], len(modality.vocabulary)) if how else x
  grid = x.reshape(*x.shape[:2], -1)
  for i, (kind, damage) in enumerate(GRID.items()):
    if kind in how:
      grid = damage(jax.random.fold_in(key, i), grid, how[kind])
  return grid.reshape(x.shape)
