"""Retrieval: is what belongs to a query near the top? NumPy, from similarities.

Ties are not broken in anyone's favour: a target that shares its score with k others is
at each of their ranks with equal chance, and what is returned is the expectation.
"""

import numpy as np
from jaxtyping import Bool, Float

Scores = Float[np.ndarray, "q c"]


def rank_bounds(
  scores: Scores, relevant: Bool[np.ndarray, "q c"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of each query's best relevant candidates: (above, tied, relevant among the tied).

  `above`: candidates that score more; `tied`: those that score the same as they, they
  included. All int [q].

  Raises:
    ValueError: if a query has no relevant candidate, or a score is NaN.
  """
  scores, relevant = np.asarray(scores), np.asarray(relevant, bool)
  if np.isnan(scores).any():
    raise ValueError("similarities must not be NaN")
  if not relevant.any(1).all():
    missing = int(np.flatnonzero(~relevant.any(1))[0])
    raise ValueError(f"query {missing} has no relevant candidate")
  best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
  tied = scores == best
  return (scores > best).sum(1), tied.sum(1), (tied & relevant).sum(1)


def recall_at(
  k: int, scores: Scores, relevant: Bool[np.ndarray, "q c"]
) -> Float[np.ndarray, " q"]:
  """The chance that a relevant candidate is among the first k, per query.

  With a above, t tied and r relevant among these, k - a places are for a random draw
  of the tied: 1 - C(t - r, k - a) / C(t, k - a).
  """
  above, tied, good = rank_bounds(scores, relevant)
  places = np.clip(k - above, 0, tied)
  miss = np.ones(len(above))
  # The product form of the quotient of binomials: one relevant place after the other.
  for i in range(int(good.max())):
    left = np.maximum(tied - places - i, 0) / np.maximum(tied - i, 1)
    miss *= np.where(i < good, left, 1.0)
  return 1.0 - miss


def expected_rank(
  scores: Scores, relevant: Bool[np.ndarray, "q c"]
) -> Float[np.ndarray, " q"]:
  """The expected place, from 1, of the first relevant candidate, per query.

  a + (t + 1) / (r + 1): of r marked among t in random order, the first.
  """
  above, tied, good = rank_bounds(scores, relevant)
  return above + (tied + 1) / (good + 1)
