"""Bootstrap intervals: how far a mean over examples would move with other examples."""

import numpy as np
from jaxtyping import Bool, Float, Int

Values = Float[np.ndarray, " n"] | Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]


def _resampled_means(values, resamples: int, rng) -> np.ndarray:
  """Means of `resamples` draws with replacement, [resamples]."""
  n = len(values)
  if values.dtype == bool:  # a resample's count of hits is binomial: no need to draw it
    return rng.binomial(n, values.mean(), resamples) / n
  rows = max(1, 2**22 // n)  # bounded memory
  starts = range(0, resamples, rows)
  draw = lambda k: values[rng.integers(0, n, (k, n))].mean(1)
  return np.concatenate([draw(min(rows, resamples - s)) for s in starts])


def mean_interval(
  values: Values,
  groups: Int[np.ndarray, " n"] | None = None,
  *,
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> tuple[float, float, float]:
  """The mean and its percentile bootstrap interval: (mean, low, high).

  Efron and Tibshirani (1993), chapter 13.

  Args:
    values: one number per example.
    groups: one integer per example; then the mean is the macro one (of the groups' own
      means), and examples are drawn within their group.
    level: how often such intervals hold the true mean.
    resamples: how many bootstrap draws.
    seed: of the draws.

  Raises:
    ValueError: if there is no example, or `level` is not in (0, 1).
  """
  values = np.asarray(values)
  if values.ndim != 1 or not len(values):
    raise ValueError(f"values must have shape [n] with n > 0, got {values.shape}")
  if not 0.0 < level < 1.0:
    raise ValueError(f"level must be in (0, 1), got {level}")
  rng = np.random.default_rng(seed)
  if groups is None:
    parts = [values]
  else:
    parts = [values[groups == g] for g in np.unique(groups)]
  means = np.mean([_resampled_means(p, resamples, rng) for p in parts], axis=0)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(np.mean([p.mean() for p in parts])), float(low), float(high)
