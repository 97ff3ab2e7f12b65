"""The one training loop: feeds, dispatches, reads metrics, logs, saves. No maths.

What makes a resumed run the run that never stopped, bit for bit: a batch is a function
of (seed, attempt, step), the noise of a step of (seed, attempt, state.step), all that
training changes is in State, and checkpoints, logs and stops fall on dispatch
boundaries only.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from mmgen_jax import checkpoint, health, initial, process, provenance, signals, steps
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax import log as log_lib
from mmgen_jax.data import feeds, order
from mmgen_jax.data.examples import Examples
from mmgen_jax.parallel import (
  compile_step,
  guard_names,
  make_mesh,
  put_inputs,
  put_replicated,
)
from mmgen_jax.state import State


class NonFiniteError(RuntimeError):
  """A loss or a gradient norm was not finite; the message names step and metric."""


class Stopped(Exception):
  """Training stopped on SIGTERM or SIGINT, after saving. Start it again to go on."""


class _Run(NamedTuple):
  """What stays the same over attempts."""

  config: Any
  dispatch: Callable  # (state, inputs, flag) -> (state, metrics on device)
  log: log_lib.Log
  saver: checkpoint.Saver
  requested: Callable[[], bool]
  on_samples: Callable[[State, int], Mapping[str, float] | None]
  watch: Callable[[Mapping[str, float]], list[str]]


def _missing_rate(config, examples: Examples):
  """`data.missing`, by modality and, with `data.missing_label`, class; else one rate."""
  by_modality, label = config.data.get("missing"), config.data.get("missing_label")
  if not by_modality:
    return config.data.missing_rate
  if label and label not in examples.labels:
    raise ValueError(
      f"data.missing_label is {label!r}; there are {sorted(examples.labels)}"
    )
  labels = examples.labels[label] if label else None
  return order.rates_by_label(by_modality.to_dict(), labels)


def check_labels(config, examples: Examples) -> None:
  """Raises ValueError unless the data have the labels that a model is to learn.

  `model.label` of `model.classes` (`steps.class_label`), or `model.labels`
  {label: classes} ("recognition"): from 0, and known of every example.
  """
  asked, m = {}, config.get("model", {})
  if label := steps.class_label(config):
    asked[label] = "model.label", "model.classes", m.classes
  if config.family == "recognition":
    for label, classes in m.labels.items():
      asked[label] = "model.labels", f"model.labels.{label}", classes
  where = f"{examples.name}/{examples.split}"
  for label, (field, count_field, classes) in asked.items():
    if label not in examples.labels:
      raise ValueError(
        f"{field} names {label!r}; {where} has the labels {sorted(examples.labels)}"
      )
    values = np.asarray(examples.labels[label])
    if unknown := int((values < 0).sum()):
      raise ValueError(
        f"{field} names {label!r}, which {unknown} of {len(values)} examples of {where}"
        " lack (-1): the model learns from labelled ones only, leave out the others"
      )
    if (most := int(values.max())) >= classes:
      wanted = max(most + 1, len(examples.label_names.get(label, ())))
      raise ValueError(
        f"{count_field} is {classes}; {label!r} of {where} is up to {most}:"
        f" it must be {wanted}"
      )


def check_count(config, examples: Examples) -> None:
  """Raises ValueError if an objective over all data is of others than there are.

  `loss.examples` (of beta-TC) must be how many there are; beta-TC and FactorVAE take
  examples that all have the modality.
  """
  if config.get("loss", {}).get("objective") in ("tc", "factor"):
    name = config.model.modality
    lacking = int((~examples.present[name]).sum())
    if lacking:
      raise ValueError(
        f"loss.objective {config.loss.objective!r} takes data with nothing missing;"
        f" {lacking} of {len(examples)} examples of {examples.name}/{examples.split}"
        f" have no {name}"
      )
  said = config.get("loss", {}).get("examples", len(examples))
  if said != len(examples):
    raise ValueError(
      f"loss.examples is {said}; {examples.name}/{examples.split} has {len(examples)},"
      " of which the densities of beta-TC are"
    )


def make_feed(config, examples: Examples, attempt: int = 0) -> feeds.Feed:
  """The training feed of a config, for this process.

  Raises:
    ValueError: if `config.data.feed` names none.
  """
  shared = {
    "seed": (config.seed, attempt),
    "batch_size": config.batch_size,
    "missing_rate": _missing_rate(config, examples),
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  if config.data.feed == "resident":
    return feeds.resident_feed(examples, **shared)
  if config.data.feed == "streamed":
    return feeds.streamed_feed(examples, **shared, workers=config.data.workers)
  raise ValueError(
    f"data.feed must be 'resident' or 'streamed', got {config.data.feed!r}"
  )


def train(
  config,
  workdir,
  *,
  data_dir=None,
  examples: Examples | None = None,
  family: Any = None,
  on_samples: Callable[[State, int], Mapping[str, float] | None] = (
    lambda state, step: None
  ),
) -> State:
  """The State after `config.train_steps`, going on from what `workdir` holds.

  Args:
    config: see configs/common.py.
    workdir: gets checkpoints/, metrics.jsonl, events/, config.json, provenance.json.
    data_dir: where prepared data sets are; default <workdir>/data.
    examples: the training split; default: the one that `config.data` names.
    family: what has `init` and `make_train_step`; default: the module of
      `mmgen_jax.steps` that `config.family` names.
    on_samples: called on every process each `sample_steps` and at the end; it must be
      done with the state when it returns. What it returns is logged.

  Raises:
    Stopped: SIGTERM or SIGINT came; the state is saved.
    NonFiniteError: see `config.nonfinite`; what was saved before stays.
    checkpoint.SaveError: a checkpoint could not be written.
    ValueError: the config does not fit the data or the checkpoint, or another process
      trains in `workdir`.
  """
  workdir = checkpoint.local_directory(workdir)
  family = family or steps.STEPS[config.family]
  if examples is None:
    examples = datasets.load(
      config.data.name, "train", data_dir or workdir / "data", **config.data.options
    )
  if first := config.data.get("first", 0):
    examples = examples.first(first)
  check_labels(config, examples)
  check_count(config, examples)
  with process.own(workdir):
    return _go_on(config, workdir, examples, family, on_samples)


def _go_on(config, workdir, examples: Examples, family, on_samples) -> State:
  """`train`, in a folder that is this run's alone."""
  directory = workdir / "checkpoints"
  init_key, key = jax.random.split(jax.random.key(config.seed))

  @jax.jit
  def init():
    return family.init(init_key, config, examples.modalities)

  def start():
    return initial.fill(init(), config, workdir)

  like = jax.eval_shape(init)
  found = checkpoint.restore_latest(directory, like)
  step = found[1] if found else 0
  if step < config.train_steps and step % config.updates_per_dispatch:
    raise ValueError(
      f"the checkpoint is of step {step}, which is no multiple of updates_per_dispatch"
      f" = {config.updates_per_dispatch}"
    )
  mesh = make_mesh()
  feed = make_feed(config, examples)
  run = _compile(config, family, examples, feed, mesh)
  data, key = put_replicated((feed.data, key), mesh)
  feed.close()

  def dispatch(state, inputs, stop):
    if jax.process_count() > 1:
      inputs = signals.add_stop_column(inputs, stop)
    return run(state, data, put_inputs(inputs, mesh, config.parallel), key)

  fingerprint = config_lib.fingerprint(config)
  changes = provenance.record_start(
    workdir, config_lib.to_json(config), fingerprint, step
  )
  with contextlib.ExitStack() as stack:
    log = log_lib.open_log(
      workdir, step=step, train_steps=config.train_steps, batch_size=config.batch_size
    )
    stack.callback(log.close)
    log.say(f"starting at step {step} of {config.train_steps} in {workdir}")
    if changes:
      log.say(f"the config has changed since the last start: {'; '.join(changes)}")
    saver = checkpoint.open_saver(
      directory,
      keep=config.keep_checkpoints,
      metadata={"config_fingerprint": fingerprint, "versions": provenance.versions()},
    )
    stack.callback(saver.close)
    requested = stack.enter_context(signals.catch())
    watch = health.make_watch()
    this = _Run(config, dispatch, log, saver, requested, on_samples, watch)
    attempt = 0
    while True:
      (state, step), found = found or (start(), 0), None
      attempt = max(attempt, int(state.extra["attempt"]))
      extra = {**state.extra, "attempt": np.int32(attempt)}
      state = put_replicated(state.replace(extra=extra), mesh)
      feed = make_feed(config, examples, attempt)
      try:
        state = _attempt(this, state, step, feed)
        if signals.any_process(requested()):  # since the last step
          raise Stopped(f"stopped after step {config.train_steps}, the last one")
        return state
      except NonFiniteError as e:
        if config.nonfinite != "rollback":
          raise
        if attempt >= config.max_rollbacks:
          raise NonFiniteError(f"{e}; rolled back {attempt} times already") from e
        attempt += 1
        saver.wait()
        found = checkpoint.restore_latest(directory, like)
        back = found[1] if found else 0
        log.rewind(back)
        of = f"attempt {attempt} of {config.max_rollbacks}"
        log.say(f"{e}; back to step {back}, {of}")
      finally:
        feed.close()


def _compile(config, family, examples, feed, mesh) -> Callable:
  step, fetch = family.make_train_step(config, examples.modalities), feed.fetch
  if jax.process_count() > 1:
    step, fetch = signals.with_stop_column(step, fetch)
  return compile_step(
    step,
    mesh,
    config.parallel,
    fetch=fetch,
    updates=config.updates_per_dispatch,
    on_nonfinite=config.nonfinite,
    scan=config.get("scan"),
    compiler_options=config.get("compiler_options"),
  )


def _attempt(run: _Run, state: State, step: int, feed: feeds.Feed) -> State:
  """Trains from `step` to the end; metrics are read one dispatch late."""
  config = run.config
  updates, end = config.updates_per_dispatch, config.train_steps
  window: list[dict] = []
  unread: list[tuple[int, dict]] = []

  def tell(now: int, means: Mapping[str, float]) -> None:
    run.log.write(now, means)
    for message in run.watch(means):
      run.log.say(f"step {now}: {message}")

  def read() -> bool:
    """Reads what is unread; whether a process was asked to stop."""
    stop = False
    if unread:
      first, metrics = unread.pop()
      metrics = jax.device_get(metrics)
      _check_finite(config, run.log, first, metrics)
      window.append(metrics)
      now = first + updates
      if now % config.log_steps == 0 or now == end:
        tell(now, log_lib.window_mean(window))
        window.clear()
      run.log.progress(now, {name: x[-1] for name, x in metrics.items()})
      stop |= bool(metrics.get(signals.STOP, np.zeros(1)).any())
    return stop

  with _ahead(feed.inputs, step, end, updates) as inputs:
    while step < end:
      requested = run.requested()
      state, metrics = run.dispatch(state, next(inputs), requested)
      step += updates
      stop = read()  # of the dispatch before, while this one computes
      unread.append((step - updates, metrics))
      run.saver.poll()
      stop |= jax.process_count() == 1 and run.requested()
      to_save = stop or step == end or step % config.save_steps == 0
      to_show = step == end or step % config.sample_steps == 0
      if to_save or to_show:
        read()  # so that nothing is saved or shown before it is known to be sound
      if to_save:
        run.saver.save(state, step)
      if to_show:
        if found := run.on_samples(state, step):
          tell(step, found)
      if stop:
        run.saver.wait()
        raise Stopped(f"stopped at step {step} of {end}, which is saved")
  run.saver.wait()
  return state


@contextlib.contextmanager
def _ahead(make: Callable, step: int, end: int, updates: int) -> Iterator[Iterator]:
  """Yields an iterator over `make(step, updates)`, each made one dispatch ahead."""
  with ThreadPoolExecutor(1, thread_name_prefix="inputs") as pool:

    def iterate():
      pending = pool.submit(make, step, updates)
      for following in range(step + updates, end + updates, updates):
        inputs = pending.result()
        if following < end:
          pending = pool.submit(make, following, updates)
        yield inputs

    yield iterate()


def _check_finite(config, log: log_lib.Log, first: int, metrics: dict) -> None:
  bad = np.flatnonzero(metrics["guard/nonfinite"])
  if not bad.size:
    return
  u = int(bad[0])
  name = guard_names(metrics)[int(metrics["guard/nonfinite"][u]) - 1]
  message = f"update {first + u}: {name} is {metrics[name][u]}"
  if config.nonfinite != "skip":
    raise NonFiniteError(message)
  log.say(f"{message}; skipped {bad.size} of {len(metrics[name])} updates")
