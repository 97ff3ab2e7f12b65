"""What a classifier's reading of samples says: modes, their balance, their sharpness.

StackedMNIST: three digits in the channels of one image make 1000 modes (Metz et al.,
"Unrolled Generative Adversarial Networks", 2017, https://arxiv.org/abs/1611.02163; Lin
et al., "PacGAN", 2018, https://arxiv.org/abs/1712.04086, with 26,000 samples).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Modes(NamedTuple):
  """How samples spread over the modes.

  Attributes:
    count: modes with at least one sample.
    total: modes that there are.
    reverse_kl: KL(samples || reference) in nats.
  """

  count: int
  total: int
  reverse_kl: float


def stacked_mode(
  digits: Int[np.ndarray, "n c"] | Sequence, classes: int = 10
) -> np.ndarray:
  """The mode [n] of each row of classes: its digits read as a number."""
  digits = np.asarray(digits)
  if digits.ndim != 2 or digits.min(initial=0) < 0 or digits.max(initial=0) >= classes:
    raise ValueError(f"digits must have shape [n, c] and be in [0, {classes})")
  return digits @ classes ** np.arange(digits.shape[1])[::-1]


def _reference(reference, total: int) -> np.ndarray:
  if reference is None:
    return np.full(total, 1.0 / total)
  q = np.asarray(reference, np.float64)
  if q.shape != (total,) or (q < 0).any() or q.sum() <= 0:
    raise ValueError(f"reference must have shape [{total}], not below 0, not all 0")
  return q / q.sum()


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
  """The sum of p log(p / q) over the last axis, 0 log 0 = 0."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(-1)


def modes(
  labels: Int[np.ndarray, " n"],
  total: int,
  reference: Float[np.ndarray, " k"] | None = None,
) -> Modes:
  """Modes that samples hit, and KL(their histogram || reference), uniform by default.

  Raises:
    ValueError: if there are no labels, or one is not in [0, total).
  """
  labels = np.asarray(labels)
  if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= total:
    raise ValueError(f"labels must have shape [n > 0] and be in [0, {total})")
  counts = np.bincount(labels, minlength=total)
  kl = _kl(counts / len(labels), _reference(reference, total))
  return Modes(int((counts > 0).sum()), total, float(kl))


def kl_floor(
  samples: int,
  total: int,
  reference: Float[np.ndarray, " k"] | None = None,
  sampler: Float[np.ndarray, " k"] | None = None,
  *,
  draws: int = 200,
  seed: int = 0,
) -> tuple[float, float]:
  """(mean, standard deviation) of `reverse_kl` for a perfect sampler of `samples`.

  Not zero, since a finite histogram is never flat: about (total - 1) / (2 samples).
  Report it beside every reverse KL. `sampler` is the distribution of the data, where it
  is not `reference`.
  """
  q = _reference(reference, total)
  p = q if sampler is None else _reference(sampler, total)
  counts = np.random.default_rng(seed).multinomial(samples, p, draws)
  values = _kl(counts / samples, q)
  return float(values.mean()), float(values.std(ddof=1))


def inception_score(
  probabilities: Float[np.ndarray, "n k"], *, splits: int = 10
) -> tuple[float, float]:
  """(mean, standard deviation) over splits of exp(E KL(p(y | x) || p(y))).

  Salimans et al., "Improved Techniques for Training GANs", 2016,
  https://arxiv.org/abs/1606.03498. From 1 to the number of classes. Only with the
  Inception network of that paper is it the Inception score: name the classifier.

  Raises:
    ValueError: if rows are no distributions, or there are fewer than `splits`.
  """
  p = np.asarray(probabilities, np.float64)
  if p.ndim != 2 or (p < 0).any() or not np.allclose(p.sum(-1), 1.0, atol=1e-3):
    raise ValueError("probabilities must have shape [n, k], rows that sum to 1")
  if not 1 <= splits <= len(p):
    raise ValueError(f"splits must be from 1 to {len(p)}, got {splits}")
  parts = np.array_split(p, splits)
  scores = [np.exp(_kl(part, part.mean(0)).mean()) for part in parts]
  return float(np.mean(scores)), float(np.std(scores))
