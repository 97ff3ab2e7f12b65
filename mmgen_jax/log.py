"""What a run tells people: metrics.jsonl, TensorBoard events, a progress line, records.

TensorBoard's own record writer and protocol buffers are used directly, so no TensorFlow
is imported even where it is installed.
"""

import collections
import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mmgen_jax.provenance import write_atomically


class Log(NamedTuple):
  """Where a run writes; every function is a no-op on processes other than 0.

  Attributes:
    write: (step, {name: float}) -> one line of metrics.jsonl and one TensorBoard event.
    progress: (step, {name: float}) -> the live line on stderr.
    say: (message) -> one line on stderr, beside the progress line.
    rewind: (step) -> drops what was logged after `step`; the run goes on from there.
    close: flushes and closes.
  """

  write: Callable[[int, Mapping[str, float]], None]
  progress: Callable[[int, Mapping[str, float]], None]
  say: Callable[[str], None]
  rewind: Callable[[int], None]
  close: Callable[[], None]


def open_log(workdir, *, step: int, train_steps: int, batch_size: int) -> Log:
  """A Log that goes on from `step`.

  What a killed run logged beyond `step` is dropped, as it will be logged again: so
  metrics.jsonl holds every step once.

  Args:
    workdir: its folder.
    step: the step that the run starts from.
    train_steps: how many there will be.
    batch_size: examples per step, for the rate.
  """
  if jax.process_index() != 0:

    def idle(*_):
      return None

    return Log(idle, idle, idle, idle, idle)
  sinks = _open_sinks(Path(workdir), step)
  live = _progress_line(train_steps, batch_size)
  last = step, time.time()

  def rewind(step):
    nonlocal sinks, last
    sinks.close()
    sinks, last = _open_sinks(Path(workdir), step), (step, time.time())

  def write(step, metrics):
    nonlocal last
    now = time.time()
    metrics = {name: float(value) for name, value in metrics.items()}
    if step > last[0]:  # else it is more of the step that was just logged
      steps_per_sec = (step - last[0]) / max(now - last[1], 1e-9)
      metrics["speed/steps_per_sec"] = steps_per_sec
      metrics["speed/images_per_sec"] = steps_per_sec * batch_size
      last = step, now
    sinks.write(step, now, metrics)

  def close():
    live.end()
    sinks.close()

  return Log(write, live.show, live.say, rewind, close)


class _Sinks(NamedTuple):
  write: Callable[[int, float, Mapping[str, float]], None]
  close: Callable[[], None]


def _open_sinks(workdir: Path, step: int) -> _Sinks:
  """metrics.jsonl, cut back to `step`, and a new TensorBoard event file."""
  lines = _open_lines(workdir / "metrics.jsonl", step)
  add_event, close_events = _open_events(workdir / "events", step)

  def write(step, now, metrics):
    # JSON has no NaN.
    finite = {k: v if np.isfinite(v) else None for k, v in metrics.items()}
    record = {"step": step, "time": round(now, 3), **finite}
    lines.write(json.dumps(record) + "\n")
    lines.flush()
    add_event(step, now, metrics)

  def close():
    lines.close()
    close_events()

  return _Sinks(write, close)


def read_metrics(workdir) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
  path = Path(workdir) / "metrics.jsonl"
  records = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records


def training_secs(metrics: Sequence[Mapping[str, Any]]) -> float:
  """Seconds between the first and the last line, without the pauses between starts."""
  gaps = [b["time"] - a["time"] for a, b in zip(metrics, metrics[1:], strict=False)]
  usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
  return sum(gap for gap in gaps if gap < 20 * usual + 60)


def _open_lines(path: Path, step: int):
  if path.exists():
    kept = [r for r in read_metrics(path.parent) if r.get("step", 0) <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
  return open(path, "a", encoding="utf-8")


def _open_events(folder: Path, step: int):
  """(add(step, time, metrics), close) of a new TensorBoard event file."""
  from tensorboard.summary.writer.record_writer import RecordWriter

  proto = "tensorboard.compat.proto."
  events = importlib.import_module(proto + "event_pb2")
  summaries = importlib.import_module(proto + "summary_pb2")

  folder.mkdir(parents=True, exist_ok=True)
  name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
  file = open(folder / name, "ab")
  writer = RecordWriter(file)

  def add(event):
    writer.write(event.SerializeToString())
    file.flush()

  add(events.Event(wall_time=time.time(), file_version="brain.Event:2"))
  # Tells TensorBoard to forget what an earlier run logged beyond this step.
  start = events.SessionLog(status=events.SessionLog.START)
  add(events.Event(wall_time=time.time(), step=step + 1, session_log=start))

  def add_metrics(step, now, metrics):
    values = [
      summaries.Summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
    ]
    add(events.Event(wall_time=now, step=step, summary=summaries.Summary(value=values)))

  return add_metrics, writer.close


class _Live(NamedTuple):
  show: Callable[[int, Mapping[str, float]], None]
  say: Callable[[str], None]
  end: Callable[[], None]


def _progress_line(train_steps: int, batch_size: int) -> _Live:
  """On a terminal, one line that is overwritten; else a line at most every 10 s."""
  terminal, width = sys.stderr.isatty(), 0
  marks = collections.deque(maxlen=20)  # (time, step): the rate is theirs
  printed = 0.0

  def show(step, metrics):
    nonlocal printed, width
    now = time.time()
    marks.append((now, step))
    rate = (step - marks[0][1]) / max(now - marks[0][0], 1e-9)
    if not terminal and step < train_steps and now - printed < 10:
      return
    printed = now
    left = duration((train_steps - step) / rate) if rate else "?"
    text = (
      f"step {step}/{train_steps} | {rate * batch_size:,.0f} images/s | ETA {left} | "
    )
    text += " | ".join(f"{k} {v:.4g}" for k, v in main_losses(metrics).items())
    if terminal:
      sys.stderr.write("\r" + text[:200].ljust(width))
      width = len(text[:200])
    else:
      sys.stderr.write(text + "\n")
    sys.stderr.flush()

  def end():
    nonlocal width
    if terminal and width:
      sys.stderr.write("\n")
    width = 0

  def say(message):
    end()
    print(f"mmgen_jax: {message}", file=sys.stderr, flush=True)

  return _Live(show, say, end)


def main_losses(metrics: Mapping[str, float], most: int = 4) -> dict[str, float]:
  """The few metrics that a progress line has room for: losses first, no norms."""
  names = [n for n in metrics if not n.startswith(("norm/", "guard/", "speed/"))]
  ranks = ("loss", "elbo", "fool", "d", "g", "kl")

  def rank(name):
    return min(
      (
        i
        for i, word in enumerate(ranks)
        if name.rsplit("/", 1)[-1].split("_")[0] == word
      ),
      default=len(ranks),
    )

  return {name: metrics[name] for name in sorted(names, key=rank)[:most]}


def duration(seconds: float) -> str:
  """A time for people: 1h02m, 3m20s or 12s."""
  seconds = int(seconds)
  if seconds >= 3600:
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
  return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def window_mean(dispatches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
  """The mean of each metric over updates ([updates] per dispatch).

  Updates that the non-finite guard dropped are left out, and counted as
  "guard/skipped".
  """
  dispatches = list(dispatches)
  if not dispatches:
    return {}

  def join(name):
    return np.concatenate([np.atleast_1d(d[name]) for d in dispatches])

  sound = join("guard/nonfinite") == 0
  means = {
    name: float(join(name)[sound].mean(dtype=np.float64)) if sound.any() else np.nan
    for name in dispatches[0]
    if not name.startswith("guard/")
  }
  return {**means, "guard/skipped": float((~sound).sum())}
