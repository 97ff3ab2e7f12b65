"""Adds a modality to a trained fusion run, whose newest checkpoint is the frozen part."""

from pathlib import Path
from typing import Any

import jax

from mmgen_jax import checkpoint
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.state import State
from mmgen_jax.steps import STEPS, extension


def frozen(workdir) -> tuple[State, int, dict]:
  """The newest sound state of a fusion run, its step, and its modalities.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is no fusion run.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"extend.workdir = {str(workdir)!r} holds no run")
  config: Any = config_lib.from_json((workdir / "config.json").read_text())
  if config.family != "fusion":
    raise ValueError(f"extend.workdir must hold a fusion run, got {config.family!r}")
  spec = datasets.spec(config.data.name, **config.data.options)
  fusion = STEPS["fusion"]
  like = jax.eval_shape(lambda: fusion.init(jax.random.key(0), config, spec.modalities))
  state, step = checkpoint.load(workdir / "checkpoints", like)
  return state, step, dict(spec.modalities)


def teach(state: State, trained: State) -> State:
  """`state` of an extension, with a fusion run's averaged parameters as its frozen ones.

  Raises:
    ValueError: if they do not fit: another model, or other modalities.
  """
  wanted, given = state.params["vae"], trained.ema["vae"]
  shapes = lambda tree: {
    jax.tree_util.keystr(path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  if wrong := sorted(set(shapes(wanted).items()) ^ set(shapes(given).items())):
    raise ValueError(f"the run to extend does not fit the config: {wrong[0]}")
  old = {"vae": given, "prior": trained.ema["prior"]}
  return state.replace(params=state.params | old, ema=state.ema | old)


def prepare(config, workdir) -> None:
  """Saves the step 0 of an extension in `workdir`, if it has no checkpoint yet.

  Training then goes on from there, like any run. `config.extend` has `workdir` (of the
  fusion run) and `modality` (the new one, which that run does not have).

  Raises:
    FileNotFoundError: if there is no run to extend.
    ValueError: if it does not fit.
  """
  directory = checkpoint.local_directory(workdir) / "checkpoints"
  if checkpoint.steps(directory):
    return
  trained, _, _ = frozen(config.extend.workdir)
  spec = datasets.spec(config.data.name, **config.data.options)
  key, _ = jax.random.split(jax.random.key(config.seed))
  state = jax.jit(lambda: extension.init(key, config, spec.modalities))()
  checkpoint.save(directory, teach(state, trained), 0)
