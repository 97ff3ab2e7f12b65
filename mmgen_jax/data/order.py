"""Which example comes when, and what is missing of it: pure functions of seeds.

Everything is made of raw words of a counter-based bit generator. NumPy keeps those the
same for ever, but not what `Generator.permutation` makes of them, and a run may be
resumed under another NumPy.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

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


def uniform(seed: Seed, n: int) -> Float[np.ndarray, " n"]:
  """Numbers in [0, 1), the first ones the same however many there are, for ever."""
  return (_random_words(_OTHER, seed).random_raw(n) >> np.uint64(11)) * 2.0**-53


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
  rate: float | Mapping[str, float | np.ndarray],
  always: Sequence[str] = (),
  present: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Bool[np.ndarray, " n"]]:
  """Which modalities each example is left with, {name: bool [n]}.

  Every modality is dropped with its probability, independently; where all would go, one
  of them stays: any with equal chance, where all rates are equal. Row i follows from
  (seed, i) and its rates alone.

  Args:
    seed: of the pattern.
    n: number of examples.
    names: modalities, in any order.
    rate: in [0, 1]; or of each modality (0 for those not named), one number or one per
      example [n].
    always: modalities that are never dropped.
    present: {name: bool [n]}, what the examples have in the first place.
  """
  names = sorted(names)
  by_name = rate if isinstance(rate, Mapping) else dict.fromkeys(names, rate)
  unknown = sorted((set(always) | set(by_name)) - set(names))
  if unknown:
    raise ValueError(f"no modality {unknown} to keep or drop; there are {names}")
  rates = np.zeros((n, len(names)))
  for column, name in enumerate(names):
    rates[:, column] = by_name.get(name, 0.0)
  if n and not (rates.min() >= 0.0 and rates.max() <= 1.0):
    raise ValueError(f"missing_rate is a probability, got {rate}")
  words = _random_words(_MISSING, seed).random_raw(n * len(names))
  # Kept where chance >= 1; what is dropped has a chance that is uniform in [0, 1).
  chance = (words >> np.uint64(11)).reshape(n, len(names)) * 2.0**-53
  chance = np.where(rates > 0, chance / np.where(rates > 0, rates, 1.0), 1.0)
  for column, name in enumerate(names):
    if name in always:
      chance[:, column] = np.inf
    if present and name in present:
      chance[~np.asarray(present[name], bool), column] = -1.0
  best = chance.max(axis=1, keepdims=True)
  if n and best.min() < 0:
    bare = int(np.argmin(best))
    raise ValueError(f"example {bare} has none of the modalities {names}")
  # Lowering the bar to the row's best keeps at least that.
  bar = np.minimum(1.0, best)
  return {name: chance[:, column] >= bar[:, 0] for column, name in enumerate(names)}


def rates_by_label(
  rate: float | Mapping[str, float | Sequence[float]], labels: np.ndarray | None
) -> float | dict[str, float | np.ndarray]:
  """What `missing_mask` takes, of rates that may depend on an example's label.

  Args:
    rate: one number: missing completely at random; {modality: number}: by modality;
      {modality: one number per class}: by modality and label.
    labels: int [n], the classes.

  Raises:
    ValueError: for rates per class without labels, or of too few classes.
  """
  if not isinstance(rate, Mapping):
    return rate
  out = {}
  for name, value in rate.items():
    out[name] = value
    if isinstance(value, Sequence):
      if labels is None:
        raise ValueError(
          f"missing_rate of {name!r} is by class: name data.missing_label"
        )
      if labels.min() < 0 or labels.max() >= len(value):
        raise ValueError(
          f"missing_rate of {name!r} has {len(value)} classes, labels reach from"
          f" {labels.min()} to {labels.max()}"
        )
      out[name] = np.asarray(value, np.float64)[labels]
  return out
