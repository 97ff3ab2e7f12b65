"""Many runs as one experiment: methods x seeds x budgets, resumable, one folder.

A config file's `get_sweep(argument)` returns a list of dicts, each the fields of a
`Trial`. Each trial has a folder of its own, `<workdir>/runs/<id>`, which is a run's
workdir with a `result.json` when it is done, an `error.json` when it failed. A trial
names those that it is made from (`start`, `fuse`) by id; they come before it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmgen_jax import config as config_lib
from mmgen_jax import records
from mmgen_jax.comparison import Run
from mmgen_jax.provenance import write_atomically
from mmgen_jax.steps import STEPS

RESULT, ERROR = "result.json", "error.json"


class Trial(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: of the method; its seeds and budgets are compared as one row each.
    config: "file.py:argument"; not needed of a fused one.
    seed: of the run.
    overrides: {"optim.learning_rate": 1e-3}.
    budget: updates, in place of the config's.
    start: id of a run whose last checkpoint this one goes on from. A cosine is as long
      as both together, so that this one has its end.
    fuse: {"of": [ids], "method": ..., "base": id, options}, see `mmgen_jax.fuse`; then
      there is no training. `score` of greedy_soup is the name of a held-out loss, as
      "elbo".
    shown: whether it is a method of its own, or only an ingredient, not evaluated.
    baseline: whether it is what the other methods are measured against.
  """

  name: str
  config: str = ""
  seed: int = 0
  overrides: Mapping[str, Any] = {}
  budget: int | None = None
  start: str | None = None
  fuse: Mapping[str, Any] | None = None
  shown: bool = True
  baseline: bool = False

  @property
  def id(self) -> str:
    """Names the run: method, budget if there is one, seed."""
    return trial_id(self.name, self.seed, self.budget)

  @property
  def needs(self) -> tuple[str, ...]:
    """Ids of the runs that it is made from, each once."""
    fused = (*self.fuse["of"], self.fuse.get("base")) if self.fuse else ()
    return tuple(dict.fromkeys(need for need in (*fused, self.start) if need))


def trial_id(name: str, seed: int = 0, budget: int | None = None) -> str:
  """The id of a trial."""
  slug = re.sub(r"[^\w.]+", "-", name).strip("-")
  return "-".join([slug, *([str(budget)] if budget else []), f"seed{seed}"])


def load(path: str, overrides: Mapping[str, Any] | None = None) -> list[Trial]:
  """The trials of "file.py:argument", all with `overrides`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no sweep, naming the trial and what is wrong with it.
  """
  entries = config_lib.call(path, "get_sweep")
  for entry in entries:
    unknown = sorted(set(entry) - set(Trial._fields))
    if unknown or "name" not in entry:
      raise ValueError(
        f"a trial has {list(Trial._fields)}, at least a name; got {sorted(entry)}"
      )
  trials = [Trial(**entry) for entry in entries]
  trials = [t._replace(overrides={**t.overrides, **(overrides or {})}) for t in trials]
  known: set[str] = set()
  for t in trials:
    if t.id in known:
      raise ValueError(f"two trials are called {t.id!r}: name, budget or seed differ")
    if missing := [need for need in t.needs if need not in known]:
      raise ValueError(f"{t.id} is made from {missing}; known before it: {[*known]}")
    if not t.config and not t.fuse:
      raise ValueError(f"{t.id} has neither a config nor something to fuse")
    known.add(t.id)
  if not trials:
    raise ValueError(f"{path} has no trials")
  return trials


def resolve(trial: Trial, trials: Sequence[Trial]) -> Any:
  """The config of a trial; a fused one has that of its first ingredient.

  Raises:
    ValueError: for an override of a field that the config does not have.
  """
  by_id = {t.id: t for t in trials}
  if trial.fuse:
    return resolve(by_id[trial.fuse["of"][0]], trials)
  config: Any = config_lib.load(trial.config)
  if trial.budget:
    config.train_steps = config.save_steps = config.sample_steps = trial.budget
  if trial.start:
    config.train_steps += resolve(by_id[trial.start], trials).train_steps
  changed = trial.budget or trial.start
  if changed and config.get("optim") and config.optim.decay == "cosine":
    config.optim.decay_steps = config.train_steps
  config.seed = trial.seed
  for name, value in trial.overrides.items():
    *parents, last = name.split(".")
    place: Any = config
    for parent in parents:
      place = place.get(parent) if parent in place else None
      if place is None:
        raise ValueError(f"{trial.id}: the config has no field {name!r}")
    if last not in place:
      raise ValueError(f"{trial.id}: the config has no field {name!r}")
    with place.ignore_type():
      place[last] = value
  return config


def folder_of(workdir, trial: Trial | str) -> Path:
  """Where a trial's run is."""
  return Path(workdir) / "runs" / (trial if isinstance(trial, str) else trial.id)


def status(workdir, trial: Trial | str) -> str:
  """One of finished, failed, started, new."""
  folder = folder_of(workdir, trial)
  if (folder / RESULT).exists():
    return "finished"
  if (folder / ERROR).exists():
    return "failed"
  return "started" if folder.exists() else "new"


def outcome(workdir, trial: Trial | str) -> dict[str, Any]:
  """What result.json or error.json says; {} of a run that has neither."""
  for name in (RESULT, ERROR):
    path = folder_of(workdir, trial) / name
    if path.exists():
      return json.loads(path.read_text())
  return {}


def fail(workdir, trial: Trial, error: str, exit_code: int) -> None:
  """Writes down that a trial failed."""
  path = folder_of(workdir, trial) / ERROR
  write_atomically(path, json.dumps({"error": error, "exit_code": exit_code}))


def forget_failures(trials: Sequence[Trial], workdir) -> None:
  """Removes the errors of unfinished trials, which are to be tried again."""
  for trial in trials:
    if status(workdir, trial) == "failed":
      (folder_of(workdir, trial) / ERROR).unlink(missing_ok=True)


def check(trials: Sequence[Trial], workdir) -> None:
  """ValueError where a config does not fit, or is not that which a run started with."""
  for trial in trials:
    config_lib.validate(resolve(trial, trials), STEPS)
    kept = folder_of(workdir, trial) / "config.json"
    if kept.exists():
      before = config_lib.fingerprint(config_lib.from_json(kept.read_text()))
      now = config_lib.fingerprint(resolve(trial, trials))
      if before != now:
        raise ValueError(
          f"{trial.id} in {workdir} was started with another config ({before}, now"
          f" {now}): use another workdir, or remove {kept.parent}"
        )


def read(trials: Sequence[Trial], workdir) -> list[Run]:
  """Every run of a sweep as a comparison sees it, whatever has become of it."""
  budgets = {name: {t.budget for t in trials if t.name == name} for name, *_ in trials}
  out = []
  for t in trials:
    several = len(budgets[t.name]) > 1 and t.budget
    method = f"{t.name} ({t.budget:,} updates)" if several else t.name
    folder, now = folder_of(workdir, t), status(workdir, t)
    found = records.read(folder) if now == "finished" and t.shown else []
    about = outcome(workdir, t)
    out.append(
      Run(t.id, method, t.seed, t.shown, now, about, found, t.needs, t.baseline)
    )
  return out
