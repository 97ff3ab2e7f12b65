"""One run of a sweep, from what it is made from to its result."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmgen_jax import (
  checkpoint,
  describe,
  evaluate,
  fuse,
  log,
  loop,
  manifest,
  measures,
  process,
)
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.provenance import provenance, write_atomically
from mmgen_jax.sweep import (
  ERROR,
  RESULT,
  Trial,
  fail,
  folder_of,
  outcome,
  resolve,
  status,
)

POLL_SECS = 5.0  # between looks at a run that another process does


def prepare(trials: Sequence[Trial], data_dir, say: Callable[[str], None]) -> None:
  """Prepares data sets and trains judges, once, so that no two runs do."""
  done = set()
  for trial in trials:
    config = resolve(trial, trials)
    options = {k: v for k, v in config.data.options.items() if k != "modalities"}
    judged = config.family not in measures.MEASURES  # these make nothing to judge
    if (what := repr((config.data.name, sorted(options.items()), judged))) not in done:
      done.add(what)
      spec = datasets.spec(config.data.name, **options)
      for split in spec.splits:
        datasets.load(config.data.name, split, data_dir, **options)
      if judged:
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
  if checkpoint.steps(folder / "checkpoints") and (folder / "config.json").exists():
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
  """Gives a new run the newest checkpoint of another one.

  Raises:
    ValueError: if that one is damaged.
  """
  step = max(checkpoint.steps(source / "checkpoints"))
  if damage := manifest.verify(source / "checkpoints" / str(step)):
    raise ValueError(f"what it goes on from is damaged: {damage.message}")
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
