"""Merging of networks that were fine-tuned from one base: sums of their task vectors.

A task vector is what fine-tuning added: theta_i - base (Ilharco et al., "Editing Models
with Task Arithmetic", 2023, https://arxiv.org/abs/2212.04089).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mmgen_jax.fusion.pages import release
from mmgen_jax.fusion.weight import ByLayer, check_alike, merge_leaves


def task_arithmetic(
  base: PyTree,
  trees: Sequence[PyTree],
  scales: float | Sequence[float] | Float[Array, "n"] | ByLayer = 1.0,
) -> PyTree:
  """Base + sum_i s_i (theta_i - base); a negative s_i unlearns (Ilharco et al., 2023).

  Args:
    base: what all were fine-tuned from; ingredient 0 in messages.
    trees: the networks.
    scales: one for all, one for each, or either by path; to be chosen on held-out data.

  Raises:
    ValueError: for another number of scales, or if the trees are unlike or not finite.
  """
  check_alike([base, *trees])
  for some in scales.values() if isinstance(scales, Mapping) else [scales]:
    if jnp.asarray(some).shape not in ((), (len(trees),)):
      raise ValueError(
        f"scales must be one, or one for each of {len(trees)}, got {some}"
      )
  return merge_leaves(_add_task_vectors, [base, *trees], scales)  # pyright: ignore[reportArgumentType]


def _add_task_vectors(xs, scales):
  base, *others = xs
  scales = jnp.broadcast_to(scales, (len(others),))
  return base + sum(s * (x - base) for s, x in zip(scales, others, strict=True))


def dare(base: PyTree, tree: PyTree, *, drop: float, key: Key[Array, ""]) -> PyTree:
  """A network whose task vector has entries dropped at random, the rest scaled up.

  base + m (theta - base) / (1 - drop), m Bernoulli(1 - drop): its mean is theta. Yu et
  al., "Language Models are Super Mario", 2024, eq. 3, https://arxiv.org/abs/2311.03099.
  What comes out goes into `task_arithmetic` or `ties`, each network with its own key.

  Raises:
    ValueError: if `drop` is not in [0, 1), or the trees are unlike or not finite.
  """
  if not 0.0 <= drop < 1.0:
    raise ValueError(f"drop={drop}: at least 0, and less than 1")
  check_alike([base, tree])
  return merge_leaves(_drop, [base, tree], drop, key=key)


def _drop(xs, drop, *, key):
  base, x = xs
  kept = jax.random.bernoulli(key, 1.0 - drop, base.shape)
  return base + jnp.where(kept, (x - base) / (1.0 - drop), 0.0)


def ties(
  base: PyTree, trees: Sequence[PyTree], *, keep: float = 0.2, scale: float = 1.0
) -> PyTree:
  """Task vectors trimmed, their signs elected, and those that agree averaged.

  Of each task vector the largest `keep` of all entries stay (more if magnitudes are
  equal); the sign of an entry is that of the sum of what is left, and its value the mean
  of those that have this sign. Yadav et al., "TIES-Merging", 2023, algorithm 1,
  https://arxiv.org/abs/2306.01708.

  Raises:
    ValueError: if `keep` is not in (0, 1], or the trees are unlike or not finite.
  """
  if not 0.0 < keep <= 1.0:
    raise ValueError(f"keep={keep}: more than 0, and at most 1")
  check_alike([base, *trees])
  thresholds = jnp.stack([trim_threshold(base, tree, keep) for tree in trees])
  return merge_leaves(_elect_and_average, [base, *trees], thresholds, scale)


def trim_threshold(base: PyTree, tree: PyTree, keep: float) -> Float[Array, ""]:
  """The largest magnitude that `keep` of all entries of tree - base reach.

  By bisection over bit patterns, which are ordered as the floats are (none is negative):
  31 counts, exact, and nothing is sorted or stored.
  """
  pairs = list(zip(jax.tree.leaves(base), jax.tree.leaves(tree), strict=True))
  wanted = max(1, round(keep * sum(x.size for x, _ in pairs)))
  low, high = 0, 0x7F800000  # infinity
  while high - low > 1:
    middle = (low + high) // 2
    count = 0
    for pair in pairs:
      count += int(_count_reaching(*pair, middle))
      release(pair)
    if count >= wanted:
      low = middle
    else:
      high = middle
  return jax.lax.bitcast_convert_type(jnp.int32(low), jnp.float32)


def _magnitude(base, x):
  return jnp.abs(x.astype(jnp.float32) - base.astype(jnp.float32))


@jax.jit
def _count_reaching(base, x, bits):
  return (jax.lax.bitcast_convert_type(_magnitude(base, x), jnp.int32) >= bits).sum()


def _elect_and_average(xs, thresholds, scale):
  base, *others = xs
  vectors = [
    jnp.where(_magnitude(base, x) >= t, x - base, 0.0)
    for x, t in zip(others, thresholds, strict=True)
  ]
  sign = jnp.sign(sum(vectors))
  agree = [(jnp.sign(v) == sign) & (v != 0) for v in vectors]
  total = sum(jnp.where(a, v, 0.0) for a, v in zip(agree, vectors, strict=True))
  return base + scale * total / jnp.maximum(sum(a.astype(base.dtype) for a in agree), 1)
