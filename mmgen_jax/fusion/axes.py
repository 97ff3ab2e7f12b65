"""Axes of arrays as terms: what must be permuted alike, found by unification.

An axis is a row-major product of atoms, an atom a set of positions that one permutation
may reorder. What a program does to arrays refines atoms: a reshape shows that one is a
product (heads x features of a head), a concatenation that it is a sum (one piece, then
the next), an addition that two are the same. What cannot be permuted is fixed.

Refinement only ever replaces the permutations of an atom by a subset of them, and what
is held to be equal stays so: the unification of Robinson, "A Machine-Oriented Logic Based
on the Resolution Principle", 1965, with products and sums in the place of terms.
"""

import dataclasses
import math


@dataclasses.dataclass(eq=False, slots=True)
class Atom:
  """A part of an axis.

  Attributes:
    size: number of positions, at least 2.
    fixed: why it cannot be permuted; "" if it can.
    factors: if known, the axis that it is (one atom: it has been found equal to it).
    pieces: if known, the axes that it is the concatenation of.
  """

  size: int
  fixed: str = ""
  factors: list["Atom"] | None = None
  pieces: list[list["Atom"]] | None = None


Axis = list[Atom]  # of size 1 if it is empty


def new_axis(size: int, fixed: str = "") -> Axis:
  """One atom, or none for a size of 1."""
  return [] if size == 1 else [Atom(size, fixed)]


def axis_size(axis: Axis) -> int:
  """Number of positions."""
  return math.prod(atom.size for atom in axis)


def resolve(axis: Axis) -> Axis:
  """The axis with every atom replaced by the factors that it is known to have."""
  out = []
  for atom in axis:
    out += [atom] if atom.factors is None else resolve(atom.factors)
  return out


def fix(axis: Axis, why: str) -> None:
  """Forbids to permute an axis."""
  for atom in resolve(axis):
    if atom.pieces is not None:
      for piece in atom.pieces:
        fix(piece, why)
    atom.fixed = atom.fixed or why


def unify(x: Axis, y: Axis) -> None:
  """Makes two axes of equal size one and the same; where they cannot be, fixes both."""
  while True:
    x, y = resolve(x), resolve(y)
    while x and y and x[0] is y[0]:
      x, y = x[1:], y[1:]
    if not x:
      return
    small, large = sorted((x[0], y[0]), key=lambda atom: atom.size)
    if small.size == large.size:
      _merge(small, large)
    elif small.size and large.size % small.size == 0:
      _split(large, small.size)
    else:
      fix(x + y, "two ways of splitting it do not fit")
      return


def _merge(a: Atom, b: Atom) -> None:
  if a.pieces is None:
    a, b = b, a
  why = a.fixed or b.fixed
  if a.pieces is not None and b.pieces is not None:
    _unify_pieces(list(a.pieces), list(b.pieces))
  if why:
    fix([a, b], why)
  b.factors = [a]


def _unify_pieces(xs: list[Axis], ys: list[Axis]) -> None:
  while xs:
    at = min(axis_size(xs[0]), axis_size(ys[0]))
    for pieces in (xs, ys):
      if axis_size(pieces[0]) > at:
        pieces[:1] = cut(pieces[0], at)
    unify(xs.pop(0), ys.pop(0))


def _split(atom: Atom, first: int) -> None:
  """Finds an atom to be a product: `first` times the rest."""
  rest = atom.size // first
  pieces = atom.pieces
  if pieces is not None and all(axis_size(p) % rest == 0 for p in pieces):
    # Pieces of whole rows: a concatenation of rows, times what a row is.
    row, rows = new_axis(rest), []
    for piece in pieces:
      several, one = regroup(piece, [axis_size(piece) // rest, rest])
      unify(row, one)
      rows.append(several)
    atom.factors = concatenate(rows) + row
    return
  if pieces is not None:
    fix([atom], "a concatenation is reshaped across its pieces")
  atom.factors = [Atom(first, atom.fixed), Atom(rest, atom.fixed)]


def regroup(axis: Axis, sizes: list[int]) -> list[Axis]:
  """The same positions, in the same order, as a product of axes of these sizes."""
  if 0 in sizes:
    fix(axis, "it is empty")
    return [new_axis(n, "it is empty") for n in sizes]
  atoms, sizes = resolve(axis), list(sizes)
  out: list[Axis] = []
  while sizes:
    got, size, want = [], 1, sizes.pop(0)
    while size < want:
      atom = atoms.pop(0)
      left = want // size  # whole, as is everything taken so far
      if left % atom.size == 0:
        got.append(atom)
        size *= atom.size
      elif atom.size % left == 0:
        _split(atom, left)
        atoms = resolve([atom]) + atoms
      else:
        break
    if size == want:
      out.append(got)
      continue
    # The boundaries do not fit: fix everything up to the next that do.
    got.append(atom)
    size, dims = axis_size(got), [want]
    while size != math.prod(dims):
      if size < math.prod(dims):
        got.append(atoms.pop(0))
        size *= got[-1].size
      else:
        dims.append(sizes.pop(0))
    why = "a reshape splits it unevenly"
    fix(got, why)
    out += [new_axis(n, why) for n in dims]
  return out


def concatenate(axes: list[Axis]) -> Axis:
  """One axis after another."""
  axes = [axis for axis in axes if axis_size(axis)]
  if len(axes) == 1:
    return axes[0]
  size = sum(map(axis_size, axes))
  if size == len(axes):
    return new_axis(size, "it stacks single entries")
  return [Atom(size, pieces=axes)]


def cut(axis: Axis, at: int) -> list[Axis]:
  """The positions before `at`, and the rest; both must be some."""
  atoms = resolve(axis)
  size = axis_size(atoms)
  if len(atoms) > 1 or atoms[0].fixed:
    why = atoms[0].fixed or "a slice cuts across its factors"
    fix(atoms, why)
    return [new_axis(at, why), new_axis(size - at, why)]
  if atoms[0].pieces is None:
    atoms[0].pieces = [new_axis(at), new_axis(size - at)]
    return list(atoms[0].pieces)
  left, right = [], list(atoms[0].pieces)
  while at:
    if axis_size(right[0]) > at:
      right[:1] = cut(right[0], at)
    left.append(right.pop(0))
    at -= axis_size(left[-1])
  return [concatenate(left), concatenate(right)]
