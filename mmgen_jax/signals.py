"""SIGTERM and SIGINT as a request to stop at the next step boundary, on every process.

One process acts on its own flag. Several must stop after the same step, so the flag is
an input of the compiled step, a column of the batch: its mean over the global batch
comes back among the metrics, equal on all of them. That costs one scalar all-reduce in
a program that has others; a collective of its own at each boundary would be a second
program that may interleave with the step, and JAX's preemption service hears SIGTERM
only.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmgen_jax.parallel import pmean

STOP = "guard/stop"  # the metric; "guard/" keeps it out of the non-finite guard
_COLUMN = "stop"


@contextlib.contextmanager
def catch() -> Iterator[Callable[[], bool]]:
  """Yields `requested()`: whether SIGTERM or SIGINT has come.

  The first SIGINT is a request, the second interrupts at once. Handlers go back to what
  they were at the end. Outside the main thread, where Python allows no handlers,
  `requested()` stays False.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  received: list[int] = []

  def on_signal(number, frame):
    del frame
    received.append(number)
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    again = "; once more stops at once" if number == signal.SIGINT else ""
    name = signal.Signals(number).name
    text = (
      f"\nmmgen_jax: {name}: saving at the next step boundary, then stopping{again}\n"
    )
    os.write(2, text.encode())  # sys.stderr may be in the middle of a write

  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.signal(number, on_signal) for number in numbers}
  try:
    yield lambda: bool(received)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def with_stop_column(step: Callable, fetch: Callable) -> tuple[Callable, Callable]:
  """`step` and `fetch` that carry the column from the inputs to the metric STOP."""

  def fetch_with_stop(data, inputs):
    inputs = dict(inputs)
    stop = inputs.pop(_COLUMN)
    return {**fetch(data, inputs), _COLUMN: stop}

  def step_with_stop(state, batch, key, *, axis=None):
    batch = dict(batch)
    stop = batch.pop(_COLUMN)
    state, metrics = step(state, batch, key, axis=axis)
    return state, {**metrics, STOP: pmean(stop.mean(), axis)}

  return step_with_stop, fetch_with_stop


def add_stop_column(inputs: dict, requested: bool) -> dict:
  """`inputs` [updates, rows, ...] with this process's flag beside every row."""
  updates, rows = jax.tree.leaves(inputs)[0].shape[:2]
  return {**inputs, _COLUMN: np.full((updates, rows), requested, np.float32)}


def any_process(requested: bool) -> bool:
  """Whether any process was asked to stop; every process has to call it."""
  if jax.process_count() == 1:
    return requested
  return bool(multihost_utils.process_allgather(np.int32(requested)).any())
