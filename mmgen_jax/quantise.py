"""Quantisers: vectors to codes and back, as pure functions of arrays.

A code book lives beside the networks in `State.params`; it moves by averages of what is
assigned to it, not by gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def straight_through(value: Array, to: Array) -> Array:
  """`to` on the way forward; gradients pass as if it were `value`.

  Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic
  Neurons", 2013, https://arxiv.org/abs/1308.3432.
  """
  return value + jax.lax.stop_gradient(to - value)


def init_codebook(key: Key[Array, ""], codes: int, size: int) -> dict[str, Array]:
  """Normal codes, each with one assignment: {"count" [k], "total" [k d]}.

  A code is the mean of what was assigned to it: total / count.
  """
  return {
    "count": jnp.ones(codes),
    "total": jax.random.normal(key, (codes, size)),
  }


def codes_of(codebook: dict[str, Array]) -> Float[Array, "k d"]:
  """The codes of a code book."""
  return codebook["total"] / codebook["count"][:, None]


def nearest(
  codes: Float[Array, "k d"], values: Float[Array, "*b d"]
) -> Int[Array, "*b"]:
  """Index of the nearest code: van den Oord et al., "Neural Discrete Representation
  Learning", 2017, eq. 1, https://arxiv.org/abs/1711.00937.
  """
  half = 0.5 * jnp.square(codes).sum(-1)
  return jnp.argmin(half - values @ codes.T, -1).astype(jnp.int32)


def assignments(
  ids: Int[Array, "b *n"], values: Float[Array, "b *n d"], codes: int
) -> dict[str, Array]:
  """{"count" [k], "total" [k d]}: how often, and of what sum, per example.

  Means over examples, so that means over microbatches and devices are those of the
  global batch.
  """
  one_hot = jax.nn.one_hot(ids.reshape(-1), codes)
  flat = values.reshape(-1, values.shape[-1])
  total = jnp.einsum("nk,nd->kd", one_hot, flat)
  return {"count": one_hot.sum(0) / len(ids), "total": total / len(ids)}


def move(
  codebook: dict[str, Array], batch: dict[str, Array], decay: float
) -> dict[str, Array]:
  """Exponential averages of counts and totals: their ratio is an online k-means.

  Van den Oord et al., 2017, appendix A.1, eq. 6-8; Razavi, van den Oord and Vinyals,
  "Generating Diverse High-Fidelity Images with VQ-VAE-2", 2019, eq. 3,
  https://arxiv.org/abs/1906.00446. A code that nothing is assigned to stays where it is,
  as count and total shrink together, down to a count of 1e-6.
  """
  mix = lambda old, new: decay * old + (1.0 - decay) * new
  count, total = (mix(codebook[name], batch[name]) for name in ("count", "total"))
  least = jnp.maximum(count, 1e-6)
  return {"count": least, "total": total * (least / jnp.maximum(count, 1e-30))[:, None]}


def shares(codebook: dict[str, Array]) -> Float[Array, "k"]:
  """Of all assignments, by code."""
  return codebook["count"] / codebook["count"].sum()


def revive(
  codebook: dict[str, Array],
  key: Key[Array, ""],
  *,
  threshold: float,
  noise: float = 0.01,
) -> dict[str, Array]:
  """Dead codes move beside live ones, drawn by their counts, and share these counts.

  Dead is a share below `threshold` / k. A live code is split, as by Linde, Buzo and
  Gray, "An Algorithm for Vector Quantizer Design", 1980
  (https://doi.org/10.1109/TCOM.1980.1094577), by `noise` times the codes' standard
  deviation: so nothing is asked of a batch, and the result is the same on every device
  for the same key. Counts add up to what they did before, but for those of the dead.
  """
  count, codes = codebook["count"], codes_of(codebook)
  k = len(count)
  dead = shares(codebook) < threshold / k
  live = jnp.where(dead, 0.0, count)
  pick, jitter = jax.random.split(key)
  parent = jax.random.categorical(pick, jnp.log(live), shape=(k,))
  parent = jnp.where(dead, parent, jnp.arange(k))
  heirs = jnp.zeros(k).at[parent].add(1.0)
  spread = noise * codes.std(0) * jax.random.normal(jitter, codes.shape)
  codes = codes[parent] + jnp.where(dead[:, None], spread, 0.0)
  count = live[parent] / heirs[parent]
  return {"count": count, "total": codes * count[:, None]}


def perplexity(count: Float[Array, "k"]) -> Float[Array, ""]:
  """Exp of the entropy of the codes' shares: k if all are used alike, 1 if one is."""
  p = count / jnp.maximum(count.sum(), 1e-12)
  return jnp.exp(-(p * jnp.log(jnp.maximum(p, 1e-12))).sum())


class Fsq(NamedTuple):
  """Finite scalar quantisation: each channel is rounded to one of a few levels.

  Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023, section 3,
  https://arxiv.org/abs/2309.15505.

  Attributes:
    levels: of each channel, at least 3; their product is the number of codes.
  """

  levels: Sequence[int]

  @property
  def codes(self) -> int:
    """How many there are."""
    return int(np.prod(self.levels))

  def bound(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Squashed so that rounding gives one of the levels, and 0 stays 0.

    Integers from -(L // 2) to (L - 1) // 2. An even number of levels is not symmetric
    about 0: the curve is moved by half a level (the paper moves it by tan where the
    inverse of tanh keeps 0 exactly).
    """
    levels = np.asarray(self.levels, np.float32)
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    return jnp.tanh(z + shift) * half - offset

  def quantise(self, z: Float[Array, "*b d"]) -> tuple[Array, Float[Array, "*b d"]]:
    """(ids [...], values in [-1, 1] [... d] with straight-through gradients)."""
    bounded = self.bound(z)
    whole = straight_through(bounded, jnp.round(bounded))
    middle = np.asarray(self.levels) // 2
    digits = jax.lax.stop_gradient(whole).astype(jnp.int32) + middle
    ids = (digits * self._places()).sum(-1).astype(jnp.int32)
    return ids, whole / middle

  def lookup(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    """The values of codes."""
    levels = np.asarray(self.levels)
    digits = (ids[..., None] // self._places()) % levels
    return (digits - levels // 2) / (levels // 2).astype(np.float32)

  def _places(self) -> np.ndarray:
    """What one step of each channel's digit is worth."""
    return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
