"""Calibration: does a classifier know how often it is wrong? NumPy, from logits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Logits = Float[np.ndarray, "n c"]
Labels = Int[np.ndarray, " n"]


def log_softmax(logits: Logits) -> Logits:
  """Log probabilities, in float64."""
  x = np.asarray(logits, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def nll(logits: Logits, labels: Labels) -> Float[np.ndarray, " n"]:
  """-log p(right class) per example, in nats."""
  return -np.take_along_axis(log_softmax(logits), labels[:, None], 1)[:, 0]


def brier(logits: Logits, labels: Labels) -> Float[np.ndarray, " n"]:
  """sum_c (p_c - [c = label])^2 per example, in [0, 2]: Brier, 1950, eq. 2."""
  p = np.exp(log_softmax(logits))
  return ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)


def reliability(
  logits: Logits, labels: Labels, bins: int = 15
) -> list[tuple[float, float, int]]:
  """(mean confidence, accuracy, count) of bins of equal mass, by confidence.

  Confidence is the probability of the likeliest class. Equal mass and not equal width,
  so that no bin holds a handful of examples: Nixon et al., "Measuring Calibration in Deep
  Learning", 2019, section 3, https://arxiv.org/abs/1904.01685.
  """
  confidence = np.exp(log_softmax(logits).max(1))
  right = np.asarray(logits).argmax(1) == labels
  order = np.argsort(confidence, kind="stable")
  parts: Sequence[np.ndarray] = np.array_split(order, min(bins, len(order)))
  return [(float(confidence[p].mean()), float(right[p].mean()), len(p)) for p in parts]


def calibration_error(logits: Logits, labels: Labels, bins: int = 15) -> float:
  """The mean over examples of |confidence - accuracy| of their bin of `reliability`.

  ECE, Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 3,
  https://arxiv.org/abs/1706.04599, with bins of equal mass. It is biased upwards: a
  calibrated classifier does not get 0 from finitely many examples.
  """
  parts = reliability(logits, labels, bins)
  return sum(abs(c - a) * k for c, a, k in parts) / sum(k for _, _, k in parts)


def fit_temperature(logits: Logits, labels: Labels, steps: int = 60) -> float:
  """T that minimises the NLL of logits / T: Guo et al., 2017, section 4.2.

  The NLL is convex in 1 / T, with slope mean(E_p[logit] - logit of the label): its zero
  is found by bisection of log T in [-5, 5], and the nearer end taken where there is none
  (a classifier that is never wrong).
  """
  x = np.asarray(logits, np.float64)
  chosen = np.take_along_axis(x, labels[:, None], 1)[:, 0]

  def slope(log_t):
    p = np.exp(log_softmax(x / np.exp(log_t)))
    return ((p * x).sum(1) - chosen).mean()

  low, high = -5.0, 5.0
  for _ in range(steps):
    middle = (low + high) / 2
    # Too sure (slope above 0 in 1 / T): T must grow.
    low, high = (middle, high) if slope(middle) > 0 else (low, middle)
  return float(np.exp((low + high) / 2))
