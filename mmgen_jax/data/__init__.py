"""Data sets by name. `load` gives the examples of a split, `spec` what is in a set."""

import dataclasses
import importlib
import inspect
import os
from typing import Any

from mmgen_jax.data.examples import Column, Examples, Spec, select

DATASETS = {  # name -> the module that has its `spec` and `load`
  "sprites": "mmgen_jax.data.sprites",
  "digits": "mmgen_jax.data.digits",
  "folder": "mmgen_jax.data.folder",
  "factors": "mmgen_jax.data.factors",
  "images": "mmgen_jax.data.images",
  "polydigits": "mmgen_jax.data.polydigits",
  "stacked_mnist": "mmgen_jax.data.stacked_mnist",
}
SPLITS = ("train", "validation", "test")  # every set has these; some have more

__all__ = [
  "DATASETS",
  "SPLITS",
  "Column",
  "Examples",
  "Spec",
  "load",
  "options",
  "spec",
]


def _module(name: str):
  if name not in DATASETS:
    raise ValueError(f"no data set is called {name!r}; there are {sorted(DATASETS)}")
  return importlib.import_module(DATASETS[name])


def _checked(name: str, options: dict[str, Any]) -> Any:
  """The module of a data set, if it knows the options."""
  module = _module(name)
  known = list(inspect.signature(module.spec).parameters)
  unknown = sorted(set(options) - {*known, "modalities"})
  if unknown:
    raise ValueError(f"data set {name!r} has no option {unknown}; it has {known}")
  return module


def options(name: str) -> dict[str, Any]:
  """The options of a data set that have defaults, with these."""
  known = inspect.signature(_module(name).spec).parameters.values()
  given = {p.name: p.default for p in known if p.default is not p.empty}
  return given | {"modalities": ()}


def spec(name: str, **options) -> Spec:
  """What a data set holds: modalities, labels, splits; reads as little as it can."""
  module, modalities = _checked(name, options), options.pop("modalities", ())
  found = module.spec(**options)
  if not modalities:
    return found
  kept = select(found.modalities, modalities, name)
  return dataclasses.replace(found, modalities=kept)


def load(name: str, split: str, data_dir: str | os.PathLike, /, **options) -> Examples:
  """The examples of one split, prepared first if that was not done yet.

  Args:
    name: one of `DATASETS`.
    split: "train", "validation" or "test"; "digits" also has "test_speaker".
    data_dir: where TFDS sets are and own ones are prepared; may be a bucket.
    **options: of the data set; its module's `spec` names them; `data_dir` among them
      stands above the argument. Of any set: `modalities`, the names of those wanted.

  Raises:
    ValueError: for an unknown set, split or option, or for data that are no good.
    FileNotFoundError: where something has to be fetched first; says how.
  """
  module, modalities = _checked(name, options), options.pop("modalities", ())
  data_dir = options.pop("data_dir", "") or data_dir
  examples = module.load(split, data_dir, **options)
  return examples.select(modalities) if modalities else examples
