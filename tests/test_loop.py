"""The loop: resume bit for bit after any end, guards, logs; with real signals."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmgen_jax import checkpoint, log, loop, parallel, process, signals

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds: machines that run tests can be very busy


def run(workdir, **changes):
  """The tiny run in this process: (digest, state)."""
  config = tiny.config(**changes)
  state = loop.train(config, workdir, examples=tiny.examples(), family=tiny.Family)
  return checkpoint.digest(state), state


def start(workdir, **changes):
  """The tiny run as a process of its own, with one device: (process, what it says)."""
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  command = [sys.executable, str(ROOT / "tests" / "tiny.py"), str(workdir)]
  command += [f"{k}={v}" for k, v in changes.items()]
  said = Path(tempfile.mkstemp(suffix=".txt", dir=workdir.parent)[1])
  with open(said, "w") as f:
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=f, stderr=f), said


def end(started):
  """(exit code, the digest it printed, all that it said)."""
  process, said = started
  process.wait(timeout=PATIENCE)
  text = said.read_text()
  digest = re.search(r"digest (\w+)", text)
  return process.returncode, digest and digest[1], text


def wait_until(condition, started):
  """Until the condition holds, while the process runs."""
  since = time.time()
  while not condition():
    assert started[0].poll() is None, end(started)
    assert time.time() - since < PATIENCE, started[1].read_text()
    time.sleep(0.02)


def wait_to_hear(words, started):
  wait_until(lambda: words in started[1].read_text(), started)


def newest(workdir):
  return max(checkpoint.steps(workdir / "checkpoints"), default=-1)


def straight_digest(workdir, **changes):
  """The digest of the run that never stopped, as processes like those of `start`."""
  code, digest, err = end(start(workdir, **changes))
  assert code == 0, err
  return digest


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """The digest of 40 steps on one device, never stopped."""
  return straight_digest(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize(
  ("feed", "parallel"), [("resident", "jit"), ("streamed", "jit"), ("resident", "pmap")]
)
def test_n_plus_m_steps_are_n_then_m(tmp_path, feed, parallel):
  data = {**tiny.config().data.to_dict(), "feed": feed}
  changes = {"parallel": parallel, "data": data}
  whole, _ = run(tmp_path / "whole", train_steps=12, **changes)
  run(tmp_path / "parts", train_steps=8, **changes)
  parts, state = run(tmp_path / "parts", train_steps=12, **changes)
  assert parts == whole and int(state.step) == 12


def test_a_step_that_no_dispatch_ends_at_is_refused(tmp_path):
  run(tmp_path, train_steps=8)
  grid = dict.fromkeys(("updates_per_dispatch", "log_steps", "save_steps"), 5)
  with pytest.raises(ValueError, match="of step 8, which is no multiple"):
    run(tmp_path, train_steps=45, sample_steps=5, **grid)


def test_feeds_train_the_same_state(tmp_path):
  data = {**tiny.config().data.to_dict(), "feed": "streamed"}
  streamed, _ = run(tmp_path / "a", train_steps=8, data=data)
  assert streamed == run(tmp_path / "b", train_steps=8)[0]


def test_killed_then_asked_to_stop_then_finished(tmp_path, reference):
  """One run: kill -9 at a random moment, SIGTERM, SIGINT, then to the end."""
  started = start(tmp_path, pause=0.03)
  wait_until(lambda: newest(tmp_path) >= 4, started)
  time.sleep(random.random() * 0.3)
  started[0].kill()
  assert end(started)[0] == -signal.SIGKILL
  for number in (signal.SIGTERM, signal.SIGINT):
    reached = newest(tmp_path)
    started = start(tmp_path, pause=0.1)
    wait_to_hear(f"step {reached + 2}/40", started)
    started[0].send_signal(number)
    code, digest, said = end(started)
    assert (code, digest) == (75, None), said
    stopped = re.search(r"stopped at step (\d+) of 40, which is saved", said)
    assert stopped and newest(tmp_path) == int(stopped[1]) > reached
  assert end(start(tmp_path))[:2] == (0, reference)
  records = log.read_metrics(tmp_path)
  assert [r["step"] for r in records] == sorted({r["step"] for r in records})


def test_a_folder_is_trained_in_by_one_process(tmp_path, reference, monkeypatch):
  """Another one is told who has it, and leaves the run as it is; kill -9 frees it."""
  started = start(tmp_path, pause=0.2)
  wait_until(lambda: newest(tmp_path) >= 4, started)
  monkeypatch.setattr(process, "OWNER_SECS", 0.2)
  with pytest.raises(ValueError, match=f"is in use: process {started[0].pid} of "):
    run(tmp_path)
  started[0].kill()
  end(started)
  assert end(start(tmp_path))[:2] == (0, reference)


def port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start_two(workdir, **changes):
  together = {"coordinator": f"localhost:{port()}", "processes": 2}
  return [start(workdir, **together, process=i, **changes) for i in range(2)]


def test_two_processes(tmp_path, reference):
  """Two give what one gives; lose one, stop one, go on: equal bits in the end."""
  ends = [end(p) for p in start_two(tmp_path / "straight")]
  assert [e[0] for e in ends] == [0, 0] and ends[0][1] == ends[1][1], ends
  like = jax.eval_shape(lambda: tiny.Family.init(jax.random.key(0), tiny.config(), {}))
  two, _ = checkpoint.load(tmp_path / "straight" / "checkpoints", like)
  one = run(tmp_path / "one")[1]
  for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
    # bfloat16 leaves hold 8 bits
    tolerance = 2e-2 if a.dtype == jnp.bfloat16 else 1e-5
    x, y = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

  workdir = tmp_path / "interrupted"
  first, second = start_two(workdir, pause=0.05)
  wait_until(lambda: newest(workdir) >= 4, first)
  second[0].kill()
  since = time.time()
  code, _, said = end(first)
  assert code == 71 and "lost another one" in said and time.time() - since < 30
  end(second)

  reached = newest(workdir)
  first, second = start_two(workdir, pause=0.1)
  wait_until(lambda: newest(workdir) > reached, first)
  second[0].send_signal(signal.SIGTERM)
  stopped = [end(first), end(second)]
  assert [e[0] for e in stopped] == [75, 75], stopped
  assert [e[1] for e in map(end, start_two(workdir))] == [ends[0][1]] * 2


def test_a_damaged_step_costs_steps_not_the_run(tmp_path):
  whole, _ = run(tmp_path, train_steps=12)
  newest = tmp_path / "checkpoints" / "12"
  largest = max((f for f in newest.rglob("*") if f.is_file()), key=os.path.getsize)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 4
  largest.write_bytes(data)
  assert run(tmp_path, train_steps=12)[0] == whole
  assert (tmp_path / "checkpoints" / "12.damaged-bits").is_dir()


def test_nonfinite_stop_keeps_the_last_good_state(tmp_path):
  with pytest.raises(loop.NonFiniteError, match="update 11: tiny/loss is nan"):
    run(tmp_path, poison=11)  # the last before a save
  assert checkpoint.steps(tmp_path / "checkpoints") == [4, 8]
  like = jax.eval_shape(lambda: tiny.Family.init(jax.random.key(0), tiny.config(), {}))
  state, step = checkpoint.load(tmp_path / "checkpoints", like)
  assert step == state.step == 8
  assert all(
    np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(state)
  )


def test_nonfinite_skip_drops_the_update_and_counts_it(tmp_path, capsys):
  _, state = run(tmp_path, poison=9, nonfinite="skip", train_steps=16)
  assert int(state.step) == 16
  assert all(
    np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(state)
  )
  records = log.read_metrics(tmp_path)
  assert [r["guard/skipped"] for r in records] == [0, 0, 1, 0]
  assert all(np.isfinite(r["tiny/loss"]) for r in records)
  assert "update 9: tiny/loss is nan; skipped 1 of 2" in capsys.readouterr().err


def test_nonfinite_rollback_tries_again_with_other_noise(tmp_path, capsys):
  changes = {"nonfinite": "rollback", "poison": 9, "train_steps": 16}
  digest, state = run(tmp_path / "a", **changes)
  assert int(state.step) == 16 and int(state.extra["attempt"]) == 1
  assert "back to step 8, attempt 1 of 2" in capsys.readouterr().err
  assert [r["step"] for r in log.read_metrics(tmp_path / "a")] == [4, 8, 12, 16]
  assert run(tmp_path / "b", **changes)[0] == digest  # attempts are deterministic
  assert run(tmp_path / "c", train_steps=16)[0] != digest
  shutil.rmtree(tmp_path / "b" / "checkpoints" / "16")  # killed after the roll-back
  assert run(tmp_path / "b", **changes)[0] == digest  # and goes on with its noise
  with pytest.raises(loop.NonFiniteError, match="rolled back 2 times already"):
    run(tmp_path / "d", **changes, poison_attempts=9)
  # before there is a checkpoint, back to the start
  assert int(run(tmp_path / "e", **(changes | {"poison": 1}))[1].step) == 16


def test_hooks_and_logs(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  seen = []
  config = tiny.config(train_steps=16, sample_steps=6)
  loop.train(
    config,
    tmp_path,
    examples=tiny.examples(),
    family=tiny.Family,
    on_samples=lambda state, step: seen.append((step, int(state.step))),
  )
  assert seen == [(6, 6), (12, 12), (16, 16)]
  records = log.read_metrics(tmp_path)
  assert [r["step"] for r in records] == [4, 8, 12, 16]
  events = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("tiny/loss")
  assert [e.step for e in events] == [4, 8, 12, 16]
  np.testing.assert_allclose(
    [e.value for e in events], [r["tiny/loss"] for r in records], rtol=1e-6
  )
  assert json.loads((tmp_path / "config.json").read_text()) == config.to_dict()
  assert run(tmp_path, train_steps=20)  # says what changed, and lists both starts
  kept = json.loads((tmp_path / "provenance.json").read_text())
  assert [s["step"] for s in kept["starts"]] == [0, 16] and kept["versions"]["jax"]
  events = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("tiny/loss")
  assert [e.step for e in events] == [4, 8, 12, 16, 20]
  assert "tensorflow" not in sys.modules


def test_a_torn_metrics_file_is_mended(tmp_path):
  run(tmp_path, train_steps=8)
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 12, "tiny/loss": 1.0}\n{"step": 16, "ti')
  run(tmp_path, train_steps=12)
  records = log.read_metrics(tmp_path)
  assert [r["step"] for r in records] == [4, 8, 12] and records[-1]["tiny/loss"] != 1


def test_window_mean_leaves_out_dropped_updates():
  one = {"a": np.array([1.0, np.nan]), "guard/nonfinite": np.array([0, 1])}
  two = {"a": np.array([2.0, 6.0]), "guard/nonfinite": np.array([0, 0])}
  assert log.window_mean([one, two]) == {"a": 3.0, "guard/skipped": 1.0}
  assert log.window_mean([]) == {}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_one_flag_stops_all(mode):
  """Any row's flag reaches every process through the metrics, and changes nothing."""
  examples, mesh = tiny.examples(), parallel.make_mesh()
  feed = loop.make_feed(tiny.config(), examples)
  plain = tiny.Family.make_train_step(tiny.config(), examples.modalities)
  step, fetch = signals.with_stop_column(plain, feed.fetch)
  compiled = parallel.compile_step(step, mesh, mode, fetch=fetch, updates=2)
  inputs = feed.inputs(0, 2)
  stops = []
  for requested in (False, True):
    flagged = signals.add_stop_column(inputs, requested)
    flagged["stop"][:, 1:] = 0  # one row of eight
    state = tiny.Family.init(jax.random.key(0), tiny.config(), {})
    state, data, key = parallel.put_replicated(
      (state, feed.data, jax.random.key(1)), mesh
    )
    _, metrics = compiled(state, data, parallel.put_inputs(flagged, mesh, mode), key)
    assert not metrics["guard/nonfinite"].any()
    stops.append(bool((metrics[signals.STOP] > 0).all()))
  assert stops == [False, True]


def test_the_second_interrupt_is_at_once(capfd):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with signals.catch() as requested:
    assert not requested()
    os.kill(os.getpid(), signal.SIGINT)
    assert requested()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  assert "SIGINT: saving at the next step boundary" in capfd.readouterr().err


def test_no_handlers_outside_the_main_thread(tmp_path):
  digests = []
  thread = threading.Thread(
    target=lambda: digests.append(run(tmp_path / "a", train_steps=4)[0])
  )
  thread.start()
  thread.join()
  assert digests == [run(tmp_path / "b", train_steps=4)[0]]
