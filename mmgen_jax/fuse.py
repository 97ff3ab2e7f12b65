"""Trained networks in, one network out, and a record of what went into it.

An ingredient is a workdir ("runs/a": its newest sound checkpoint; "runs/a:400": that of
step 400) or a file of safetensors. Of a checkpoint `params` and `ema` are merged, each
with its like; a file's arrays all are, so to go with a workdir it has the same names
("params/vae/...", as those written here).

The output is a new workdir, to go on with or to evaluate, or a file if its name ends in
".safetensors". All that is not merged, such as the optimizer's state and the step, a new
workdir has from the first ingredient.
"""

import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmgen_jax import checkpoint, manifest, provenance, safetensors
from mmgen_jax import config as config_lib
from mmgen_jax.fusion import task_vectors, weight

MERGED = ("params/", "ema/")  # of a checkpoint
RECORD = "fusion.json"
SUFFIX = ".safetensors"

Arrays = dict[str, np.ndarray]  # by path
log = logging.getLogger(__name__)


class Ingredient(NamedTuple):
  """Something to merge.

  Attributes:
    source: as it was given.
    arrays: what is merged.
    rest: of a checkpoint, everything else.
    step: of a checkpoint.
    config: of a workdir, as JSON.
  """

  source: str
  arrays: Arrays
  rest: Arrays
  step: int | None = None
  config: str | None = None


def locate(source: str) -> tuple[Path, int | None]:
  """The workdir or file of an ingredient, and the step that it names, if it does.

  Raises:
    FileNotFoundError: if there is none.
  """
  path, step = Path(source), None
  if not path.exists() and source.rpartition(":")[2].isdecimal():
    path, step = Path(source.rpartition(":")[0]), int(source.rpartition(":")[2])
  if not path.exists():
    raise FileNotFoundError(f"no workdir or {SUFFIX} file {source!r}")
  return path, step


def load(source: str) -> Ingredient:
  """An ingredient, every bit of a checkpoint verified.

  Raises:
    FileNotFoundError: if there is no such file, or no sound checkpoint.
    ValueError: if it is damaged, or has nothing to merge.
  """
  path, step = locate(source)
  if path.is_file():
    found = Ingredient(source, safetensors.load(path)[0], {})
  else:
    state, step = _read_state(path, step)
    merged = {name: x for name, x in state.items() if name.startswith(MERGED)}
    rest = {name: x for name, x in state.items() if name not in merged}
    kept = path / "config.json"
    text = kept.read_text() if kept.exists() else None
    found = Ingredient(source, merged, rest, step, text)
  if not found.arrays:
    raise ValueError(f"{source} has no parameters to merge")
  return found


def _read_state(workdir: Path, step: int | None) -> tuple[Arrays, int]:
  """Of the newest sound checkpoint, or that of one step."""
  directory = checkpoint.local_directory(workdir) / "checkpoints"
  known = checkpoint.steps(directory)
  if step is not None and step not in known:
    raise FileNotFoundError(
      f"{workdir} has no checkpoint of step {step}; it has {known}"
    )
  for n in reversed(known) if step is None else [step]:
    folder = directory / str(n)
    damage = manifest.verify(folder)
    if damage is None:
      arrays, damage = checkpoint.read_arrays(folder, manifest.read(folder)["leaves"])
      if damage is None:
        return arrays, n
    if step is not None:
      raise ValueError(f"checkpoint of step {n} is damaged: {damage.message}")
    log.warning("checkpoint of step %d passed over: %s", n, damage.message)
  raise FileNotFoundError(f"no sound checkpoint in {directory}; train first")


# Methods: (trees, ...) -> the merged tree, and what is to be noted of it.

Merged = tuple[Any, dict[str, Any]]


def _average(trees, *, weights=None) -> Merged:
  return weight.average(trees, _by_layer(trees[0], weights)), {}


def _linear(trees, *, t=0.5) -> Merged:
  a, b = _two(trees, "linear")
  return weight.interpolate(a, b, _by_layer(a, t)), {}


def _slerp(trees, *, t=0.5) -> Merged:
  a, b = _two(trees, "slerp")
  return weight.slerp(a, b, _by_layer(a, t)), {}


def _greedy_soup(trees, *, score) -> Merged:
  soup, candidates = weight.greedy_soup(trees, score)
  return soup, {"candidates": [c._asdict() for c in candidates]}


def _task_arithmetic(trees, base, *, scales=1.0) -> Merged:
  return task_vectors.task_arithmetic(base, trees, _by_layer(base, scales)), {}


def _ties(trees, base, *, keep=0.2, scale=1.0) -> Merged:
  return task_vectors.ties(base, trees, keep=keep, scale=scale), {}


def _dare(trees, base, *, drop=0.9, scales=1.0, seed=0) -> Merged:
  keys = jax.random.split(jax.random.key(seed), len(trees))
  thin = [
    task_vectors.dare(base, tree, drop=drop, key=key)
    for tree, key in zip(trees, keys, strict=True)
  ]
  return _task_arithmetic(thin, base, scales=scales)


def _last(trees) -> Merged:
  if len(trees) != 1:
    raise ValueError(f"last is of one ingredient, got {len(trees)}")
  (tree,) = trees
  raw = lambda name: tree[re.sub("^ema/", "params/", name)]
  return {name: raw(name) for name in tree}, {}


METHODS: dict[str, Callable[..., Merged]] = {
  "average": _average,
  "linear": _linear,
  "slerp": _slerp,
  "greedy_soup": _greedy_soup,
  "task_arithmetic": _task_arithmetic,
  "ties": _ties,
  "dare": _dare,
  "last": _last,  # of one: the parameters of the last update, not their averages
}


def _by_layer(tree, value):
  """{pattern: value} as {path: value}; anything else as it is."""
  return weight.layer_weights(tree, value) if isinstance(value, Mapping) else value


def _two(trees, method: str):
  if len(trees) != 2:
    raise ValueError(f"{method} is of two ingredients, got {len(trees)}")
  return trees


def parse_options(words: Sequence[str]) -> dict[str, Any]:
  """{"t": 0.5} of ["t=0.5"]; values are JSON, such as a list or a number by pattern."""
  out = {}
  for word in words:
    name, _, value = word.partition("=")
    try:
      out[name] = json.loads(value)
    except ValueError as e:
      raise ValueError(f"option {word!r}: write name=value, the value as JSON") from e
  return out


def check_method(method: str, base, options: Mapping[str, Any]) -> None:
  """ValueError unless there is such a method and it takes what is given."""
  if method not in METHODS:
    raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}")
  parameters = inspect.signature(METHODS[method]).parameters
  known = {n: p for n, p in parameters.items() if n not in ("trees", "base")}
  for name in options:
    if name not in known:
      raise ValueError(f"{method} has no option {name!r}; options: {list(known)}")
  for name, parameter in known.items():
    if parameter.default is parameter.empty and name not in options:
      raise ValueError(f"{method} needs the option {name!r}")
  if ("base" in parameters) != (base is not None):
    verb = "needs" if "base" in parameters else "has no"
    raise ValueError(f"{method} {verb} base, what the ingredients were fine-tuned from")


def fuse(
  sources: Sequence[str],
  output,
  *,
  method: str = "average",
  base: str | None = None,
  **options,
) -> dict[str, Any]:
  """Merges ingredients into a new workdir or file; returns the record of it.

  The record (in the workdir's fusion.json and its checkpoint's manifest, or in the
  file's metadata under "fusion") has method and options; source, step, sha256 and config
  of every ingredient; and the result's sha256, over names, dtypes, shapes and bytes.

  Args:
    sources: the ingredients.
    output: a workdir that does not exist yet, or a file. What a failed merge left of a
      workdir does not count.
    method: one of METHODS.
    base: where a method adds task vectors, what they start from.
    **options: of the method, after those of the functions of `fusion.weight` and
      `fusion.task_vectors`; `t`, `weights` and `scales` may be {regex: value}, the first
      that is found in a path counts. `score` of greedy_soup takes {path: array}, such as
      what `evaluate.make_score` gives.

  Raises:
    ValueError: if something does not fit, before anything is written.
    FileNotFoundError: for an ingredient that is not there.
  """
  check_method(method, base, options)
  if "score" in options and not callable(options["score"]):
    raise ValueError(
      f"score takes {{path: array}} and gives a number, got {options['score']!r}; of a"
      " held-out loss, mmgen_jax.evaluate.make_score makes one"
    )
  output = checkpoint.local_directory(output)
  if not sources:
    raise ValueError("nothing to merge: the list of ingredients is empty")
  if output.exists() and not _is_left_over(output):
    raise ValueError(f"{output} exists; merge into a new workdir or file")
  first, *others = (load(source) for source in sources)
  # Only the first one's rest is needed.
  loaded = [first, *(x._replace(rest={}) for x in others)]
  start = load(base)._replace(rest={}) if base else None
  if output.suffix != SUFFIX and not first.rest:
    raise ValueError(
      f"{first.source} is no workdir, so {output} cannot be one: give it a name that"
      f" ends in {SUFFIX}, or a workdir as the first ingredient"
    )
  extra = {"base": start.arrays} if start else {}
  merged, notes = METHODS[method]([x.arrays for x in loaded], **extra, **options)
  arrays = {name: np.asarray(x) for name, x in merged.items()}
  record = {
    "method": method,
    "options": {k: v for k, v in options.items() if k != "score"},
    "ingredients": [_entry(x) for x in loaded],
    "base": _entry(start) if start else None,
    **notes,
    "sha256": checkpoint.digest(arrays),
    "versions": provenance.versions(),
    "git_revision": provenance.git_revision(),
  }
  _write(output, arrays, first, record)
  return record


def _is_left_over(output: Path) -> bool:
  """Whether this is a folder with nothing in it but the pieces of a failed merge."""
  if output.is_file() or checkpoint.steps(output / "checkpoints"):
    return False
  pieces = rf"checkpoints|{re.escape(RECORD)}|.*\.json\.tmp\w+"
  return all(re.fullmatch(pieces, piece.name) for piece in output.iterdir())


def _entry(x: Ingredient) -> dict[str, Any]:
  fingerprint = (
    config_lib.fingerprint(config_lib.from_json(x.config)) if x.config else ""
  )
  return {
    "source": x.source,
    "step": x.step,
    "sha256": checkpoint.digest(x.arrays),
    "config": fingerprint,
  }


def _write(output: Path, arrays: Arrays, first: Ingredient, record) -> None:
  text = json.dumps(record, indent=1)
  if output.suffix == SUFFIX:
    safetensors.save(output, arrays, {"fusion": text})
    return
  state = {**first.rest, **arrays}
  metadata = {"fusion": record}
  checkpoint.save(output / "checkpoints", state, first.step or 0, metadata=metadata)
  provenance.write_atomically(output / RECORD, text)
  # Last: with it, a workdir without weights would be trained from random ones.
  if first.config:
    provenance.write_atomically(output / "config.json", first.config)
