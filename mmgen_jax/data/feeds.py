"""Batches as a pure function of (seed, step), by two ways that agree bit for bit.

*Resident*: the whole split lives in device memory in stored form, and the compiled step
indexes it. *Streamed*: grain's threads and worker processes read the rows of each step
on the host. A checkpoint needs no data position beyond its step, and the stream is the
same for any number of devices, processes and workers.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmgen_jax.data import modality as modality_lib
from mmgen_jax.data.examples import Examples, as_channels
from mmgen_jax.data.order import Seed, batch_indices, missing_mask

Rate = float | Mapping[str, float | np.ndarray]

__all__ = ["Feed", "batch_indices", "missing_mask", "resident_feed", "streamed_feed"]


class Feed(NamedTuple):
  """How a run gets its batches.

  Attributes:
    data: numpy arrays that stay on the device for the whole run; () if streamed.
    inputs: (first_step, updates) -> what the host gives for these updates: this
      process's rows, leaves [updates, rows, ...]. Any first_step is allowed at any
      time; consecutive ones are fast.
    fetch: (data, inputs of one update) -> batch in model space; traced, gathers only:
      `{modality: [b, ...], "mask": {modality: bool [b]}, "labels": {name: int32 [b]},
      "index": int32 [b]}`.
    close: ends threads and workers; may be called more than once.
  """

  data: Any
  inputs: Callable[[int, int], dict[str, Any]]
  fetch: Callable[[Any, dict[str, Any]], dict[str, Any]]
  close: Callable[[], None]


def _mask_of(examples: Examples, seed: Seed, rate: Rate, always: Sequence[str]):
  # Which data are missing belongs to the run, not to the attempt: a roll-back changes
  # the order of the examples and must not bring new data in.
  run_seed = seed[0] if isinstance(seed, tuple) else seed
  names = list(examples.modalities)
  return missing_mask(run_seed, len(examples), names, rate, always, examples.present)


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  """This process's contiguous rows of a global batch."""
  if batch_size % process_count:
    raise ValueError(
      f"batch_size {batch_size} is not divisible by {process_count} processes"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f"process {process_index} of {process_count}")
  rows = batch_size // process_count
  return slice(process_index * rows, (process_index + 1) * rows)


def _smallest(values: np.ndarray, top: int) -> np.ndarray:
  """Integers in [0, top] in the smallest type that holds them."""
  for dtype in (np.uint8, np.uint16):
    if top <= np.iinfo(dtype).max and values.min(initial=0) >= 0:
      return values.astype(dtype, copy=False)
  return values


def resident_feed(
  examples: Examples,
  *,
  seed: Seed,
  batch_size: int,
  missing_rate: Rate = 0.0,
  always: Sequence[str] = (),
  process_index: int = 0,
  process_count: int = 1,
) -> Feed:
  """A feed whose data live in device memory; the host sends int32 indices.

  Args:
    examples: in memory or memory-mapped.
    seed: the run's, or (run seed, attempt).
    batch_size: of the global batch.
    missing_rate: see `missing_mask`.
    always: modalities that `missing_rate` never drops.
    process_index: whose rows `inputs` gives.
    process_count: how many share a global batch.
  """
  part = _part(batch_size, process_index, process_count)
  modalities, n = examples.modalities, len(examples)
  columns: dict[str, Any] = {}
  for name, column in examples.columns.items():
    values = column.values
    if not isinstance(values, np.ndarray):
      raise ValueError(
        f"{examples.name}: {name} is decoded on access, so it cannot live in device"
        f' memory; set config.data.feed="streamed"'
      )
    if modalities[name].kind == "text":
      values = _smallest(values, len(modalities[name].vocabulary) - 1)
    columns[name] = {"values": values}
    if column.rows is not None:
      columns[name]["rows"] = _smallest(column.rows, len(values) - 1)
  data = {
    "columns": columns,
    "mask": _mask_of(examples, seed, missing_rate, always),
    "labels": {
      name: _smallest(value, int(value.max()))
      for name, value in examples.labels.items()
    },
  }

  def inputs(first_step: int, updates: int) -> dict[str, Any]:
    steps = range(first_step, first_step + updates)
    index = [batch_indices(seed, step, n, batch_size)[part] for step in steps]
    return {"index": np.stack(index)}

  def fetch(data, inputs):
    index = inputs["index"]
    batch: dict[str, Any] = {}
    for name, modality in modalities.items():
      column = data["columns"][name]
      rows = (
        _gather(column["rows"], index).astype(jnp.int32) if "rows" in column else index
      )
      stored = as_channels(_gather(column["values"], rows), rows)
      batch[name] = modality_lib.to_model(modality, stored)
    batch["mask"] = {name: _gather(mask, index) for name, mask in data["mask"].items()}
    batch["labels"] = {
      name: _gather(label, index).astype(jnp.int32)
      for name, label in data["labels"].items()
    }
    batch["index"] = index
    return batch

  return Feed(data, inputs, fetch, lambda: None)


def _gather(table, rows):
  # In bounds by construction: without the promise XLA adds compares and selects.
  return jnp.asarray(table).at[rows].get(mode="promise_in_bounds")


def streamed_feed(
  examples: Examples,
  *,
  seed: Seed,
  batch_size: int,
  missing_rate: Rate = 0.0,
  always: Sequence[str] = (),
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 2,
  ahead: int = 8,
) -> Feed:
  """A feed that reads on the host, ahead of the step; the same batches as resident.

  Args:
    examples: may decode on access; must pickle if there are workers.
    seed: the run's, or (run seed, attempt).
    batch_size: of the global batch.
    missing_rate: see `missing_mask`.
    always: modalities that `missing_rate` never drops.
    process_index: whose rows `inputs` gives.
    process_count: how many share a global batch.
    workers: reading processes; 0 reads in threads of this one.
    threads: per reading process.
    ahead: batches read before they are asked for.
  """
  part = _part(batch_size, process_index, process_count)
  mask = _mask_of(examples, seed, missing_rate, always)
  read = functools.partial(_read_batch, examples, mask, seed, batch_size, part)
  stream: Any = None
  next_step = -1

  def close() -> None:
    nonlocal stream
    if stream is not None:
      stream.close()
      stream = None

  def inputs(first_step: int, updates: int) -> dict[str, Any]:
    nonlocal stream, next_step
    if stream is None or first_step != next_step:
      close()
      stream = _open_stream(read, first_step, workers, threads, ahead)
    try:
      rows = list(itertools.islice(stream, updates))
    except BaseException:
      close()  # what is left of the stream is not usable
      raise
    next_step = first_step + updates
    return _stack(rows)

  def fetch(data, inputs):
    del data
    return {
      name: modality_lib.to_model(examples.modalities[name], value)
      if name in examples.modalities
      else value
      for name, value in inputs.items()
    }

  return Feed((), inputs, fetch, close)


def _read_batch(examples: Examples, mask, seed, batch_size, part, step):
  index = batch_indices(seed, int(step), len(examples), batch_size)[part]
  batch = examples.rows(index)
  batch["mask"] = {name: keep[index] for name, keep in mask.items()}
  return batch


def _stack(rows: list[dict[str, Any]]) -> dict[str, Any]:
  first = rows[0]
  return {
    name: _stack([row[name] for row in rows])
    if isinstance(first[name], dict)
    else np.stack([row[name] for row in rows])
    for name in first
  }


def _open_stream(read, first_step: int, workers: int, threads: int, ahead: int):
  import grain  # heavy, and defines absl flags when imported
  from absl import flags

  if not flags.FLAGS.is_parsed():
    # grain's workers read absl flags and fail outside absl.app (google/grain#1355).
    flags.FLAGS.mark_as_parsed()
  each = max(1, ahead // max(1, workers))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=each)
  steps = grain.MapDataset.range(first_step, np.iinfo(np.int32).max)
  stream = steps.map(read).to_iter_dataset(options)
  if workers:
    stream = stream.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each),
      worker_init_fn=_start_worker,
    )
  return iter(stream)


def _start_worker(index: int, count: int) -> None:
  """Makes a worker live exactly as long as the process it reads for."""
  del index, count
  import multiprocessing
  import os
  import signal
  import threading

  # A terminal or a cluster signals the whole group; the parent still has a step to
  # finish and a checkpoint to write, and ends its workers by itself.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def end_with_parent():
    if parent is not None:
      parent.join()
      os._exit(1)  # the parent was killed: nobody else will end this process

  threading.Thread(target=end_with_parent, daemon=True).start()
