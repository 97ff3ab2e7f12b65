"""Which units of one network are those of another: permutations found by assignment.

Permutations of coupled groups are found in turn: with the others held, the best one of a
group is a linear assignment, and the sum of inner products that is maximised never falls.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree
from scipy.optimize import linear_sum_assignment

from mmgen_jax.fusion.equivariance import walk
from mmgen_jax.fusion.pages import release
from mmgen_jax.fusion.permute import (
  Form,
  Permutations,
  Pieces,
  Site,
  Symmetry,
  apply_permutation,
  check_permutations,
  form_size,
  groups_of,
  permute_array,
  require_params,
  trace,
)
from mmgen_jax.fusion.weight import average, by_path

Forms = tuple[Form, ...]
Settled = set[int] | None  # groups whose permutation is known; None for all


def weight_matching(
  params_a: PyTree,
  params_b: PyTree,
  symmetry: Symmetry,
  *,
  start: Permutations | None = None,
  max_sweeps: int = 100,
  seed: int = 0,
) -> dict[int, np.ndarray]:
  """Permutations of `params_b` that bring it close to `params_a`, without data.

  argmin_P ||A - P(B)||^2 = argmax_P <A, P(B)>, group after group in random order until
  none improves: Git Re-Basin (Ainsworth, Hayase and Srinivasa, 2023, algorithm 1,
  https://arxiv.org/abs/2209.04836), but for where it starts. Where a group has two axes
  of one tensor its assignment is linearised, and taken only if the inner product rises.

  Args:
    params_a: the network that stays.
    params_b: the one to permute, by `apply_permutation` with what is returned.
    symmetry: of both, from `find_symmetry`.
    start: permutations to start from. If None every group is first matched once, the
      one that most is known of first, by what no permutation of the others changes.
    max_sweeps: over all groups.
    seed: of the order of groups.

  Raises:
    ValueError: if the parameters are not those of the symmetry.
  """
  for params in (params_a, params_b):
    require_params(params, symmetry)
  forms = [symmetry.forms[name] for name in by_path(params_a)]
  a, b = jax.tree.leaves(params_a), jax.tree.leaves(params_b)
  return _ascend(a, b, forms, symmetry, start, max_sweeps, seed)


def match_many(
  networks: Sequence[PyTree],
  symmetry: Symmetry,
  *,
  max_sweeps: int = 100,
  seed: int = 0,
) -> list[dict[int, np.ndarray]]:
  """Permutations of several networks that bring them all close to each other.

  Each in turn is matched by `weight_matching` to the mean of the others until none moves,
  so that sum_{i<j} <P_i(A_i), P_j(A_j)> never falls: Git Re-Basin, algorithm 3, but that
  all are matched to the first one to begin with. The merge is the `average` of what
  `apply_permutation` makes of them.

  Args:
    networks: two or more.
    symmetry: of all, from `find_symmetry`.
    max_sweeps: over all networks, and of each matching over all groups.
    seed: of the orders.

  Raises:
    ValueError: for fewer than two, or if the parameters are not those of the symmetry.
  """
  if len(networks) < 2:
    raise ValueError(f"matching is of two networks or more, got {len(networks)}")
  match = partial(weight_matching, symmetry=symmetry, max_sweeps=max_sweeps, seed=seed)
  first, *others = networks
  found = [{g: np.arange(n) for g, n in symmetry.groups.items()}]
  found += [match(first, other) for other in others]
  moved = [
    apply_permutation(network, permutations, symmetry)
    for network, permutations in zip(networks, found, strict=True)
  ]
  rng = np.random.default_rng(seed)
  for _ in range(max_sweeps):
    improved = False
    for i in map(int, rng.permutation(len(networks))):
      mean = average(moved[:i] + moved[i + 1 :])
      now = match(mean, networks[i], start=found[i])
      if any((now[g] != found[i][g]).any() for g in now):
        found[i], improved = now, True
        moved[i] = apply_permutation(networks[i], now, symmetry)
    if not improved:
      break
  return found


def activation_matching(
  fn: Callable,
  params_a: PyTree,
  params_b: PyTree,
  *inputs,
  start: Permutations | None = None,
  max_sweeps: int = 100,
  seed: int = 0,
) -> dict[int, np.ndarray]:
  """Permutations of `params_b` that make its units do what those of `params_a` do.

  argmin_P sum ||Z_A - P(Z_B)||^2 over activations Z on the inputs: Git Re-Basin, section
  3.1 (Li et al., "Convergent Learning", 2016, https://arxiv.org/abs/1511.07543). The
  activations are what `fn` multiplies by weights or by each other: every operand of a
  matrix product or a convolution that depends on the inputs. A group that none of these
  has stays as it is.

  Args:
    fn: the function of (params, *inputs) that `find_symmetry` was or would be given.
    params_a: the network that stays.
    params_b: the one to permute.
    *inputs: one batch; all its activations are held in memory.
    start: permutations to start from. If None every group is first matched once, the
      one that most is known of first, by what no permutation of the others changes.
    max_sweeps: over all groups.
    seed: of the order of groups.
  """
  symmetry, sites = trace(fn, params_a, *inputs)
  require_params(params_b, symmetry)
  sites = [site for site in sites if any(map(groups_of, site.forms))]
  get = jax.jit(lambda params: activations(fn, sites, params, *inputs))
  forms = [site.forms for site in sites]
  return _ascend(get(params_a), get(params_b), forms, symmetry, start, max_sweeps, seed)


def activations(
  fn: Callable, sites: list[Site], params: PyTree, *inputs
) -> list[Array]:
  """The operands at `sites`, from `trace`, when `fn(params, *inputs)` is computed."""
  program = jax.make_jaxpr(fn)(params, *inputs)
  found: dict[tuple[int, int], Array] = {}
  wanted = {(site.equation, site.operand) for site in sites}
  count = 0

  def rule(eqn, operands):
    nonlocal count
    found.update(
      {(count, i): x for i, x in enumerate(operands) if (count, i) in wanted}
    )
    count += 1
    out = eqn.primitive.bind(*operands, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]

  walk(program, jax.tree.leaves((params, inputs)), lambda value: value, rule)
  return [found[site.equation, site.operand] for site in sites]


def _ascend(a, b, forms: list[Forms], symmetry, start, max_sweeps: int, seed: int):
  """Maximises sum_i <a_i, P(b_i)> over permutations P, one group after another."""
  check_permutations(start or {}, symmetry)
  found = {g: np.arange(n) for g, n in symmetry.groups.items()}
  found |= {g: np.asarray(p) for g, p in (start or {}).items()}
  used = [{g for form in f for g in groups_of(form)} for f in forms]
  keep = [i for i, groups in enumerate(used) if groups]
  a = {i: np.asarray(a[i], np.float32) for i in keep}
  moved = {}
  for i in keep:
    moved[i] = permute_array(np.asarray(b[i], np.float32), found, forms[i])
    release([b[i]])
  b = moved
  touched = {g: t for g in found if (t := [i for i in keep if g in used[i]])}
  if start is None:
    _settle(a, b, forms, found, touched)
  rng = np.random.default_rng(seed)
  for _ in range(max_sweeps):
    improved = False
    for group in map(int, rng.permutation(list(touched))):
      moved = _improve(a, b, forms, group, found[group], touched[group])
      if moved is not None:
        found[group], improved = moved, True
    if not improved:
      break
  return found


def _settle(a, b, forms, found, touched) -> None:
  """A first permutation of every group, the one that most is known of first.

  An array says of a group what no permutation of the groups still to come changes: its
  sums over their axes.
  """
  settled: set[int] = set()

  def known(group):
    beside = lambda form: [f.size for f in form if settled.issuperset(groups_of((f,)))]
    return sum(math.prod(sum(map(beside, forms[i]), [])) for i in touched[group])

  while len(settled) < len(touched):
    group = max((g for g in touched if g not in settled), key=known)
    similarity, _ = _similarity(a, b, forms, group, touched[group], settled)
    _, order = linear_sum_assignment(similarity, maximize=True)
    for i in touched[group]:
      b[i] = permute_array(b[i], {group: order}, forms[i])
    found[group] = order
    settled.add(group)


def _improve(a, b, forms, group: int, now: np.ndarray, touched: list[int]):
  """A better permutation of one group, or None; `b` is permuted along."""
  similarity, twice = _similarity(a, b, forms, group, touched, None)
  _, order = linear_sum_assignment(similarity, maximize=True)
  gain = similarity[np.arange(len(now)), order].sum() - np.trace(similarity)
  if gain <= 1e-6 * np.abs(similarity).max() * len(now):
    return None
  new = {i: permute_array(b[i], {group: order}, forms[i]) for i in touched}
  if twice and sum(_inner(a[i], new[i]) - _inner(a[i], b[i]) for i in touched) <= 0:
    return None
  b.update(new)
  return now[order]


def _inner(x: np.ndarray, y: np.ndarray) -> float:
  return float(np.vdot(x, y))


def _similarity(a, b, forms, group: int, touched: list[int], settled: Settled):
  """Inner products of every unit of `a` with every one of `b`.

  Also whether an array has the group twice, which makes them a linearisation.
  """
  out: Any = 0.0
  twice = False
  for i in touched:
    rows = [_rows(x[i], forms[i], group, settled) for x in (a, b)]
    for n, (x, y) in enumerate(zip(*rows, strict=True)):
      out = out + x @ y.T
      twice |= n > 0
    release([a[i]])
  return out, twice


def _rows(x: np.ndarray, forms: Forms, group: int, settled: Settled):
  """For each place where a group is in an array: [positions, all that is beside]."""
  for d, form in enumerate(forms):
    if group in groups_of(form):
      y = x
      for e, other in enumerate(forms):
        if e != d:
          y = _sum_loose(y, e, other, settled)
      yield from _rows_of_axis(y, d, form, group, settled)


def _sum_loose(x: np.ndarray, d: int, form: Form, settled: Settled) -> np.ndarray:
  """Sums over the factors of an axis that hold a group that is not settled yet."""
  if settled is None or settled.issuperset(groups_of(form)):
    return x
  x = _split(x, d, form)
  loose = (i for i, f in enumerate(form, d) if not settled.issuperset(groups_of((f,))))
  x = x.sum(tuple(loose), keepdims=True)
  return x.reshape(*x.shape[:d], -1, *x.shape[d + len(form) :])


def _split(x: np.ndarray, d: int, form: Form) -> np.ndarray:
  return x.reshape(*x.shape[:d], *(f.size for f in form), *x.shape[d + 1 :])


def _rows_of_axis(x, d: int, form: Form, group: int, settled: Settled):
  for i, factor in enumerate(form):
    if group not in groups_of((factor,)):
      continue
    before, after = form[:i], form[i + 1 :]
    y = _split(x, d, form)
    y = y.reshape(*x.shape[:d], -1, factor.size, *y.shape[d + i + 1 :])
    y = _sum_loose(y, d, before, settled)
    y = y.reshape(*y.shape[: d + 2], -1, *x.shape[d + 1 :])
    y = _sum_loose(y, d + 2, after, settled)
    if isinstance(factor, Pieces):
      start = 0
      for piece in factor.axes:
        stop = start + form_size(piece)
        part = y[(slice(None),) * (d + 1) + (slice(start, stop),)]
        yield from _rows_of_axis(part, d + 1, piece, group, settled)
        start = stop
    else:
      yield np.moveaxis(y, d + 1, 0).reshape(factor.size, -1)
