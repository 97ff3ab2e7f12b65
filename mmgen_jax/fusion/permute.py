"""Which units of a network may be reordered: found from the program, not written by hand.

Hidden units have no order: permute the columns of one layer and the rows of the next, and
the function is the same. Which axes of which parameters move together is read off the
jaxpr of any function of (params, *inputs): every intermediate value's axes are followed
through every operation (`equivariance`), those that must agree are unified (`axes`), and
what reaches an input, an output or an operation that tells positions apart is fixed. What
is left, the groups, may be permuted, each on its own.

An axis may be a product (heads x features of a head; groups x channels of a group
normalisation; positions x channels before a flattened dense layer) or a concatenation;
its factors and pieces are then groups of their own, or fixed. Of a product, the same
permutation of the second factor serves all positions of the first: units do not get an
order of their own in each head or each group.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Key, PyTree

from mmgen_jax.fusion.axes import Atom, Axis, fix, new_axis, resolve
from mmgen_jax.fusion.equivariance import Axes, constant_axes, propagate, walk
from mmgen_jax.fusion.pages import release
from mmgen_jax.fusion.weight import by_path

Permutations = Mapping[int, Any]  # group -> int [size]; entry i comes from there


class Free(NamedTuple):
  """A factor of an axis that may be permuted, as all of its group are."""

  group: int
  size: int


class Fixed(NamedTuple):
  """A factor of an axis that stays in order, and why."""

  size: int
  why: str


class Pieces(NamedTuple):
  """A factor of an axis that is a concatenation of axes."""

  axes: tuple["Form", ...]

  @property
  def size(self) -> int:
    """Number of positions."""
    return sum(form_size(axis) for axis in self.axes)


Factor = Free | Fixed | Pieces
Form = tuple[Factor, ...]  # of an axis: a row-major product; () has size 1


class Symmetry(NamedTuple):
  """The permutations of parameters that leave a function as it is.

  Attributes:
    groups: sizes; each group is permuted on its own.
    forms: by path of a parameter, the form of each of its axes.
  """

  groups: dict[int, int]
  forms: dict[str, tuple[Form, ...]]


class Site(NamedTuple):
  """Where a program contracts activations: an operation, its operand, its forms."""

  equation: int
  operand: int
  forms: tuple[Form, ...]


def form_size(form: Form) -> int:
  """Number of positions of an axis."""
  return math.prod(factor.size for factor in form)


def find_symmetry(fn: Callable, params: PyTree, *inputs) -> Symmetry:
  """The permutations of `params` that leave `fn(params, *inputs)` as it is.

  Git Re-Basin (Ainsworth, Hayase and Srinivasa, 2023, https://arxiv.org/abs/2209.04836,
  section 2) takes them from a list written by hand for each architecture.

  Args:
    fn: any traceable function, such as a Linen module's `apply`; deterministic.
    params: arrays or ShapeDtypeStructs.
    *inputs: likewise; their axes, and those of the result, keep their order.
  """
  return trace(fn, params, *inputs)[0]


class _Value(NamedTuple):
  axes: Axes
  data: bool  # whether it depends on the inputs


def trace(fn: Callable, params: PyTree, *inputs) -> tuple[Symmetry, list[Site]]:
  """`find_symmetry`, and where the program contracts what depends on the inputs."""
  program = jax.make_jaxpr(fn)(params, *inputs)
  names = list(by_path(params))
  shapes = [v.aval.shape for v in program.jaxpr.invars]
  known = [[new_axis(n) for n in shape] for shape in shapes[: len(names)]]
  given = [[new_axis(n, "an input") for n in shape] for shape in shapes[len(names) :]]
  sites: list[tuple[int, int, Axes]] = []
  count = 0

  def rule(eqn, values):
    nonlocal count
    if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
      sites.extend((count, i, v.axes) for i, v in enumerate(values) if v.data)
    count += 1
    data = any(v.data for v in values)
    return [_Value(x, data) for x in propagate(eqn, [v.axes for v in values])]

  constant = lambda value: _Value(constant_axes(value), False)
  args = [_Value(x, False) for x in known] + [_Value(x, True) for x in given]
  for value in walk(program, args, constant, rule):
    for axis in value.axes:
      fix(axis, "an output")
  groups: dict[Atom, int] = {}
  forms = {
    name: tuple(_form(axis, groups, grow=True) for axis in axes)
    for name, axes in zip(names, known, strict=True)
  }
  symmetry = Symmetry({g: atom.size for atom, g in groups.items()}, forms)
  return symmetry, [
    Site(equation, operand, tuple(_form(axis, groups, grow=False) for axis in axes))
    for equation, operand, axes in sites
  ]


def _form(axis: Axis, groups: dict[Atom, int], *, grow: bool) -> Form:
  out: list[Factor] = []
  for atom in resolve(axis):
    if atom.pieces is not None and not atom.fixed:
      form = Pieces(tuple(_form(piece, groups, grow=grow) for piece in atom.pieces))
    elif atom.fixed or not (grow or atom in groups):
      form = Fixed(atom.size, atom.fixed or "no parameter has it")
    else:
      form = Free(groups.setdefault(atom, len(groups)), atom.size)
    out.append(form)
  return tuple(out)


def groups_of(form: Form) -> list[int]:
  """The groups in an axis, in order."""
  out: list[int] = []
  for factor in form:
    if isinstance(factor, Free):
      out.append(factor.group)
    elif isinstance(factor, Pieces):
      out += sum(map(groups_of, factor.axes), [])
  return out


def permutable_fraction(symmetry: Symmetry, params: PyTree) -> float:
  """The part of all parameters that some permutation moves."""
  sizes = {name: math.prod(x.shape) for name, x in by_path(params).items()}
  moved = [n for name, n in sizes.items() if any(map(groups_of, symmetry.forms[name]))]
  return sum(moved) / sum(sizes.values())


def describe(symmetry: Symmetry) -> str:
  """One line per parameter: its axes, each fixed (and why) or in groups g0, g1, ..."""

  def word(form: Form) -> str:
    words = []
    for factor in form:
      if isinstance(factor, Free):
        words.append(f"g{factor.group}[{factor.size}]")
      elif isinstance(factor, Fixed):
        words.append(f"{factor.size} ({factor.why})")
      else:
        words.append("[" + " + ".join(map(word, factor.axes)) + "]")
    return " x ".join(words) or "1"

  return "\n".join(
    f"{name}: {', '.join(map(word, forms)) or 'a scalar'}"
    for name, forms in symmetry.forms.items()
  )


def random_permutations(
  key: Key[Array, ""], symmetry: Symmetry
) -> dict[int, Int[Array, "n"]]:
  """A uniform permutation of every group."""
  return {
    group: jax.random.permutation(jax.random.fold_in(key, group), size)
    for group, size in symmetry.groups.items()
  }


def apply_permutation(
  params: PyTree, permutations: Permutations, symmetry: Symmetry
) -> PyTree:
  """The same function with its units reordered: entry i of a group is what was p[i].

  Groups that `permutations` does not name stay as they are.

  Raises:
    ValueError: if the parameters are not those of the symmetry, or a permutation is
      none of its group.
  """
  check_permutations(permutations, symmetry)
  require_params(params, symmetry)
  moved = []
  for name, x in by_path(params).items():
    moved.append(permute_array(x, permutations, symmetry.forms[name]))
    if moved[-1] is not x:
      release([x])
  return jax.tree.structure(params).unflatten(moved)


def permute_array(x, permutations: Permutations, forms: tuple[Form, ...]):
  """An array with every axis reordered as its form says."""
  for d, form in enumerate(forms):
    if any(group in permutations for group in groups_of(form)):
      x = x.take(_index(form, permutations), axis=d)
  return x


def _index(form: Form, permutations: Permutations):
  """Where each position of an axis comes from."""
  index = np.zeros(1, np.int32)
  for factor in form:
    if isinstance(factor, Free) and factor.group in permutations:
      own = permutations[factor.group]
    elif isinstance(factor, Pieces):
      starts = np.cumsum([0, *map(form_size, factor.axes)])
      parts = [_index(axis, permutations) for axis in factor.axes]
      xp = jnp if any(isinstance(p, jax.Array) for p in parts) else np
      own = xp.concatenate([s + p for s, p in zip(starts, parts, strict=False)])
    else:
      own = np.arange(factor.size, dtype=np.int32)
    index = (index[:, None] * factor.size + own).reshape(-1)
  return index


def require_params(params: PyTree, symmetry: Symmetry) -> None:
  """ValueError unless these are the parameters that the symmetry was found for."""
  shapes = {name: tuple(x.shape) for name, x in by_path(params).items()}
  want = {name: tuple(map(form_size, f)) for name, f in symmetry.forms.items()}
  for name in sorted(shapes | want):
    if shapes.get(name) != want.get(name):
      raise ValueError(
        f"parameter {name!r} has shape {shapes.get(name)}, the symmetry was found for"
        f" {want.get(name)} (None: there is none)"
      )


def check_permutations(permutations: Permutations, symmetry: Symmetry) -> None:
  """ValueError unless each is a permutation of a group; not under a trace."""
  for group, p in permutations.items():
    if group not in symmetry.groups:
      raise ValueError(f"there is no group {group}; groups: {list(symmetry.groups)}")
    if isinstance(p, Tracer):
      continue
    n = symmetry.groups[group]
    if np.shape(p) != (n,) or not np.array_equal(np.sort(np.asarray(p)), np.arange(n)):
      raise ValueError(f"group {group} needs a permutation of 0 to {n - 1}, got {p}")
