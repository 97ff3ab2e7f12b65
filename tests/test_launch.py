"""The command line: one line for what a user can mend, exit codes, a dry run."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from mmgen_jax import checkpoint, loop, process, provenance, safetensors
from mmgen_jax import config as config_lib
from mmgen_jax import data as datasets
from mmgen_jax.steps import recognition

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/quickstart.py:smoke"


def launch(*arguments, **env):
  kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, "launch.py", *map(str, arguments)],
    cwd=ROOT,
    env=kept | env,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/none.py"], "no config file 'configs/none.py'"),
    (["--config=configs/quickstart.py:huge"], "no variant 'huge'; there are"),
    ([SMOKE, "--config.sed=1"], "no field 'sed' Did you mean \"seed\""),
    ([SMOKE, "--config.seed=one"], "--config.seed=one: invalid literal for int"),
    ([SMOKE, "--wordkir=x"], "Unknown command line flag 'wordkir'"),
    (
      [SMOKE, "--mode=tain"],
      "should be one of <train|evaluate|sample|report|fuse|compare>",
    ),
    ([SMOKE, "stray"], "unexpected argument 'stray'"),
    ([SMOKE], "--workdir is missing"),
    (
      [SMOKE, "--workdir={tmp}", "--given=caption=red"],
      "--given goes with --mode=sample, not --mode=train",
    ),
    (
      [SMOKE, "--workdir={tmp}", "--mode=sample", "--count=0"],
      "flag --count=0: 0 is not a positive integer",
    ),
    (
      [SMOKE, "--workdir={tmp}", "--mode=sample", "--given=caption=mauve"],
      "caption: 'mauve' was not in training; what was: big",
    ),
    ([SMOKE, "--workdir={tmp}", "--num_processes=2"], "need --distributed"),
    (
      ["--mode=compare", "--workdir={tmp}", "--distributed"],
      "--distributed does not go with --mode=compare, where every run is one process:"
      " to spread a sweep, use --index",
    ),
    (
      ["--mode=fuse", "--workdir={tmp}/x", "--process_id=0"],
      "--process_id does not go with --mode=fuse, which is one process",
    ),
    (["--mode=fuse", "--ingredients={tmp}", "--dry_run"], "--workdir is missing"),
    (
      ["--mode=fuse", "--ingredients={tmp}/a", "--workdir={tmp}/x", "--dry_run"],
      "no workdir or .safetensors file '{tmp}/a'",
    ),
    (
      ["--mode=fuse", "--method=mean", "--workdir={tmp}/x", "--dry_run"],
      "method must be one of",
    ),
    (["--workdir={tmp}"], "--config is missing, and there is no {tmp}/config.json"),
    ([SMOKE, "--workdir=gs://b/x"], "'gs://b/x' is a URL"),
    ([SMOKE, "--workdir=/dev/null/x"], "/dev/null/x cannot be a folder: /dev/null is"),
    (
      ["--workdir={tmp}", "--config.seed=1"],
      "--config.seed=1 is an override: it needs --config=FILE, and there is no {tmp}/c",
    ),
    (["--config.seed=1"], "--config.seed=1 is an override: it needs --config=FILE"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
  done = launch(*(a.format(tmp=tmp_path) for a in arguments))
  lines = done.stderr.splitlines()
  assert done.returncode == 2, done.stderr
  assert len(lines) == 1 and lines[0].startswith("mmgen_jax: error: "), done.stderr
  assert words.format(tmp=tmp_path) in lines[0]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("override", "words"),
  [
    ("--config.data.name=spirits", "no data set is called 'spirits'"),
    ("--config.family=gam", "family must be one of"),
    ("--config.save_steps=3", "save_steps = 3 must be a multiple of"),
    ("--config.sample_steps=0", "sample_steps must be at least 1, got 0"),
    ("--config.eval.bootstrap=0", "eval.bootstrap must be at least 1, got 0"),
  ],
)
def test_a_config_that_does_not_fit_together(tmp_path, override, words):
  done = launch(SMOKE, f"--workdir={tmp_path}", "--dry_run", override)
  assert done.returncode == 2 and words in done.stderr, done.stderr
  assert "Traceback" not in done.stderr


def test_a_dry_run_prints_all_and_writes_nothing(tmp_path):
  done = launch(SMOKE, f"--workdir={tmp_path}/run", "--dry_run")
  assert done.returncode == 0, done.stderr
  assert "  seed = 0" in done.stdout and "  optim.learning_rate = " in done.stdout
  assert re.search(r"^  vae: [\d,]{5,}$", done.stdout, re.M), done.stdout
  assert re.search(r"examples: \d[\d.,]* GFLOP$", done.stdout, re.M), done.stdout
  assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_merge_writes_nothing(tmp_path):
  for name in ("a", "b"):
    safetensors.save(tmp_path / f"{name}.safetensors", {"w": np.ones(3)}, {})
  before, soup = sorted(tmp_path.iterdir()), tmp_path / "soup.safetensors"
  sources = ",".join(map(str, before))
  words = ["--mode=fuse", f"--ingredients={sources}", f"--workdir={soup}"]
  done = launch(*words, "--dry_run")
  assert done.returncode == 0, done.stderr
  assert f"{soup}: average of {before[0]}, {before[1]}" in done.stdout
  assert sorted(tmp_path.iterdir()) == before
  assert launch(*words).returncode == 0 and soup.is_file()


def test_overrides_alone_are_of_the_config_of_the_workdir(tmp_path):
  kept = config_lib.load("configs/quickstart.py:smoke")
  kept.batch_size = 12
  (tmp_path / "config.json").write_text(config_lib.to_json(kept))
  done = launch(f"--workdir={tmp_path}", "--dry_run", "--config.seed=5")
  assert done.returncode == 0, done.stderr
  assert "  seed = 5" in done.stdout and "  batch_size = 12" in done.stdout
  done = launch("--workdir", tmp_path, "--dry_run", "--config.sed=5")
  assert done.returncode == 2 and "no field 'sed'" in done.stderr, done.stderr
  done = launch(f"--workdir={tmp_path}", "--mode=compare", "--config.seed=5")
  assert done.returncode == 2 and "has get_sweep" in done.stderr, done.stderr


def test_only_the_first_of_two_processes_writes_the_page(tmp_path):
  text = config_lib.to_json(config_lib.load("configs/quickstart.py:smoke"))
  (tmp_path / "config.json").write_text(text)
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  together = ["--distributed", f"--coordinator={address}", "--num_processes=2"]
  of = lambda i: launch(
    *together, f"--process_id={i}", "--mode=report", f"--workdir={tmp_path}"
  )
  with ThreadPoolExecutor(2) as pool:
    first, second = pool.map(of, range(2))
  assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
  assert "report.html" in first.stdout and not second.stdout


def test_processes_of_one_id_do_not_take_each_others_file(tmp_path, monkeypatch):
  """In containers each is process 1."""
  monkeypatch.setattr(os, "getpid", lambda: 1)
  path, replace = tmp_path / "page", os.replace

  def slow(*names):
    time.sleep(0.01)
    replace(*names)

  monkeypatch.setattr(os, "replace", slow)
  write = lambda i: provenance.write_atomically(path, f"{i}" * 1000)
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(write, range(8)))
  assert len(set(path.read_text())) == 1 and list(tmp_path.iterdir()) == [path]


def error_from(raiser):
  with pytest.raises(BaseException) as caught:
    raiser()
  return caught.value


def test_a_sweeps_runs_get_the_overrides(tmp_path):
  code = (
    "import launch; print(*launch.worker_command('c.py:x', {'batch_size': 4,"
    " 'optim.learning_rate': 0.1}, 'w', 'd', 3)[2:])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == [
    "--mode=compare",
    "--config=c.py:x",
    "--config.batch_size=4",
    "--config.optim.learning_rate=0.1",
    "--workdir=w",
    "--data_dir=d",
    "--index=3",
  ]


def test_exit_codes():
  def ours():  # an error that this package raises
    checkpoint.local_directory("gs://x")

  def jaxs():  # a ValueError too, but nobody's input
    jax.numpy.zeros((2, 3)).reshape(5)

  errors = {
    process.STOPPED: loop.Stopped("x"),
    process.NON_FINITE: loop.NonFiniteError("x"),
    process.SAVE_FAILED: checkpoint.SaveError("x"),
    process.BAD_INPUT: error_from(ours),
    1: error_from(jaxs),
  }
  for code, error in errors.items():
    assert process.exit_code(error) == code
  table = (ROOT / "deploy" / "README.md").read_text().split("## Ends")[1]
  told = dict(re.findall(r"(?m)^\| (\d+) \| ([^|]+) \|", table))
  for code, what in [
    (process.BAD_INPUT, "bad input"),
    (process.NON_FINITE, "a loss was not finite"),
    (process.PEER_LOST, "another process"),
    (process.SAVE_FAILED, "a disk is full"),
    (process.STOPPED, "stopped by SIGTERM"),
    (process.INTERRUPTED, "a second SIGINT"),
  ]:
    assert told[str(code)].startswith(what)
  with pytest.raises(SystemExit) as ended:
    process.exit_with(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
  assert ended.value.code == process.INTERRUPTED
  assert process.one_line(ValueError("two\n  lines"), 2) == "two lines"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told_wherever_it_shows(number):
  assert process.exit_code(OSError(number, "x")) == process.SAVE_FAILED
  assert process.exit_code(OSError(errno.EIO, "x")) == 1


def test_pages_are_utf8_where_nothing_else_is(tmp_path):
  ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
  code = "from mmgen_jax.provenance import write_atomically as w; w('page', '\\u2192')"
  command = [sys.executable, "-c", code]
  env = {**os.environ, "PYTHONPATH": str(ROOT), **ascii_only}
  subprocess.run(command, cwd=tmp_path, env=env, check=True)
  assert (tmp_path / "page").read_bytes() == "→".encode()


def test_only_what_others_can_cause_is_a_lost_process(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  code = lambda text: process.exit_code(jax.errors.JaxRuntimeError(text))
  assert code("FAILED_PRECONDITION: connection closed by peer") == process.PEER_LOST
  for fault in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"):
    assert code(f"{fault}: x") == 1


def test_a_sigterm_is_left_to_the_loop(monkeypatch):
  settings, seen = {}, {}
  monkeypatch.setattr(jax.config, "update", settings.__setitem__)
  note = lambda *args, **kwargs: seen.update(settings)
  monkeypatch.setattr(jax.distributed, "initialize", note)
  process.join("localhost:1", 2, 0)
  assert seen["jax_enable_preemption_service"] is False


def test_a_bug_keeps_its_traceback(capsys):
  def bug():
    raise KeyError("nobody expected this")

  with pytest.raises(SystemExit) as caught:
    process.exit_with(bug)
  assert caught.value.code == 1
  assert "Traceback" in (said := capsys.readouterr().err) and "KeyError" in said


def test_kept_memory_is_not_asked_for_again():
  code = """
import resource, sys
from mmgen_jax import process
kept = process.keep_memory() if sys.argv[1] == "keep" else True
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
before = faults()
for _ in range(4):
  bytearray(1 << 26)
print(int(kept), faults() - before)
"""
  run = lambda how: subprocess.run(
    [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
  )
  (_, usual), (kept, few) = (
    map(int, run(how).stdout.split()) for how in ("leave", "keep")
  )
  if not kept:
    pytest.skip("the C library is not glibc")
  assert 10 * few < usual


def test_a_bad_cluster_is_told():
  with pytest.raises(ValueError, match="go together"):
    process.join("localhost:1", 2, None)


def test_a_greedy_soup_by_a_held_out_loss(tmp_path):
  config = config_lib.load(f"{ROOT}/configs/study_fusion.py:sprites,recognise,smoke")
  spec = datasets.spec(config.data.name, **config.data.options)
  runs = [tmp_path / "a", tmp_path / "b"]
  for i, run in enumerate(runs):
    state = recognition.init(jax.random.key(i), config, spec.modalities)
    checkpoint.save(run / "checkpoints", state, 4)
    (run / "config.json").write_text(config_lib.to_json(config))
  words = ["--mode=fuse", "--method=greedy_soup", f"--workdir={tmp_path}/soup"]
  words += [f"--ingredients={runs[0]}:4,{runs[1]}", f"--data_dir={tmp_path}/data"]
  done = launch(*words, '--option=score="elbo"')
  assert done.returncode == 2 and "no held-out 'elbo'" in done.stderr, done.stderr
  done = launch(*words, '--option=score="correct_colour"')
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "soup/fusion.json").read_text())
  assert all(0.0 <= c["own"] <= 1.0 for c in record["candidates"])
  (runs[0] / "config.json").unlink()
  done = launch(*words, '--option=score="nll"')
  assert done.returncode == 2 and "first ingredient" in done.stderr, done.stderr
