"""How operations that only move data carry permutations: rules for `equivariance`.

Reshapes, transposes, concatenations, slices, padding, look-ups in a table: what each does
to the axes of its operands.
"""

from mmgen_jax.fusion.axes import (
  Axis,
  axis_size,
  concatenate,
  cut,
  fix,
  new_axis,
  regroup,
  unify,
)

Axes = list[Axis]  # of one array


def unknown(eqn, operands):
  """Fixes all that an operation touches: right for every one."""
  for axis in sum(operands, []):
    fix(axis, eqn.primitive.name)
  return [fixed_axes(v, eqn.primitive.name) for v in eqn.outvars]


def fixed_axes(var, why: str) -> Axes:
  """Axes of a result, none of which can be permuted."""
  return [new_axis(n, why) for n in getattr(var.aval, "shape", ())]


def unified(axes: list[Axis]) -> Axis:
  """The first of several axes, all made one."""
  for other in axes[1:]:
    unify(axes[0], other)
  return axes[0]


def _broadcast_in_dim(eqn, operands):
  shape = eqn.params["shape"]
  out = [new_axis(n) for n in shape]  # nothing changes along a new axis
  for axis, d in zip(operands[0], eqn.params["broadcast_dimensions"], strict=True):
    if axis_size(axis) == shape[d]:
      out[d] = axis
  return [out]


def _reshape(eqn, operands):
  if eqn.params.get("dimensions") is not None:
    return unknown(eqn, operands)
  return [regroup(sum(operands[0], []), list(eqn.params["new_sizes"]))]


def _squeeze(eqn, operands):
  gone = eqn.params["dimensions"]
  return [[a for d, a in enumerate(operands[0]) if d not in gone]]


def _transpose(eqn, operands):
  return [[operands[0][d] for d in eqn.params["permutation"]]]


def _concatenate(eqn, operands):
  at = eqn.params["dimension"]
  out = []
  for d, axes in enumerate(zip(*operands, strict=True)):
    out.append(concatenate(list(axes)) if d == at else unified(list(axes)))
  return [out]


def _stack(eqn, operands):
  out = [unified(list(axes)) for axes in zip(*operands, strict=True)]
  out.insert(eqn.params["axis"], new_axis(len(operands), "it stacks single entries"))
  return [out]


def _unstack(eqn, operands):
  x, d = operands[0], eqn.params["axis"]
  fix(x[d], "unstack")
  return [[*x[:d], *x[d + 1 :]] for _ in eqn.outvars]


def _tile(eqn, operands):
  """Copies of an axis: nothing changes along their number."""
  reps = eqn.params["reps"]
  return [[new_axis(n) + x for n, x in zip(reps, operands[0], strict=True)]]


def _part(axis: Axis, start: int, stop: int) -> Axis:
  """The positions from `start` to `stop`, of which there are some."""
  if stop < axis_size(axis):
    axis = cut(axis, stop)[0]
  return cut(axis, start)[1] if start else axis


def _split(eqn, operands):
  x, d, start, results = operands[0], eqn.params["axis"], 0, []
  for n in map(int, eqn.params["sizes"]):
    part = _part(x[d], start, start + n) if n else new_axis(0)
    results.append([*x[:d], part, *x[d + 1 :]])
    start += n
  return results


def _slice(eqn, operands):
  p, out = eqn.params, []
  strides = p["strides"] or [1] * len(operands[0])
  for axis, start, stop, stride in zip(
    operands[0], p["start_indices"], p["limit_indices"], strides, strict=True
  ):
    if stop <= start:
      out.append(new_axis(0))
    elif stride == 1:
      out.append(_part(axis, start, stop))
    else:
      fix(axis, "a strided slice")
      out.append(new_axis(-(-(stop - start) // stride), "a strided slice"))
  return [out]


def _pad(eqn, operands):
  out = []
  for axis, (low, high, inside) in zip(
    operands[0], eqn.params["padding_config"], strict=True
  ):
    if inside or low < 0 or high < 0:
      return unknown(eqn, operands)
    out.append(concatenate([new_axis(low), axis, new_axis(high)]))
  return [out]


def _iota(eqn, operands):
  out = [new_axis(n) for n in eqn.params["shape"]]
  d = eqn.params["dimension"]
  out[d] = new_axis(eqn.params["shape"][d], "iota")
  return [out]


def _gather(eqn, operands):
  """Rows looked up in a table stay in their places; whole axes go along."""
  numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
  table, indices = operands
  fix(indices[-1], "gather")
  pairs = zip(
    numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
  )
  for i, j in pairs:
    unify(table[i], indices[j])
  whole = []
  for d, axis in enumerate(table):
    if d in numbers.operand_batching_dims:
      continue
    if d in numbers.start_index_map or sizes[d] != axis_size(axis):
      fix(axis, "rows that are looked up")
      axis = new_axis(sizes[d], "gather")
    if d not in numbers.collapsed_slice_dims:
      whole.append(axis)
  batch = iter(indices[:-1])
  rank = len(eqn.outvars[0].aval.shape)
  offset = dict(zip(numbers.offset_dims, whole, strict=True))
  return [[offset[d] if d in offset else next(batch) for d in range(rank)]]


REARRANGING = {
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "gather": _gather,
  "iota": _iota,
  "pad": _pad,
  "reshape": _reshape,
  "slice": _slice,
  "split": _split,
  "squeeze": _squeeze,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
  "unstack": _unstack,
}
