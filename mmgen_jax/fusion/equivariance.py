"""How each JAX operation carries permutations from its operands to its results.

A rule takes the axes of an operation's operands, unifies or fixes what it must, and gives
the axes of the results. It promises: if every operand is permuted as its axes say, so is
every result. An operation without a rule fixes all that it touches, which is always
right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mmgen_jax.fusion.axes import axis_size, fix, new_axis, regroup, unify
from mmgen_jax.fusion.rearrange import (
  REARRANGING,
  Axes,
  fixed_axes,
  unified,
  unknown,
)

ELEMENTWISE = frozenset(
  """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj
  convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
  expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min
  mul name ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n
  shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
  stop_gradient sub tan tanh xor""".split()
)
REDUCTIONS = frozenset(
  f"reduce_{x}" for x in ("sum", "max", "min", "prod", "and", "or", "xor")
)
CALLS = {  # operations that are another program: the parameter that holds it
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "closed_call": "call_jaxpr",
  "core_call": "call_jaxpr",
  "remat2": "jaxpr",
  "checkpoint": "jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def walk(program, args: Sequence[Any], constant: Callable, rule: Callable) -> list:
  """Evaluates a jaxpr in any domain, entering calls.

  Args:
    program: a Jaxpr or ClosedJaxpr.
    args: of the domain.
    constant: array -> the domain.
    rule: (equation, operands) -> results, for every operation that is not a call.
  """
  jaxpr = getattr(program, "jaxpr", program)
  consts = [constant(c) for c in getattr(program, "consts", ())]
  env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
  get = lambda v: constant(v.val) if isinstance(v, core.Literal) else env[v]
  for eqn in jaxpr.eqns:
    operands = [get(v) for v in eqn.invars]
    inner = CALLS.get(eqn.primitive.name)
    if inner in eqn.params:
      results = walk(eqn.params[inner], operands, constant, rule)
    else:
      results = rule(eqn, operands)
    env.update(zip(eqn.outvars, results, strict=True))
  return [get(v) for v in jaxpr.outvars]


def constant_axes(value) -> Axes:
  """Axes of a constant: free where it does not change, fixed elsewhere."""
  why = "a constant changes along it"
  if not np.size(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
    return [new_axis(n, why) for n in np.shape(value)]
  value = np.asarray(value)
  same = lambda d: bool(np.all(value == value.take([0], d)))
  return [new_axis(n, "" if same(d) else why) for d, n in enumerate(value.shape)]


def propagate(eqn, operands: list[Axes]) -> list[Axes]:
  """The axes of an operation's results."""
  rule = RULES.get(eqn.primitive.name, unknown)
  return rule(eqn, operands)


def _elementwise(eqn, operands):
  """Scalars, and axes of size 1, take the size of the others."""
  shape = eqn.outvars[0].aval.shape
  full = [x for x in operands if len(x) == len(shape)]
  out = [
    unified([x[d] for x in full if axis_size(x[d]) == n]) if n != 1 else []
    for d, n in enumerate(shape)
  ]
  return [out] * len(eqn.outvars)


def _reduce(eqn, operands):
  gone = eqn.params["axes"]
  return [[a for d, a in enumerate(x) if d not in gone] for x in operands]


def _arg_reduce(eqn, operands):
  for d in eqn.params["axes"]:
    fix(operands[0][d], eqn.primitive.name)
  return _reduce(eqn, operands)


def _each(eqn, operands):
  return operands


def _along(parameter: str):
  """A rule of operations that order matters to along some axes, and only there."""

  def rule(eqn, operands):
    dims = eqn.params[parameter]
    dims = (dims,) if isinstance(dims, int) else dims
    for x in operands:
      for d in dims:
        fix(x[d], eqn.primitive.name)
    out = [unified(list(same)) for same in zip(*operands, strict=True)]
    return [out] * len(eqn.outvars)

  return rule


def _dot_general(eqn, operands):
  (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
  lhs, rhs = operands
  for i, j in zip([*lc, *lb], [*rc, *rb], strict=True):
    unify(lhs[i], rhs[j])
  free = lambda x, used: [a for d, a in enumerate(x) if d not in used]
  batch = [lhs[i] for i in lb]
  return [batch + free(lhs, {*lc, *lb}) + free(rhs, {*rc, *rb})]


def _conv(eqn, operands):
  """Channels are contracted, in groups or not; positions stay where they are."""
  p, (lhs, rhs) = eqn.params, operands
  if p["batch_group_count"] != 1:
    return unknown(eqn, operands)
  numbers, groups = p["dimension_numbers"], p["feature_group_count"]
  lhs_of, rhs_of, out_of = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
  channels, kernel_in, kernel_out = lhs[lhs_of[1]], rhs[rhs_of[1]], rhs[rhs_of[0]]
  group, within = regroup(channels, [groups, axis_size(channels) // groups])
  unify(within, kernel_in)
  unify(group, regroup(kernel_out, [groups, axis_size(kernel_out) // groups])[0])
  out = fixed_axes(eqn.outvars[0], "positions of a convolution")
  out[out_of[0]], out[out_of[1]] = lhs[lhs_of[0]], kernel_out
  for k, (i, j, o) in enumerate(zip(lhs_of[2:], rhs_of[2:], out_of[2:], strict=True)):
    moves = p["window_strides"][k], p["lhs_dilation"][k], *p["padding"][k]
    if not rhs[j] and moves == (1, 1, 0, 0):
      out[o] = lhs[i]
    else:
      fix(lhs[i] + rhs[j], "positions of a convolution")
  return [out]


def _pool(eqn, operands):
  p, x = eqn.params, operands[0]
  out = fixed_axes(eqn.outvars[0], "positions of a window")
  for d, axis in enumerate(x):
    window = p["window_dimensions"][d], p["window_strides"][d], *p["padding"][d]
    if window == (1, 1, 0, 0) and p["base_dilation"][d] == 1:
      out[d] = axis
    else:
      fix(axis, "positions of a window")
  return [out]


def _scan(eqn, operands):
  """The body once: what it carries comes out as it went in.

  Constants come first, then what is carried, then what is stepped over, of which the body
  sees one axis less; so with its results.
  """
  body, length = eqn.params["jaxpr"], eqn.params["length"]
  why = "steps of a scan"
  stepped = lambda x, y: x.aval.ndim > y.aval.ndim
  over = sum(map(stepped, eqn.invars, body.jaxpr.invars))
  carry = len(eqn.outvars) - sum(map(stepped, eqn.outvars, body.jaxpr.outvars))
  rest = len(operands) - over
  for x in operands[rest:]:
    fix(x[0], why)
  inside = operands[:rest] + [x[1:] for x in operands[rest:]]
  out = walk(body, inside, constant_axes, propagate)
  for x, y in zip(inside[rest - carry : rest], out[:carry], strict=True):
    _unify_arrays(x, y)
  return out[:carry] + [[new_axis(length, why), *y] for y in out[carry:]]


def _cond(eqn, operands):
  first, *others = [
    walk(branch, operands[1:], constant_axes, propagate)
    for branch in eqn.params["branches"]
  ]
  for results in others:
    for x, y in zip(first, results, strict=True):
      _unify_arrays(x, y)
  return first


def _unify_arrays(x: Axes, y: Axes) -> None:
  for a, b in zip(x, y, strict=True):
    unify(a, b)


RULES = {
  "argmax": _arg_reduce,
  "argmin": _arg_reduce,
  "cond": _cond,
  "conv_general_dilated": _conv,
  "cumlogsumexp": _along("axis"),
  "cummax": _along("axis"),
  "cummin": _along("axis"),
  "cumprod": _along("axis"),
  "cumsum": _along("axis"),
  "dot_general": _dot_general,
  "optimization_barrier": _each,
  "reduce_window_max": _pool,
  "reduce_window_min": _pool,
  "reduce_window_sum": _pool,
  "rev": _along("dimensions"),
  "scan": _scan,
  "sort": _along("dimension"),
  **dict.fromkeys(ELEMENTWISE, _elementwise),
  **dict.fromkeys(REDUCTIONS, _reduce),
  **REARRANGING,
}
