"""A random forest in NumPy: which features tell a class, and how well.

Breiman, "Random Forests", 2001: bootstrap samples, splits by Gini impurity. All features
are tried at every split, as is usual where importances are wanted: leaving some out
spreads importance to features that say little. Features are cut into quantile bins once,
and trees grow a level at a time, so that a level is a handful of array operations.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

BINS = 64


class Fit(NamedTuple):
  """What a forest found.

  Attributes:
    importance: each feature's share of the decrease in impurity; sums to one, or zero
      where nothing could be told.
    predicted: classes of the test features.
  """

  importance: Float[np.ndarray, " d"]
  predicted: Int[np.ndarray, " n"]


class _Tree(NamedTuple):
  features: list[np.ndarray]  # of every node, by level
  thresholds: list[np.ndarray]  # what is above goes right
  leaves: Float[np.ndarray, "leaf c"]  # class probabilities
  importance: Float[np.ndarray, " d"]


def _split(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Best feature, threshold and decrease of every node; counts are [node d bin c]."""
  left = counts.cumsum(2)
  whole = left[:, :, -1:]
  right = whole - left

  def purity(x):  # n times (1 - Gini)
    return (x**2).sum(-1) / np.maximum(x.sum(-1), 1)

  gain = purity(left) + purity(right) - purity(whole)
  flat = gain.reshape(len(gain), -1)
  best = flat.argmax(1)
  gain = flat[np.arange(len(flat)), best]
  feature, threshold = np.unravel_index(best, counts.shape[1:3])
  return feature, np.where(gain > 1e-9, threshold, BINS), np.maximum(gain, 0.0)


def _grow(bins: np.ndarray, classes: np.ndarray, number: int, depth: int) -> _Tree:
  n, d = bins.shape
  node, features, thresholds = np.zeros(n, np.int64), [], []
  importance = np.zeros(d)
  columns = np.arange(d)
  for level in range(depth):
    cell = ((node[:, None] * d + columns) * BINS + bins) * number + classes[:, None]
    shape = (2**level, d, BINS, number)
    counts = np.bincount(cell.ravel(), minlength=np.prod(shape)).reshape(shape)
    feature, threshold, gain = _split(counts.astype(np.float64))
    np.add.at(importance, feature, gain)
    features.append(feature)
    thresholds.append(threshold)
    node = _descend(bins, node, feature, threshold)
  leaves = np.bincount(node * number + classes, minlength=2**depth * number)
  leaves = leaves.reshape(-1, number) / np.maximum(
    leaves.reshape(-1, number).sum(1, keepdims=True), 1
  )
  return _Tree(features, thresholds, leaves, importance)


def _descend(bins, node, feature, threshold) -> np.ndarray:
  value = np.take_along_axis(bins, feature[node][:, None], axis=1)[:, 0]
  return 2 * node + (value > threshold[node])


def _predict(tree: _Tree, bins: np.ndarray) -> np.ndarray:
  node = np.zeros(len(bins), np.int64)
  for feature, threshold in zip(tree.features, tree.thresholds, strict=True):
    node = _descend(bins, node, feature, threshold)
  return tree.leaves[node]


def random_forest(
  features: Float[np.ndarray, "n d"],
  classes: Int[np.ndarray, " n"],
  test_features: Float[np.ndarray, "m d"],
  *,
  trees: int = 10,
  depth: int = 8,
  seed: int = 0,
) -> Fit:
  """Importances of the features, and what the forest predicts of the test features.

  Args:
    features: to learn from.
    classes: integers from 0.
    test_features: to predict.
    trees: how many.
    depth: of each.
    seed: of the bootstrap samples.
  """
  rng = np.random.default_rng(seed)
  levels = np.linspace(0, 1, BINS + 1)[1:-1]
  edges = np.quantile(features, levels, axis=0)
  cut = lambda x: np.stack(
    [np.searchsorted(e, column) for e, column in zip(edges.T, x.T, strict=True)], 1
  )
  bins, test_bins = cut(features), cut(test_features)
  number = int(classes.max()) + 1
  importance, votes = np.zeros(features.shape[1]), np.zeros((len(test_bins), number))
  for _ in range(trees):
    rows = rng.integers(0, len(bins), len(bins))
    tree = _grow(bins[rows], classes[rows], number, depth)
    importance += tree.importance
    votes += _predict(tree, test_bins)
  return Fit(importance / max(importance.sum(), 1e-12), votes.argmax(1))
