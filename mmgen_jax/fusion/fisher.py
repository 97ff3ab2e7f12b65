"""Fisher-weighted averaging: each entry counts by how sure its network is of it.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2022,
https://arxiv.org/abs/2111.09832.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mmgen_jax.fusion.weight import by_path, check_alike, merge_leaves


def diagonal_fisher(
  log_prob: Callable[[PyTree, PyTree], Float[Array, ""]],
  params: PyTree,
  examples: PyTree,
  *,
  batch: int = 1,
) -> PyTree:
  """The mean over examples of (d log p / d theta)^2, entry by entry, in float32.

  With targets drawn from the network itself this estimates the Fisher information's
  diagonal (eq. 2 of the paper); with the data's own, the empirical Fisher.

  Args:
    log_prob: (params, one example) -> log-probability.
    params: the network.
    examples: arrays with a first axis of examples.
    batch: examples at a time; as many gradients are held in memory.

  Raises:
    ValueError: if there are no examples, or `batch` is not positive.
  """
  n = len(jax.tree.leaves(examples)[0]) if jax.tree.leaves(examples) else 0
  if n < 1 or batch < 1:
    raise ValueError(f"{n} examples, batch={batch}: at least 1 each")
  total = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)
  for i in range(0, n, batch):
    part = jax.tree.map(lambda x: x[i : i + batch], examples)  # noqa: B023
    total = _add_squares(log_prob, total, params, part)
  return jax.tree.map(lambda x: x / n, total)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_squares(log_prob, total, params, part):
  grads = jax.vmap(jax.grad(log_prob), in_axes=(None, 0))(params, part)
  return jax.tree.map(
    lambda t, g: t + jnp.square(g.astype(jnp.float32)).sum(0), total, grads
  )


def fisher_average(
  trees: Sequence[PyTree],
  fishers: Sequence[PyTree],
  weights: Sequence[float] | None = None,
  *,
  floor: float = 1e-6,
  normalise: bool = False,
) -> PyTree:
  """sum_i w_i F_i theta_i / sum_i w_i F_i, entry by entry (eq. 3 of the paper).

  Args:
    trees: the networks.
    fishers: of each, from `diagonal_fisher`.
    weights: of the networks; 1 if None.
    floor: least F, so that entries which no network is sure of are plainly averaged.
    normalise: whether to scale each F to norm 1 first, so that no network rules for
      having been fitted to more certain data; `floor` then is of the scaled F.

  Raises:
    ValueError: if trees or Fishers are unlike or not finite, or their numbers differ.
  """
  check_alike(trees)
  check_alike(fishers)
  weights = [1.0] * len(trees) if weights is None else weights
  if not len(trees) == len(fishers) == len(weights):
    raise ValueError(
      f"{len(trees)} trees, {len(fishers)} Fishers, {len(weights)} weights: as many each"
    )
  own, of_fisher = (
    {name: jnp.shape(x) for name, x in by_path(t).items()}
    for t in (trees[0], fishers[0])
  )
  for name in [*own, *of_fisher]:
    if own.get(name) != of_fisher.get(name):
      raise ValueError(
        f"{name!r} has shape {own.get(name)}, its Fisher {of_fisher.get(name)} (None:"
        " there is none)"
      )
  if floor <= 0 or min(weights) <= 0:
    raise ValueError(f"floor={floor}, weights={weights}: more than 0")
  norms = [norm(f) if normalise else 1.0 for f in fishers]
  settings = jnp.asarray(weights, jnp.float32), jnp.asarray(norms, jnp.float32)
  return merge_leaves(_precise, [*trees, *fishers], *settings, floor)


def norm(tree: PyTree) -> Float[Array, ""]:
  """The Euclidean norm of all entries."""
  squares = [jnp.vdot(x, x) for x in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares))


def _precise(xs, weights, norms, floor):
  n = len(xs) // 2
  f = [
    w * jnp.maximum(x / s, floor)
    for x, w, s in zip(xs[n:], weights, norms, strict=True)
  ]
  return sum(x * y for x, y in zip(xs[:n], f, strict=True)) / sum(f)
