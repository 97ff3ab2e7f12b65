"""Configs: Python files that return plain values, loaded by path, kept as JSON."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import ml_collections


def load(path: str) -> ml_collections.ConfigDict:
  """The config of "file.py" or "file.py:argument" (its `get_config(argument)`).

  Raises:
    FileNotFoundError: if there is no such file.
  """
  return call(path, "get_config")


def call(path: str, function: str) -> Any:
  """What a function of a config file returns for the argument after the colon.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it has no such function.
  """
  file, _, argument = str(path).partition(":")
  if not Path(file).is_file():
    raise FileNotFoundError(f"no config file {file!r}")
  root = str(Path(file).resolve().parents[1])  # configs import `configs.common`
  if root not in sys.path:
    sys.path.insert(0, root)
  spec = importlib.util.spec_from_file_location("mmgen_config", file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, function):
    raise ValueError(f"config file {file!r} has no function {function}")
  return getattr(module, function)(argument or None)


def to_json(config: ml_collections.ConfigDict) -> str:
  """The resolved config as JSON with sorted keys."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def from_json(text: str) -> ml_collections.ConfigDict:
  """A config from `to_json`'s text; runs no code, unlike a config file."""
  as_tuples = lambda x: tuple(map(as_tuples, x)) if isinstance(x, list) else x
  walk = lambda d: {
    k: walk(v) if isinstance(v, dict) else as_tuples(v) for k, v in d.items()
  }
  return ml_collections.ConfigDict(walk(json.loads(text)))


def fingerprint(config: ml_collections.ConfigDict) -> str:
  """Twelve hex digits that name this config's values."""
  return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def validate(config: Any, family_names) -> None:
  """Raises ValueError, naming field and value, where the fields do not fit together."""
  if config.family not in family_names:
    raise ValueError(
      f"family must be one of {sorted(family_names)}, got {config.family!r}"
    )
  loop = ("train_steps", "log_steps", "save_steps", "sample_steps")
  for name in ("batch_size", "updates_per_dispatch", "accumulate", *loop):
    if config[name] < 1:
      raise ValueError(f"{name} must be at least 1, got {config[name]}")
  for name in ("num_examples", "batch_size", "bootstrap"):
    if config.get("eval", {}).get(name, 1) < 1:
      raise ValueError(f"eval.{name} must be at least 1, got {config.eval[name]}")
  for name in loop:
    if config[name] % config.updates_per_dispatch:
      raise ValueError(
        f"{name} = {config[name]} must be a multiple of updates_per_dispatch ="
        f" {config.updates_per_dispatch}"
      )
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size = {config.batch_size} must be a multiple of accumulate ="
      f" {config.accumulate}"
    )
  if not 0.0 <= config.data.missing_rate < 1.0:
    raise ValueError(
      f"data.missing_rate must be in [0, 1), got {config.data.missing_rate}"
    )
