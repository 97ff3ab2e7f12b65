"""Distances between two sets of features: Frechet distance and KID, in float64.

Both compare features [n, d] of generated examples with features of real ones, and mean
nothing without the name of the network that made the features. NumPy on the host:
float32 covariances are wrong in the digits people report (pytorch/torcheval#192).
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
  """What a Gaussian fit needs; parts of a set add up by `merge`.

  Attributes:
    count: how many features were seen.
    mean: their mean.
    scatter: the sum of outer products of their deviations from `mean`.
  """

  count: int
  mean: Float[np.ndarray, " d"]
  scatter: Float[np.ndarray, "d d"]


class Kid(NamedTuple):
  """An estimate of the kernel distance and its standard error over blocks."""

  value: float
  standard_error: float
  blocks: int


def _features(x: np.ndarray, name: str) -> np.ndarray:
  x = np.asarray(x, np.float64)
  if x.ndim != 2:
    raise ValueError(f"{name} must have shape [n, d], got {x.shape}")
  if not np.isfinite(x).all():
    raise ValueError(f"{name} has values that are not finite")
  return x


def moments(features: Float[np.ndarray, "b d"]) -> Moments:
  """The moments of one set of features."""
  x = _features(features, "features")
  if not len(x):
    return Moments(0, np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1])))
  mean = x.mean(0)
  return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge(a: Moments | None, b: Moments) -> Moments:
  """The moments of two sets together, as if seen at once; None is the empty set.

  Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
  """
  if a is None:
    return b
  count = a.count + b.count
  if count == 0:
    return a
  delta = b.mean - a.mean
  mean = a.mean + delta * (b.count / count)
  between = np.outer(delta, delta) * (a.count * b.count / count)
  return Moments(count, mean, a.scatter + b.scatter + between)


def running(blocks: Iterable[Float[np.ndarray, "b d"]]) -> Moments:
  """The moments of a set that comes in blocks, none of which is kept.

  Raises:
    ValueError: if there are none.
  """
  total = functools.reduce(merge, map(moments, blocks), None)
  if total is None:
    raise ValueError("moments of no features")
  return total


def over_processes(m: Moments) -> Moments:
  """The moments of what all processes have seen; the same on each.

  float64 is sent as its bytes: JAX would round it to float32.
  """
  import jax
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return m
  rows = multihost_utils.process_allgather(_words(m))
  return functools.reduce(merge, [_from_words(row) for row in np.asarray(rows)])


def _words(m: Moments) -> np.ndarray:
  numbers = [np.array([m.count], np.float64), m.mean, m.scatter.ravel()]
  return np.concatenate(numbers).view(np.uint32)


def _from_words(words: np.ndarray) -> Moments:
  numbers = np.ascontiguousarray(words).view(np.float64)
  d = (math.isqrt(4 * len(numbers) - 3) - 1) // 2  # len = 1 + d + d^2
  return Moments(int(numbers[0]), numbers[1 : d + 1], numbers[d + 1 :].reshape(d, d))


def covariance(m: Moments) -> Float[np.ndarray, "d d"]:
  """The unbiased covariance, [d, d]."""
  if m.count < 2:
    raise ValueError(f"a covariance needs at least 2 examples, got {m.count}")
  return m.scatter / (m.count - 1)


def _sqrt(matrix: np.ndarray) -> np.ndarray:
  """The symmetric root of a positive semi-definite matrix; rounding below 0 is cut."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def gaussian_frechet(
  mean_a: Float[np.ndarray, " d"],
  cov_a: Float[np.ndarray, "d d"],
  mean_b: Float[np.ndarray, " d"],
  cov_b: Float[np.ndarray, "d d"],
) -> float:
  """The squared 2-Wasserstein distance between two Gaussians.

      |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)

  Dowson and Landau (1982), https://doi.org/10.1016/0047-259X(82)90077-X. The trace of
  the last root is the sum of the singular values of A^1/2 B^1/2, which stays real and
  exact where `sqrtm(A B)` of a singular product does not.
  """
  root = np.linalg.svd(_sqrt(cov_a) @ _sqrt(cov_b), compute_uv=False).sum()
  gap = np.sum((np.asarray(mean_a, np.float64) - mean_b) ** 2)
  return float(max(0.0, gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * root))


def frechet_distance(a: Moments, b: Moments) -> float:
  """The Frechet distance between Gaussian fits of two sets of features.

  Heusel et al. (2017), https://arxiv.org/abs/1706.08500. It is biased upwards in small
  sets, by an amount that depends on the network: report both counts, and beside it the
  distance between two real sets of these sizes.
  """
  return gaussian_frechet(a.mean, covariance(a), b.mean, covariance(b))


def unbiased_mmd2(
  x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "k d"], *, degree: int = 3
) -> float:
  """The unbiased squared maximum mean discrepancy under (x . y / d + 1)^degree."""
  x, y = _features(x, "x"), _features(y, "y")
  if len(x) < 2 or len(y) < 2:
    raise ValueError(f"MMD needs 2 examples on each side, got {len(x)} and {len(y)}")
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** degree
  off_diagonal = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
  within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
  return float(within - 2.0 * kernel(x, y).mean())


def kid(
  x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "k d"], *, block_size: int = 250
) -> Kid:
  """The kernel distance between two sets of features, with its standard error.

  Binkowski et al. (2018), https://arxiv.org/abs/1801.01401: the mean over blocks of the
  unbiased MMD^2 with a cubic polynomial kernel. The blocks are disjoint, so they are
  independent and the standard error is honest (the paper draws overlapping ones). Sets
  that are ordered must be shuffled first. One block has no standard error: nan.

  A block of `x` meets the next one of `y`: row i of `x` may be made of row i of `y`, as
  its reconstruction, and the estimate is of independent samples. (One block meets
  itself, and is then biased downwards.)
  """
  size = min(block_size, len(x), len(y))
  count = min(len(x), len(y)) // size if size else 0
  if count == 0:
    raise ValueError(f"KID needs examples on each side, got {len(x)} and {len(y)}")
  cut = [slice(i * size, (i + 1) * size) for i in range(count)]
  pairs = zip(cut, [*cut[1:], cut[0]], strict=True)
  values = np.array([unbiased_mmd2(x[one], y[other]) for one, other in pairs])
  error = values.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
  return Kid(float(values.mean()), float(error), count)
