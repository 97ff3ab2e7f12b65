"""Many runs as one experiment: methods x seeds x budgets, resumable, one folder.

A config file's `get_sweep(argument)` returns a list of dicts, each the fields of a
`Trial`. Each trial has a folder of its own, `<workdir>/runs/<id>`, which is a run's
workdir with a `result.json` when it is done, an `error.json` when it failed. A trial
names those that it is made from (`start`, `fuse`) by id; they come before it.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmgen_jax import (
  checkpoint,
  describe,
  evaluate,
  fuse,
  log,
  loop,
  process,
  records,
)
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.comparison import Run
from mmgen_jax.provenance import provenance, write_atomically

RESULT, ERROR = "result.json", "error.json"
POLL_SECS = 5.0  # between looks at a run that another process does


class Trial(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: of the method; its seeds and budgets are compared as one row each.
    config: "file.py:argument"; not needed of a fused one.
    seed: of the run.
    overrides: {"optim.learning_rate": 1e-3}.
    budget: updates, in place of the config's (and of its cosine's length).
    start: id of a run whose last checkpoint this one goes on from.
    fuse: {"of": [ids], "method": ..., options}, see `mmgen_jax.fuse`; then there is no
      training. `score` of greedy_soup is the name of a held-out loss, as "elbo".
    shown: whether it is a method of its own, or only an ingredient, not evaluated.
  """

  name: str
  config: str = ""
  seed: int = 0
  overrides: Mapping[str, Any] = {}
  budget: int | None = None
  start: str | None = None
  fuse: Mapping[str, Any] | None = None
  shown: bool = True

  @property
  def id(self) -> str:
    """Names the run: method, budget if there is one, seed."""
    return trial_id(self.name, self.seed, self.budget)

  @property
  def needs(self) -> tuple[str, ...]:
    """Ids of the runs that it is made from."""
    return (*(self.fuse["of"] if self.fuse else ()), *([self.start] * bool(self.start)))


def trial_id(name: str, seed: int = 0, budget: int | None = None) -> str:
  """The id of a trial."""
  slug = re.sub(r"[^\w.+]+", "-", name).strip("-")
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
  config = config_lib.load(trial.config)
  if trial.budget:
    config.train_steps = config.save_steps = config.sample_steps = trial.budget
    if config.get("optim") and config.optim.decay == "cosine":
      config.optim.decay_steps = trial.budget
  if trial.start:
    config.train_steps += resolve(by_id[trial.start], trials).train_steps
  config.seed = trial.seed
  for name, value in trial.overrides.items():
    *parents, last = name.split(".")
    place = config
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


def check(trials: Sequence[Trial], workdir) -> None:
  """ValueError where a run was started with another config than the sweep has now."""
  for trial in trials:
    kept = folder_of(workdir, trial) / "config.json"
    if kept.exists():
      before = config_lib.fingerprint(config_lib.from_json(kept.read_text()))
      now = config_lib.fingerprint(resolve(trial, trials))
      if before != now:
        raise ValueError(
          f"{trial.id} in {workdir} was started with another config ({before}, now"
          f" {now}): use another workdir, or remove {kept.parent}"
        )


def prepare(trials: Sequence[Trial], data_dir, say: Callable[[str], None]) -> None:
  """Prepares data sets and trains judges, once, so that no two runs do."""
  done = set()
  for trial in trials:
    config = resolve(trial, trials)
    options = {k: v for k, v in config.data.options.items() if k != "modalities"}
    if (what := repr((config.data.name, sorted(options.items())))) not in done:
      done.add(what)
      spec = datasets.spec(config.data.name, **options)
      for split in spec.splits:
        datasets.load(config.data.name, split, data_dir, **options)
      evaluate.make_judges(config, data_dir, list(spec.modalities), say=say)


def run(
  trial: Trial,
  trials: Sequence[Trial],
  workdir,
  data_dir,
  *,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Does what is left to do of one trial, in this process; its result.

  Waits for those that it is made from, which other processes do. What it raises is
  written down too, but for `loop.Stopped`.

  Raises:
    RuntimeError: if one that it is made from failed.
  """
  if status(workdir, trial) == "finished":
    return outcome(workdir, trial)
  (folder_of(workdir, trial) / ERROR).unlink(missing_ok=True)
  try:
    _wait(trial, workdir, say)
    return _do(trial, trials, workdir, data_dir, say)
  except loop.Stopped:
    raise
  except Exception as e:
    code = process.exit_code(e)
    kind = "" if code in (process.BAD_INPUT, process.NON_FINITE) else type(e).__name__
    fail(workdir, trial, ": ".join(filter(None, [kind, str(e)])), code)
    raise


def _do(trial: Trial, trials: Sequence[Trial], workdir, data_dir, say) -> dict:
  folder = folder_of(workdir, trial)
  config = resolve(trial, trials)
  if trial.fuse:
    _merge(trial, config, workdir, data_dir)
  else:
    if trial.start and not checkpoint.steps(folder / "checkpoints"):
      _copy_last(folder_of(workdir, trial.start), folder)
    loop.train(config, folder, data_dir=data_dir)
  memory = peak_memory_bytes()
  started = time.time()
  if trial.shown:
    evaluate.evaluate(config, folder, data_dir, say=say)
  secs = time.time() - started
  by_id = {t.id: t for t in trials}
  first = resolve(by_id[trial.start], trials).train_steps if trial.start else 0
  result = _result(trial, config, first, folder, memory, secs)
  write_atomically(folder / RESULT, json.dumps(result, indent=1))
  return result


def _wait(trial: Trial, workdir, say) -> None:
  told = False
  for need in trial.needs:
    while (now := status(workdir, need)) != "finished":
      if now == "failed":
        raise RuntimeError(f"it is made from {need}, which failed")
      if not told:
        say(f"{trial.id} waits for {need}")
      told = True
      time.sleep(POLL_SECS)


def _merge(trial: Trial, config, workdir, data_dir) -> None:
  """Fuses the ingredients' newest checkpoints into the trial's folder."""
  assert trial.fuse is not None
  folder = folder_of(workdir, trial)
  if checkpoint.steps(folder / "checkpoints"):
    return
  shutil.rmtree(folder, ignore_errors=True)  # of a merge that was killed
  options = {k: v for k, v in trial.fuse.items() if k not in ("of", "method", "base")}
  if "score" in options:
    options["score"] = evaluate.make_score(config, data_dir, options["score"])
  base = trial.fuse.get("base")
  fuse.fuse(
    [str(folder_of(workdir, need)) for need in trial.fuse["of"]],
    folder,
    method=trial.fuse.get("method", "average"),
    base=str(folder_of(workdir, base)) if base else None,
    **options,
  )


def _copy_last(source: Path, folder: Path) -> None:
  """Gives a new run the newest checkpoint of another one."""
  step = max(checkpoint.steps(source / "checkpoints"))
  target = folder / "checkpoints" / str(step)
  partial = target.with_name(f"{step}.copying")
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(source / "checkpoints" / str(step), partial)
  partial.rename(target)


def peak_memory_bytes() -> dict[str, int]:
  """{"host": of this process, "device": of one accelerator, if there is one}."""
  status_file = Path("/proc/self/status")
  found = {}
  if status_file.exists():
    peak = re.search(r"VmHWM:\s+(\d+) kB", status_file.read_text())
    found |= {"host": 1024 * int(peak[1])} if peak else {}
  about = [d.memory_stats() or {} for d in jax.local_devices()]
  peaks = [a["peak_bytes_in_use"] for a in about if "peak_bytes_in_use" in a]
  return found | ({"device": max(peaks)} if peaks else {})


def _result(trial: Trial, config, first: int, folder: Path, memory, secs) -> dict:
  """What result.json says; `first` is the step that training went on from."""
  spec = datasets.spec(config.data.name, **config.data.options)
  lines = log.read_metrics(folder)
  updates = 0 if trial.fuse else config.train_steps - first
  cost = describe.costs(config, spec)
  devices = provenance()["devices"]
  return {
    "id": trial.id,
    "name": trial.name,
    "seed": trial.seed,
    "budget": trial.budget,
    "family": config.family,
    "needs": list(trial.needs),
    "config": config_lib.fingerprint(config),
    "step": max(checkpoint.steps(folder / "checkpoints")),
    "updates": updates,
    "train_secs": round(_train_secs(lines, updates), 2),
    "evaluate_secs": round(secs, 2),
    "memory_bytes": memory,
    "parameters": cost["parameters"],
    "train_flops": cost["flops_per_step"] * updates,
    "skipped_updates": sum(m.get("guard/skipped", 0.0) for m in lines),
    "device": f"{devices['count']} x {devices['kind']} ({devices['platform']})",
  }


def _train_secs(lines: Sequence[Mapping[str, Any]], updates: int) -> float:
  """Of all updates, at the pace of those between the first line and the last."""
  between = lines[-1]["step"] - lines[0]["step"] if lines else 0
  return log.training_secs(lines) * updates / between if between else 0.0


def read(trials: Sequence[Trial], workdir) -> list[Run]:
  """Every run of a sweep as a comparison sees it, whatever has become of it."""
  several = len({t.budget for t in trials if t.shown}) > 1
  out = []
  for t in trials:
    method = f"{t.name} ({t.budget:,} updates)" if several and t.budget else t.name
    folder, now = folder_of(workdir, t), status(workdir, t)
    found = records.read(folder) if now == "finished" and t.shown else []
    about = outcome(workdir, t)
    out.append(Run(t.id, method, t.seed, t.shown, now, about, found, t.needs))
  return out
