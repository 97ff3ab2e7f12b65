"""REPAIR: a merged network's units get the statistics that its parents' units have.

The mean of two matched units varies less than they do, and so layer by layer what a
merged network computes fades. Jordan et al., "REPAIR: REnormalizing Permuted Activations
for Interpolation Repair", 2023, https://arxiv.org/abs/2211.08403.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Layers = Mapping[str, Array]  # path of a layer's parameters -> its outputs [... units]


def make_layer_outputs(
  apply: Callable, kinds: tuple[type[nn.Module], ...] = (nn.Dense, nn.Conv)
) -> Callable[..., dict[str, Array]]:
  """A function (params, *inputs) -> outputs of a Linen network's layers, by path.

  Args:
    apply: a module's `apply`; params are `{"params": ...}`, as it wants them.
    kinds: of layers, with a kernel [... units] and a bias [units].
  """

  def outputs(params, *inputs):
    _, state = apply(
      params,
      *inputs,
      capture_intermediates=lambda module, _: isinstance(module, kinds),
      mutable=["intermediates"],
    )
    found, _ = jax.tree_util.tree_flatten_with_path(state["intermediates"])
    return {"/".join(["params", *(k.key for k in path[:-2])]): x for path, x in found}

  return outputs


def repair(
  outputs: Callable[..., Layers],
  merged: PyTree,
  parents: Sequence[PyTree],
  *inputs,
  layers: Sequence[str],
  weights: Sequence[float] | None = None,
) -> PyTree:
  """`merged` with kernels and biases rescaled, unit by unit, layer after layer.

  A layer y = W h + b of standard deviation s and mean m over the inputs becomes
  (y - m) s' / s + m', where s' and m' are the parents' mean standard deviation and mean
  (eq. 4 and 5 of the paper): exact, as scale and shift are absorbed by W and b.

  Args:
    outputs: (params, *inputs) -> {path: [... units]}, such as `make_layer_outputs`
      gives; a layer at path p has its parameters at p/kernel and p/bias.
    merged: the parameters to mend; nested dicts.
    parents: what it was merged from, permuted as it was.
    *inputs: what statistics are taken over.
    layers: the paths to mend, in the order of computation: those followed by a
      nonlinearity; the last layer is left alone in the paper. Layers before a
      normalisation have nothing to mend.
    weights: of the parents, of sum 1, as in the merge; equal if None.

  Raises:
    ValueError: for a layer that `outputs` does not give, or that has no bias.
  """
  weights = [1.0 / len(parents)] * len(parents) if weights is None else weights

  @jax.jit
  def moments(params) -> dict[str, tuple[Array, Array]]:
    flat = {p: x.reshape(-1, x.shape[-1]) for p, x in outputs(params, *inputs).items()}
    return {p: (x.mean(0), x.std(0)) for p, x in flat.items()}

  found = [moments(parent) for parent in parents]
  for path in layers:
    if path not in found[0]:
      raise ValueError(f"there is no layer {path!r}; layers: {sorted(found[0])}")
    mean, std = (
      sum(w * f[path][i] for w, f in zip(weights, found, strict=True)) for i in (0, 1)
    )
    merged = _rescale(merged, path, moments(merged)[path], (mean, std))
  return merged


def _rescale(params, path: str, now, wanted):
  (mean, std), (new_mean, new_std) = now, wanted
  layer = dict(_at(params, path))
  if "bias" not in layer:
    raise ValueError(f"layer {path!r} has no bias to shift its units with")
  # A unit that is constant in the merged network cannot be scaled, only shifted.
  scale = jnp.where(std > 1e-6, new_std / jnp.maximum(std, 1e-6), 1.0)
  layer["kernel"] = layer["kernel"] * scale
  layer["bias"] = (layer["bias"] - mean) * scale + new_mean
  return _replaced(params, path.split("/"), layer)


def _at(params, path: str) -> Any:
  for key in path.split("/"):
    params = params[key]
  return params


def _replaced(params, keys: list[str], value):
  if not keys:
    return value
  return {**params, keys[0]: _replaced(params[keys[0]], keys[1:], value)}
