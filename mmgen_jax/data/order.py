"""Which example comes when, and what is missing of it: pure functions of seeds.

Everything is made of raw words of a counter-based bit generator. NumPy keeps those the
same for ever, but not what `Generator.permutation` makes of them, and a run may be
resumed under another NumPy.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

Seed = int | tuple[int, ...]

# What a stream of random words is for; the first word of every seed below.
_ORDER, _MISSING, _OTHER = 0, 1, 2


def _random_words(purpose: int, seed: Seed, *more: int) -> np.random.Philox:
  words = seed if isinstance(seed, tuple) else (seed, 0)
  if min(words) < 0:
    raise ValueError(f"a seed is made of numbers >= 0, got {seed}")
  return np.random.Philox(np.random.SeedSequence((purpose, *words, *more)))


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: Seed, epoch: int, n: int) -> np.ndarray:
  order = _sorting(_random_words(_ORDER, seed, epoch), n)
  order.flags.writeable = False
  return order


def _sorting(words: np.random.Philox, n: int) -> np.ndarray:
  return np.argsort(words.random_raw(n), kind="stable").astype(np.int32)


def permutation(seed: Seed, n: int) -> Int[np.ndarray, " n"]:
  """A permutation of 0 .. n-1, int32; the same for ever for the same seed."""
  return _sorting(_random_words(_OTHER, seed), n)


def batch_indices(
  seed: Seed, step: int, n: int, batch_size: int
) -> Int[np.ndarray, " b"]:
  """The example indices of one global batch, int32 [batch_size].

  Place i of step s is position p = s * batch_size + i of the stream. Epoch p // n
  visits every example once, in its own order; batches run over the ends of epochs.

  Args:
    seed: one number or several, e.g. (run seed, attempt); `s` is the same as `(s, 0)`.
    step: of the run, from 0.
    n: number of examples.
    batch_size: of the global batch; may be more than n.
  """
  if step < 0 or n < 1 or batch_size < 1:
    raise ValueError(f"no batch of {batch_size} out of {n} examples at step {step}")
  position, end = step * batch_size, (step + 1) * batch_size
  pieces = []
  while position < end:
    epoch, offset = divmod(position, n)
    pieces.append(_epoch_order(seed, epoch, n)[offset : offset + end - position])
    position += len(pieces[-1])
  return np.concatenate(pieces)


def missing_mask(
  seed: Seed,
  n: int,
  names: Sequence[str],
  rate: float,
  always: Sequence[str] = (),
  present: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Bool[np.ndarray, " n"]]:
  """Which modalities each example is left with, {name: bool [n]}.

  Every modality is dropped with probability `rate`, independently; where all would go,
  one of them, any with equal chance, stays. Row i follows from (seed, i) alone.

  Args:
    seed: of the pattern.
    n: number of examples.
    names: modalities, in any order.
    rate: in [0, 1].
    always: modalities that are never dropped.
    present: {name: bool [n]}, what the examples have in the first place.
  """
  if not 0.0 <= rate <= 1.0:
    raise ValueError(f"missing_rate is a probability, got {rate}")
  unknown = sorted(set(always) - set(names))
  if unknown:
    raise ValueError(f"no modality {unknown} to keep always; there are {sorted(names)}")
  names = sorted(names)
  words = _random_words(_MISSING, seed).random_raw(n * len(names))
  chance = (words >> np.uint64(11)).reshape(n, len(names)) * 2.0**-53
  for column, name in enumerate(names):
    if name in always:
      chance[:, column] = 2.0
    if present and name in present:
      chance[~present[name], column] = -1.0
  if n and chance.max(axis=1).min() < 0:
    bare = int(np.argmin(chance.max(axis=1)))
    raise ValueError(f"example {bare} has none of the modalities {names}")
  # Kept where chance >= rate; lowering the bar to the row's best keeps at least that.
  bar = np.minimum(rate, chance.max(axis=1, keepdims=True))
  return {name: chance[:, column] >= bar[:, 0] for column, name in enumerate(names)}
