"""Networks that a run starts with, from the averages of another run's checkpoint.

`config.initial` is {network: workdir, DIR or DIR:STEP}: to learn a prior over the codes
of a trained coder, or to go on from what was trained elsewhere.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmgen_jax import config as config_lib
from mmgen_jax import fuse, manifest
from mmgen_jax.provenance import write_atomically
from mmgen_jax.state import State


def fill(state: State, config, workdir) -> State:
  """`state` with the networks of `config.initial`, in `params` and in `ema`.

  What they are is written to <workdir>/initial.json: source, step, digest.

  Raises:
    ValueError: if a network is not in the state or the other run, or differs in shape;
      if `config.coder` is not the config of the coder.
    FileNotFoundError: if there is no sound checkpoint.
  """
  sources = config.get("initial", {})
  params, ema, told = dict(state.params), dict(state.ema), {}
  for network, source in sorted(sources.items()):
    if network not in params:
      raise ValueError(
        f"initial names network {network!r}; this run has {sorted(params)}"
      )
    if not source:
      raise ValueError(
        f"initial.{network} is empty: --config.initial.{network}=WORKDIR"
      )
    found = fuse.load(source)
    if "coder" in config:
      _check_coder(config.coder, found)
    params[network] = like(params[network], found.arrays, network, source)
    if network in ema:
      ema[network] = params[network]
    digest = manifest.digest(params[network])
    told[network] = {"source": source, "step": found.step, "digest": digest}
  if told and jax.process_index() == 0:
    text = json.dumps(told, indent=2, sort_keys=True)
    write_atomically(Path(workdir) / "initial.json", text)
  return state.replace(params=params, ema=ema)


def _check_coder(coder, found: fuse.Ingredient) -> None:
  """ValueError if a coder's model is not said to be what was trained.

  Scales and levels have no shape that would tell.
  """
  if found.config is None:
    return
  trained = json.loads(found.config)["model"]
  said = json.loads(config_lib.to_json(coder))["model"]
  for field in sorted({*said, *trained} - {"disc_widths"}):
    if said.get(field) != trained.get(field):
      raise ValueError(
        f"coder.model.{field} is {said.get(field)}; {found.source} was trained with"
        f" {trained.get(field)}"
      )


def like(tree, arrays, network: str, source: str) -> Any:
  """The leaves of ema/<network> in `arrays`, by their paths, in the shape of `tree`.

  Raises:
    ValueError: where one is missing, or has another shape or dtype.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  leaves = []
  for path, x in paths:
    name = f"ema/{network}/{manifest.path_name(path)}"
    got = arrays.get(name)
    if got is None or got.shape != x.shape or got.dtype != x.dtype:
      what = "nothing" if got is None else f"{got.dtype} {got.shape}"
      raise ValueError(
        f"initial: {name} of {source} is {what}, this run wants {x.dtype} {x.shape}"
      )
    leaves.append(np.asarray(got))
  return treedef.unflatten(leaves)
