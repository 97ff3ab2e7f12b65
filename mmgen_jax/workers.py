"""Runs the trials of a sweep as processes of this machine, several at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmgen_jax import signals, sweep
from mmgen_jax.loop import Stopped
from mmgen_jax.process import NON_FINITE, STOPPED
from mmgen_jax.sweep import Trial

POLL_SECS = 0.1


class _Worker(NamedTuple):
  trial: Trial
  process: Any
  place: int  # which part of the machine it has


def run_all(
  trials: Sequence[Trial],
  workdir,
  command: Callable[[int], Sequence[str]],
  *,
  workers: int = 1,
  say: Callable[[str], None],
) -> dict[str, str]:
  """Runs what is not finished; {id: status}. One that fails does not stop the others.

  Args:
    trials: of the sweep.
    workdir: of the sweep.
    command: the words that do trial i of the list in a process of its own; i = -1:
      what all of them need (if that fails, each run tells what it lacks).
    workers: processes at a time; each has its part of the cores and of the devices
      that CUDA_VISIBLE_DEVICES names.
    say: told how it goes.

  Raises:
    Stopped: SIGTERM or SIGINT came; every process has saved and ended.
    ValueError: if there are fewer than one worker.
  """
  if workers < 1:
    raise ValueError(f"workers must be at least 1, got {workers}")
  waiting = [t for t in trials if sweep.status(workdir, t) != "finished"]
  say(f"{len(trials) - len(waiting)} of {len(trials)} runs are finished")
  sweep.forget_failures(waiting, workdir)
  if waiting:
    say("preparing data sets and judges")
    subprocess.run(list(command(-1)), stdin=subprocess.DEVNULL)
  busy: list[_Worker] = []
  with signals.catch() as requested:
    while waiting or busy:
      if requested():
        _stop(busy)
        raise Stopped("stopped; every run has saved, the same command goes on")
      for trial in [t for t in waiting if _blocked(workdir, t)]:
        waiting.remove(trial)
        sweep.fail(workdir, trial, "a run that it is made from failed", 0)
        say(f"{trial.id} cannot be made: {_blocked(workdir, trial)} failed")
      ready = [t for t in waiting if _ready(workdir, t)]
      for trial in ready[: workers - len(busy)]:
        waiting.remove(trial)
        place = min(set(range(workers)) - {w.place for w in busy})
        say(f"{trial.id} starts")
        busy.append(
          _start(trial, workdir, command(trials.index(trial)), place, workers)
        )
      for w in [w for w in busy if w.process.poll() is not None]:
        busy.remove(w)
        _end(w, workdir, say)
      time.sleep(POLL_SECS)
  return {t.id: sweep.status(workdir, t) for t in trials}


def log_of(workdir, trial: Trial) -> Path:
  """What a run's process said."""
  return sweep.folder_of(workdir, f"{trial.id}.log")


def _ready(workdir, trial: Trial) -> bool:
  return all(sweep.status(workdir, need) == "finished" for need in trial.needs)


def _blocked(workdir, trial: Trial) -> list[str]:
  return [need for need in trial.needs if sweep.status(workdir, need) == "failed"]


def cores_of(place: int, workers: int) -> set[int]:
  """The cores of one of `workers` places; all of them where places outnumber cores."""
  cores = sorted(os.sched_getaffinity(0))
  return set(cores[place::workers] or cores)


def environment(place: int, workers: int, env: Mapping[str, str]) -> dict[str, str]:
  """`env` with this place's share of the visible GPUs."""
  devices = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
  share = devices[place::workers] if len(devices) >= workers else devices
  return {**env, **({"CUDA_VISIBLE_DEVICES": ",".join(share)} if devices else {})}


def _start(trial: Trial, workdir, command, place: int, workers: int) -> _Worker:
  path = log_of(workdir, trial)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a") as log:
    process = subprocess.Popen(
      list(command),
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment(place, workers, os.environ),
      start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
    )
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(process.pid, cores_of(place, workers))
  return _Worker(trial, process, place)


def _end(w: _Worker, workdir, say) -> None:
  """Sees to it that a run that ended is finished, or has its error written down."""
  code, state = w.process.returncode, sweep.status(workdir, w.trial)
  if state == "finished":
    say(f"{w.trial.id} is finished")
    return
  if state != "failed":
    sweep.fail(workdir, w.trial, _last_line(workdir, w.trial, code), code)
  how = {NON_FINITE: "diverged", STOPPED: "was stopped"}.get(code, "failed")
  error = sweep.outcome(workdir, w.trial)["error"]
  say(f"{w.trial.id} {how} (exit code {code}): {error}")


def _last_line(workdir, trial: Trial, code: int) -> str:
  if code < 0:
    return f"killed by {signal.Signals(-code).name}"
  log = log_of(workdir, trial)
  lines = log.read_text(errors="replace").splitlines() if log.exists() else []
  return lines[-1] if lines else f"exit code {code}"


def _stop(busy: Sequence[_Worker]) -> None:
  for w in busy:
    w.process.terminate()
  for w in busy:
    w.process.wait()
