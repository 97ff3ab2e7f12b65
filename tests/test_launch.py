"""The command line: one line for what a user can mend, exit codes, a dry run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mmgen_jax import checkpoint, loop, process

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
    ([SMOKE, "--workdir={tmp}", "--num_processes=2"], "need --distributed"),
    (["--workdir={tmp}"], "--config is missing, and there is no {tmp}/config.json"),
    ([SMOKE, "--workdir=gs://b/x"], "'gs://b/x' is a URL"),
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


def error_from(raiser):
  with pytest.raises(BaseException) as caught:
    raiser()
  return caught.value


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
  assert process.one_line(ValueError("two\n  lines"), 2) == "two lines"


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
