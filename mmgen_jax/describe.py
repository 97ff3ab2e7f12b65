"""What a config would run, and what that costs; nothing is computed or written."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.provenance import flatten
from mmgen_jax.steps import STEPS


def describe(config) -> str:
  """Every option, modalities, parameters per network and FLOPs per step, as text."""
  lines = [f"config {config_lib.fingerprint(config)}"]
  lines += [f"  {k} = {v!r}" for k, v in sorted(flatten(config.to_dict()).items())]
  spec = datasets.spec(config.data.name, **config.data.options)
  lines.append(f"data {spec.name}")
  for name, m in sorted(spec.modalities.items()):
    lines.append(f"  {name}: {m.kind} {m.shape}, {m.likelihood}")
  lines += [f"  label {k}: {len(v)} values" for k, v in spec.label_names.items()]
  cost = costs(config, spec)
  lines.append("parameters")
  lines += [f"  {name}: {n:,}" for name, n in cost["parameters"].items()]
  megabytes = cost["state_bytes"] / 1e6
  lines.append(f"state (what a checkpoint holds): {megabytes:,.1f} MB")
  flops = cost["flops_per_step"]
  flops_text = f"{flops / 1e9:,.3f} GFLOP" if flops else "unknown on this backend"
  lines.append(f"one step of {config.batch_size} examples: {flops_text}")
  lines.append(
    f"devices: {jax.device_count()} x {jax.devices()[0].device_kind},"
    f" {jax.process_count()} processes"
  )
  return "\n".join(lines)


def costs(config, spec: datasets.Spec) -> dict[str, Any]:
  """{"parameters": {network: count}, "state_bytes", "flops_per_step"}.

  FLOPs are XLA's count for the step as lowered, before optimisation: every network of
  the family, forward and backward.
  """
  family: Any = STEPS[config.family]
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda k: family.init(k, config, spec.modalities), key)
  count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
  step = family.make_train_step(config, spec.modalities)
  batch = _abstract_batch(spec, config.batch_size)
  analysis = jax.jit(step).lower(state, batch, key).cost_analysis() or {}
  return {
    "parameters": {name: count(p) for name, p in state.params.items()},
    "state_bytes": sum(
      int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state)
    ),
    "flops_per_step": float(analysis.get("flops", 0.0)),
  }


def _abstract_batch(spec: datasets.Spec, b: int) -> dict[str, Any]:
  array = jax.ShapeDtypeStruct
  batch: dict[str, Any] = {
    name: array((b, *m.shape), jnp.int32 if m.kind == "text" else jnp.float32)
    for name, m in spec.modalities.items()
  }
  batch["mask"] = {name: array((b,), jnp.bool_) for name in spec.modalities}
  batch["labels"] = {name: array((b,), jnp.int32) for name in spec.label_names}
  batch["index"] = array((b,), jnp.int32)
  return batch
