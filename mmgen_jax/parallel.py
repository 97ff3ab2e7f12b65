"""Devices: one mesh, and the two ways (jit, pmap) of compiling the same pure step.

A step is `step(state, batch, key, *, axis=None) -> (state, metrics)`. With `axis=None`
it sees the global batch (jit over a mesh, the default and the pod path); with
`axis="data"` it sees one device's part (pmap). `pmean`, `gather` and `example_keys` are
identities, or see the whole batch, when `axis` is None, so one step serves both.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from mmgen_jax.state import State

AXIS = "data"
Mode = Literal["jit", "pmap"]


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """A one-axis mesh over all devices.

  The axis is Auto: JAX's default, Explicit, raises in `nn.Embed` and in products of a
  sharded batch with itself.
  """
  devices = jax.devices() if devices is None else list(devices)
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def pmean(tree, axis: str | None):
  """The mean of `tree` over devices; `tree` itself when `axis` is None."""
  return tree if axis is None else lax.pmean(tree, axis)


def gather(x: Array, axis: str | None) -> Array:
  """The global batch [B, ...] from each device's part [b, ...]."""
  return x if axis is None else lax.all_gather(x, axis, tiled=True)


def roll(x: Array, axis: str | None) -> Array:
  """What the example before has, of the global batch; the first has the last's."""
  if axis is None:
    return jnp.roll(x, 1, 0)
  n = lax.axis_size(axis)
  before = lax.ppermute(x[-1:], axis, [(i, (i + 1) % n) for i in range(n)])
  return jnp.concatenate([before, x[:-1]])


def example_keys(key: Key[Array, ""], n: int, axis: str | None) -> Key[Array, "n"]:
  """One key per example, from its index in the global batch.

  So the noise of an example does not depend on how many devices there are.
  """
  index = jnp.arange(n, dtype=jnp.uint32)
  if axis is not None:
    index += lax.axis_index(axis).astype(jnp.uint32) * n
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def mean_of_microbatches(
  fn: Callable, *, accumulate: int, axis: str | None
) -> Callable:
  """`fn(params, batch, keys) -> tree`, as a mean over microbatches and devices.

  Gradient accumulation: `fn` returns gradients and metrics that are means over examples.
  Microbatch j holds the examples whose index is j modulo `accumulate`, so a batch that
  is sharded over devices needs no communication to be cut.
  """

  def mean(params, batch, keys):
    if accumulate == 1:
      return pmean(fn(params, batch, keys), axis)
    cut = lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)
    parts = jax.tree.map(cut, (batch, keys))
    shapes = jax.eval_shape(
      lambda p: fn(params, *p), jax.tree.map(lambda x: x[0], parts)
    )
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, fn(params, *part)), None)
    total, _ = lax.scan(add, total, parts)
    return pmean(jax.tree.map(lambda x: x / accumulate, total), axis)

  return mean


def guard_names(metrics) -> list[str]:
  """The metrics that the non-finite guard watches, in its order."""
  return sorted(name for name in metrics if not name.startswith("guard/"))


def _guarded(step: Callable, on_nonfinite: str) -> Callable:
  """`step`, made to keep the old state where a loss or a gradient norm is not finite."""

  def guarded(state: State, batch, key, axis):
    new, metrics = step(state, batch, key, axis=axis)
    bad = ~jnp.isfinite(jnp.stack([metrics[n] for n in guard_names(metrics)]))
    metrics["guard/nonfinite"] = jnp.where(bad.any(), 1 + jnp.argmax(bad), 0)
    if on_nonfinite == "skip":
      state = state.replace(step=state.step + 1)
    # One conditional, not a select per leaf: those double the time to compile.
    state = lax.cond(bad.any(), lambda old, new: old, lambda old, new: new, state, new)
    return state, metrics

  return guarded


def compile_step(
  step: Callable,
  mesh: Mesh,
  mode: Mode = "jit",
  *,
  fetch: Callable[[Any, Any], dict] = lambda data, inputs: inputs,
  updates: int = 1,
  on_nonfinite: Literal["stop", "skip", "rollback"] = "stop",
  scan: bool | None = None,
  compiler_options: Mapping[str, Any] | None = None,
) -> Callable:
  """`run(state, data, inputs, key) -> (state, metrics)`: `updates` steps in one dispatch.

  Args:
    step: a pure train step.
    mesh: from `make_mesh`.
    mode: "jit" (global view) or "pmap" (one device's view).
    fetch: `fetch(data, inputs_of_one_update) -> batch`, traced with the step.
    updates: how many updates one call makes, by `lax.scan`.
    on_nonfinite: what becomes of an update whose metrics are not all finite. Its state
      is dropped in any case; "skip" counts the step all the same. With the others the
      rest of the dispatch runs on from the old state and is worth nothing: the loop
      must read the metrics before it keeps anything.
    scan: whether the updates are one compiled `lax.scan`, or compiled once and called
      `updates` times. None: a scan, but on CPUs, where XLA runs convolutions inside a
      loop an order of magnitude slower than outside.
    compiler_options: of XLA, for this step alone, under "jit".

  Returns:
    `run`, which donates `state`. `inputs` come from `put_inputs`; metrics have a leading
    axis [updates], and "guard/nonfinite" among them: 0, or 1 + the position of the first
    metric that was not finite in `guard_names(metrics)`.

  Raises:
    ValueError: for an unknown mode or policy.
  """
  if on_nonfinite not in ("stop", "skip", "rollback"):
    raise ValueError(
      f"nonfinite must be 'stop', 'skip' or 'rollback', got {on_nonfinite!r}"
    )
  guarded = _guarded(step, on_nonfinite)

  scan = mesh.devices.flat[0].platform != "cpu" if scan is None else scan

  def run(state, data, inputs, key, axis=None):
    key = jax.random.fold_in(key, state.extra["attempt"])
    one = lambda state, x: guarded(state, fetch(data, x), key, axis)
    if scan:
      return lax.scan(one, state, inputs, length=updates)
    return one(state, inputs)

  batch_axis = 1 if scan else 0  # of inputs, in the global view
  if mode == "jit":
    whole = NamedSharding(mesh, P())
    split = NamedSharding(mesh, P(*[None] * batch_axis, AXIS))
    compiled = jax.jit(
      run,
      in_shardings=(whole, whole, split, whole),
      out_shardings=(whole, whole),
      donate_argnums=0,
      compiler_options=dict(compiler_options or {}),
    )
  elif mode == "pmap":
    compiled = jax.pmap(
      partial(run, axis=AXIS),
      axis_name=AXIS,
      in_axes=(None, None, 0, None),
      out_axes=(None, None),  # type: ignore[arg-type]
      donate_argnums=0,
      devices=list(mesh.devices.flat) if jax.process_count() == 1 else None,
    )
  else:
    raise ValueError(f"parallel must be 'jit' or 'pmap', got {mode!r}")
  if scan:
    return compiled

  def run_each(state, data, inputs, key):
    history = []
    for u in range(updates):
      at = (slice(None), u) if mode == "pmap" else u
      x = jax.tree.map(itemgetter(at), inputs)
      state, metrics = compiled(state, data, x, key)
      history.append(metrics)
    return state, jax.tree.map(lambda *x: jnp.stack(x), *history)

  return run_each


def put_replicated(tree, mesh: Mesh):
  """`tree` on every device of the mesh; every process passes the same values."""
  sharding = NamedSharding(mesh, P())

  def put(x):
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    if jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
      data = put(np.asarray(jax.random.key_data(x)))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, tree)


def put_inputs(inputs, mesh: Mesh, mode: Mode = "jit"):
  """This process's inputs [updates, b_local, ...] as `compile_step`'s `run` wants them.

  Raises:
    ValueError: if the local batch does not divide over the local devices.
  """
  local = len(mesh.local_devices)

  def put(x):
    if x.shape[1] % local:
      raise ValueError(
        f"batch_size per process is {x.shape[1]}; it must divide over {local} devices"
      )
    if mode == "pmap":
      return np.moveaxis(x.reshape(len(x), local, -1, *x.shape[2:]), 1, 0)
    sharding = NamedSharding(mesh, P(None, AXIS))
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put, inputs)
