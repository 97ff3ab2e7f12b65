"""Weight fusion: averages and interpolations of the parameters of several networks.

Ingredients are pytrees of floating-point arrays, alike in structure, shapes and dtypes.
They are merged leaf by leaf in float32 (float64 where they are), so that beside inputs
and result no more than a leaf's worth of memory is used. Networks trained from different
initialisations want their units matched first: see `match`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from mmgen_jax.fusion.pages import release

ByLayer = Mapping[str, Any]  # a value for every path


def check_alike(trees: Sequence[PyTree], *, finite: bool = True) -> None:
  """ValueError, naming path and values, unless trees can be merged.

  Args:
    trees: at least one.
    finite: whether to look for NaN and infinity too; under a trace nobody can.
  """
  if not trees:
    raise ValueError("nothing to merge: the list of parameters is empty")
  first = by_path(trees[0])
  for i, tree in enumerate(trees):
    leaves = by_path(tree)
    for name in [*first, *leaves]:
      if name not in leaves or name not in first:
        odd, other = (i, 0) if name in leaves else (0, i)
        raise ValueError(f"ingredient {odd} has {name!r}, ingredient {other} has not")
    for name, x in leaves.items():
      _check_leaf(name, i, x, first[name], finite)


def by_path(tree: PyTree) -> dict[str, Any]:
  """{"a/b/c": leaf}, in the order of the leaves."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _check_leaf(name: str, i: int, x, first, finite: bool) -> None:
  about, want = [f"{jnp.result_type(a)}{list(jnp.shape(a))}" for a in (x, first)]
  if about != want:
    raise ValueError(f"{name!r} is {want} in ingredient 0, {about} in ingredient {i}")
  if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
    raise ValueError(f"{name!r} is {about}: only floating-point arrays can be merged")
  if finite and not isinstance(x, Tracer):
    if not _all_finite(x):
      raise ValueError(f"{name!r} of ingredient {i} has entries that are not finite")
    release([x])


@jax.jit
def _all_finite(x):
  return jnp.isfinite(x).all()


def merge_leaves(
  f: Callable, trees: Sequence[PyTree], *settings: ArrayLike | ByLayer, key=None
) -> PyTree:
  """A tree of f([x of each tree], *settings), computed in float32, in the first's dtype.

  Args:
    f: a function of a module, not made anew: it is compiled once for each shape.
    trees: as `check_alike` wants them.
    *settings: arrays or numbers, the same for all leaves, or by path.
    key: if given, `f` gets `key=` folded with the leaf's number.
  """
  names = list(by_path(trees[0]))
  leaves, structure = jax.tree.flatten(trees[0])
  columns = [leaves, *map(jax.tree.leaves, trees[1:])]
  out = []
  for i, (name, *xs) in enumerate(zip(names, *columns, strict=True)):
    own = [s[name] if isinstance(s, Mapping) else s for s in settings]
    keys = {} if key is None else {"key": jax.random.fold_in(key, i)}
    out.append(_merge_leaf(f, xs, [jnp.asarray(s) for s in own], keys))
    if any(isinstance(x, np.ndarray) for x in xs):
      jax.block_until_ready(out[-1])
      release(xs)
  return structure.unflatten(out)


@partial(jax.jit, static_argnums=0)
def _merge_leaf(f, xs, settings, keys):
  out = xs[0].dtype
  wide = jnp.promote_types(out, jnp.float32)
  xs, settings = ([x.astype(wide) for x in part] for part in (xs, settings))
  return f(xs, *settings, **keys).astype(out)


def layer_weights(
  params: PyTree, patterns: Mapping[str, Any], default: Any = None
) -> dict[str, Any]:
  """A value for every path: that of the first pattern (regex) found in it.

  For the `t` of `interpolate` and `slerp`, and the `weights` of `average`.

  Raises:
    ValueError: if a pattern is found nowhere, or (without `default`) a path has none.
  """
  unused, out = set(patterns), {}
  for name in by_path(params):
    hits = [p for p in patterns if re.search(p, name)]
    unused -= set(hits)
    if not hits and default is None:
      raise ValueError(f"no pattern of {list(patterns)} is in {name!r}; give a default")
    out[name] = patterns[hits[0]] if hits else default
  if unused:
    raise ValueError(f"patterns {sorted(unused)} are in no path of {list(out)}")
  return out


def ema_update(mean: PyTree, params: PyTree, decay: float | Array) -> PyTree:
  """Decay * mean + (1 - decay) * params, as mean + (1 - decay) (params - mean).

  Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992,
  with exponential weights. Can be traced.
  """
  check_alike([mean, params], finite=False)
  return merge_leaves(_toward, [mean, params], 1.0 - jnp.asarray(decay))


def swa_update(mean: PyTree, params: PyTree, count: int | Array) -> PyTree:
  """The mean of `count` + 1 networks, from that of `count` and one more.

  Stochastic weight averaging (Izmailov et al., "Averaging Weights Leads to Wider Optima
  and Better Generalization", 2018, algorithm 1, https://arxiv.org/abs/1803.05407).
  Networks with batch statistics must compute them again. Can be traced.
  """
  check_alike([mean, params], finite=False)
  return merge_leaves(_toward, [mean, params], 1.0 / (jnp.asarray(count) + 1.0))


def _toward(xs, t):
  a, b = xs
  return a + t * (b - a)


def interpolate(a: PyTree, b: PyTree, t: float | ByLayer) -> PyTree:
  """(1 - t) a + t b; `t` may be by path."""
  check_alike([a, b])
  return merge_leaves(_linear, [a, b], t)


def _linear(xs, t):
  return (1.0 - t) * xs[0] + t * xs[1]


def slerp(a: PyTree, b: PyTree, t: float | ByLayer) -> PyTree:
  """Spherical interpolation of each tensor; `t` may be by path.

  (sin((1 - t) w) a + sin(t w) b) / sin w, w the angle between the two as vectors
  (Shoemake, "Animating Rotation with Quaternion Curves", 1985). Linear where they are
  almost parallel (or opposite, where no arc is the shortest), or one is zero.
  """
  check_alike([a, b])
  return merge_leaves(_slerp, [a, b], t)


def _slerp(xs, t):
  a, b = xs
  norms = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
  cos = jnp.vdot(a, b) / jnp.where(norms > 0, norms, 1.0)
  straight = (jnp.abs(cos) > 0.9995) | (norms == 0)
  w = jnp.arccos(jnp.where(straight, 0.0, cos))
  from_a = jnp.where(straight, 1.0 - t, jnp.sin((1.0 - t) * w) / jnp.sin(w))
  from_b = jnp.where(straight, t, jnp.sin(t * w) / jnp.sin(w))
  return from_a * a + from_b * b


def average(
  trees: Sequence[PyTree],
  weights: Sequence[float] | Float[Array, "n"] | ByLayer | None = None,
) -> PyTree:
  """sum_i w_i theta_i / sum_i w_i; without weights a uniform soup.

  Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482.

  Args:
    trees: the ingredients.
    weights: one for each tree, or such a list by path.

  Raises:
    ValueError: if there is not a weight for each tree, or they sum to zero.
  """
  check_alike(trees)
  if weights is None:
    weights = [1.0] * len(trees)
  lists = weights.values() if isinstance(weights, Mapping) else [weights]
  for w in lists:
    if np.shape(w) != (len(trees),) or not abs(float(np.sum(w))) > 0:
      raise ValueError(f"weights {w}: {len(trees)} numbers are wanted, of sum not zero")
  return merge_leaves(_average, trees, weights)  # pyright: ignore[reportArgumentType]


def _average(xs, w):
  w = w / w.sum()
  return sum(x * w[i] for i, x in enumerate(xs))


class Candidate(NamedTuple):
  """One ingredient that a greedy soup tried.

  Attributes:
    index: among the ingredients.
    own: its own score.
    before: the score of the soup without it; None if there was no soup yet.
    after: the score of the soup with it.
    added: whether it was, for `after` > `before`.
  """

  index: int
  own: float
  before: float | None
  after: float
  added: bool


def greedy_soup(
  trees: Sequence[PyTree], score: Callable[[PyTree], float]
) -> tuple[PyTree, list[Candidate]]:
  """The mean of those ingredients that each raised a held-out score, best first.

  Wortsman et al., "Model soups", 2022, recipe 1, https://arxiv.org/abs/2203.05482. There
  an ingredient that leaves the score as it is is added too; here it has to rise.

  Args:
    trees: the ingredients.
    score: of parameters, on held-out data; higher is better.

  Returns:
    The soup, and every candidate in the order tried, so that one sees why it stopped.

  Raises:
    ValueError: if the trees are unlike or not finite, or a score is NaN.
  """
  check_alike(trees)
  own = [_score(score, tree, f"ingredient {i}") for i, tree in enumerate(trees)]
  order = sorted(range(len(trees)), key=lambda i: -own[i])
  chosen, soup, best, record = [], trees[order[0]], None, []
  for i in order:
    tried = average([trees[j] for j in [*chosen, i]]) if chosen else trees[i]
    after = _score(score, tried, f"the soup of {[*chosen, i]}") if chosen else own[i]
    added = best is None or after > best
    record.append(Candidate(i, own[i], best, after, added))
    if added:
      chosen, soup, best = [*chosen, i], tried, after
  return soup, record


def _score(score, tree, what: str) -> float:
  value = float(score(tree))
  if math.isnan(value):
    raise ValueError(f"the score of {what} is NaN")
  return value


def loss_barrier(losses: Sequence[float]) -> float:
  """The worst loss on a line between two networks less the mean of its ends.

  Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", 2020,
  section 2, https://arxiv.org/abs/1912.05671.
  """
  return float(max(losses) - (losses[0] + losses[-1]) / 2)
