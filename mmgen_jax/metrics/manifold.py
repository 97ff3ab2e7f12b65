"""Whether samples lie where the real data do, and the converse: in feature space.

A set's manifold is the union of balls round its members, each as large as the distance
to the k-th nearest other member. NumPy on the host, in float64, by blocks of bounded
memory; features mean nothing without the name of the network that made them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 2**22  # distances held at once


class Manifold(NamedTuple):
  """How two sets of features cover each other.

  Attributes:
    precision: share of the fakes inside a ball of the real ones.
    recall: share of the real ones inside a ball of the fakes.
    density: mean number of real balls round a fake, over k; it may exceed 1.
    coverage: share of the real balls that hold a fake.
  """

  precision: float
  recall: float
  density: float
  coverage: float


def _blocks(n: int, other: int):
  rows = max(1, BLOCK // max(1, other))
  return [slice(i, i + rows) for i in range(0, n, rows)]


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """|a_i - b_j|^2, [n, m]; what rounding alone could have made is 0."""
  norms = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
  d = norms - 2.0 * (a @ b.T)
  return np.where(d > 1e-13 * norms, d, 0.0)


def _square_radii(x: np.ndarray, k: int) -> np.ndarray:
  """The squared distance of each row to its k-th nearest other row, [n]."""
  radii = np.empty(len(x))
  for block in _blocks(len(x), len(x)):
    d = _square_distances(x[block], x)
    d[np.arange(len(d)), np.arange(len(x))[block]] = 0.0  # itself comes first
    radii[block] = np.partition(d, k, axis=1)[:, k]
  return radii


def _inside(points: np.ndarray, centres: np.ndarray, square_radii: np.ndarray):
  """(closed balls round each point [n], whether each ball holds a point [m])."""
  count = np.empty(len(points), np.int64)
  hit = np.zeros(len(centres), bool)
  for block in _blocks(len(points), len(centres)):
    within = _square_distances(points[block], centres) <= square_radii
    count[block] = within.sum(1)
    hit |= within.any(0)
  return count, hit


def _checked(real, fake, ks) -> tuple[np.ndarray, np.ndarray]:
  sets = {"real": np.asarray(real, np.float64), "fake": np.asarray(fake, np.float64)}
  for name, x in sets.items():
    if x.ndim != 2 or not np.isfinite(x).all():
      raise ValueError(f"{name} must be finite, of shape [n, d]; got {x.shape}")
    if len(x) <= max(ks) or min(ks) < 1:
      raise ValueError(f"k = {ks} must be from 1 to {len(x) - 1}: {name} has {len(x)}")
  if sets["real"].shape[1] != sets["fake"].shape[1]:
    raise ValueError(
      f"real has {sets['real'].shape[1]} features, fake {sets['fake'].shape[1]}"
    )
  centre = sets["real"].mean(0)  # less is cancelled in the distances
  return sets["real"] - centre, sets["fake"] - centre


def manifold(
  real: Float[np.ndarray, "n d"],
  fake: Float[np.ndarray, "m d"],
  *,
  k: int = 3,
  k_density: int = 5,
) -> Manifold:
  """Improved precision and recall, density and coverage.

  Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
  Models", 2019, https://arxiv.org/abs/1904.06991, with k; Naeem et al., "Reliable
  Fidelity and Diversity Metrics for Generative Models", 2020, eqs. 2 and 3,
  https://arxiv.org/abs/2002.09797, with k_density. All depend on the sizes of both sets:
  report those. Of two large sets of one distribution, expect a density of 1 and a
  coverage of 1 - 2^-k_density.

  Raises:
    ValueError: if a set has not more members than k, or a value is not finite.
  """
  real, fake = _checked(real, fake, (k, k_density))
  balls, _ = _inside(fake, real, _square_radii(real, k))
  back, _ = _inside(real, fake, _square_radii(fake, k))
  count, hit = _inside(fake, real, _square_radii(real, k_density))
  return Manifold(
    float((balls > 0).mean()),
    float((back > 0).mean()),
    float(count.mean() / k_density),
    float(hit.mean()),
  )
