"""Whether samples lie where the real data do, and the converse: in feature space.

A set's manifold is the union of balls round its members, each as large as the distance
to the k-th nearest other member. NumPy on the host, in float64, by blocks of bounded
memory; features mean nothing without the name of the network that made them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 2**22  # distances held at once
SAY_SECS = 10.0  # between two lines on how it goes

Say = Callable[[str], None]


def _silent(message: str) -> None:
  del message


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


def _blocks(n: int, other: int, say: Say = _silent):
  """Slices of n rows, as many at once as may be held; tells how it goes."""
  rows, told = max(1, BLOCK // max(1, other)), time.time()
  for i in range(0, n, rows):
    yield slice(i, i + rows)
    if time.time() - told > SAY_SECS:
      told = time.time()
      say(f"manifold: {min(n, i + rows)} of {n} examples against {other}")


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """|a_i - b_j|^2, [n, m]; what rounding alone could have made is 0."""
  norms = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
  d = norms - 2.0 * (a @ b.T)
  return np.where(d > 1e-13 * norms, d, 0.0)


def _square_radii(x: np.ndarray, ks: tuple[int, ...], say: Say) -> dict:
  """{k: squared distance [n] of each row to its k-th nearest other row}."""
  radii = {k: np.empty(len(x)) for k in ks}
  for block in _blocks(len(x), len(x), say):
    d = _square_distances(x[block], x)
    d[np.arange(len(d)), np.arange(len(x))[block]] = 0.0  # itself comes first
    nearest = np.partition(d, ks, axis=1)
    for k in ks:
      radii[k][block] = nearest[:, k]
  return radii


def _inside(points: np.ndarray, centres: np.ndarray, radii, say: Say):
  """For each of several [squared radii [m]] of balls round the centres.

  Returns:
    (closed balls round each point [n], whether each ball holds a point [m]) for each.
  """
  count = [np.empty(len(points), np.int64) for _ in radii]
  hit = [np.zeros(len(centres), bool) for _ in radii]
  for block in _blocks(len(points), len(centres), say):
    d = _square_distances(points[block], centres)
    for i, r in enumerate(radii):
      within = d <= r
      count[i][block] = within.sum(1)
      hit[i] |= within.any(0)
  return list(zip(count, hit, strict=True))


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
  say: Say = _silent,
) -> Manifold:
  """Improved precision and recall, density and coverage.

  Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
  Models", 2019, https://arxiv.org/abs/1904.06991, with k; Naeem et al., "Reliable
  Fidelity and Diversity Metrics for Generative Models", 2020, eqs. 2 and 3,
  https://arxiv.org/abs/2002.09797, with k_density. All depend on the sizes of both sets:
  report those. Of two large sets of one distribution, expect a density of 1 and a
  coverage of 1 - 2^-k_density. `say` is told how it goes.

  Raises:
    ValueError: if a set has not more members than k, or a value is not finite.
  """
  real, fake = _checked(real, fake, (k, k_density))
  of_real = _square_radii(real, tuple({k, k_density}), say)
  of_fake = _square_radii(fake, (k,), say)
  (balls, _), (count, hit) = _inside(fake, real, [of_real[k], of_real[k_density]], say)
  ((back, _),) = _inside(real, fake, [of_fake[k]], say)
  return Manifold(
    float((balls > 0).mean()),
    float((back > 0).mean()),
    float(count.mean() / k_density),
    float(hit.mean()),
  )
