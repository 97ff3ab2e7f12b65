"""The recipes, with imitations of what they call: who starts again, who is stopped."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[1] / "deploy"

# Each task in a shell of its own; like srun it ends with the highest code.
SRUN = """
shift
for i in 0 1; do TASK=$i "$@" & tasks[i]=$!; done
highest=0
for task in "${tasks[@]}"; do
  wait "$task"; code=$?; ((code > highest)) && highest=$code
done
exit $highest
"""
# One host: a home whose shell runs what is sent to it.
GCLOUD = """
for a in "$@"; do case $a in --command=*) exec bash -c "${a#--command=}" ;; esac; done
"""

# Of the processes of the host alone, never of the machine: those that Python noted, and
# the shell that asks.
PKILL = """
for pid in $PPID $(cat ~/mmgen_jax/pids); do
  tr '\\0' ' ' </proc/$pid/cmdline | grep -qE -- "${@: -1}" && kill -TERM $pid
done
"""


def program(path: Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/bash\n{text}")
  path.chmod(0o755)


def start(script: str, *arguments, cwd: Path, **env) -> subprocess.Popen:
  path = f"{cwd / 'bin'}:{os.environ['PATH']}"
  return subprocess.Popen(
    ["bash", str(DEPLOY / script), *arguments],
    cwd=cwd,
    env={**os.environ, "PATH": path, "HOME": str(cwd), **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def wait_until(condition, secs=60.0) -> None:
  end = time.time() + secs
  while not condition():
    assert time.time() < end
    time.sleep(0.02)


def slurm(cwd: Path, python: str) -> subprocess.Popen:
  program(cwd / "bin" / "srun", SRUN)
  program(cwd / "bin" / "scontrol", 'echo "$@" >>requeued')
  program(cwd / ".venv" / "bin" / "python", python)
  return start("slurm.sh", cwd=cwd, CONFIG="c", WORKDIR="w", SLURM_JOB_ID="7")


@pytest.mark.parametrize(
  ("codes", "code"),
  [
    ((1, 137), 1),
    ((2, 137), 2),
    ((137, 70), 70),
    ((74, 71), 74),
    ((71, 137), 0),
    ((0, 0), 0),
  ],
)
def test_slurm_starts_again_only_where_that_can_help(tmp_path, codes, code):
  of = f"codes=({codes[0]} {codes[1]}); exit ${{codes[TASK]}}"
  said = end(job := slurm(tmp_path, of))
  assert job.returncode == code, said
  assert (tmp_path / "requeued").exists() == (codes == (71, 137))
  assert not (tmp_path / "mmgen-7.final").exists()


def end(job: subprocess.Popen) -> str:
  """What it said."""
  try:
    return job.communicate(timeout=60)[0]
  except subprocess.TimeoutExpired:
    os.killpg(job.pid, signal.SIGKILL)  # its own session
    raise


def pids(path: Path) -> list[int]:
  return [int(word) for word in path.read_text().split()] if path.exists() else []


def test_slurm_waits_for_what_sigterm_makes_a_task_save(tmp_path):
  job = slurm(
    tmp_path,
    'trap "sleep 0.5; touch saved$TASK; exit 75" TERM\necho $$ $PPID >>pids\n'
    "for i in {1..300}; do sleep 0.1; done",
  )
  wait_until(lambda: len(pids(tmp_path / "pids")) == 4)
  for pid in pids(tmp_path / "pids"):  # SLURM signals all that a task has started
    os.kill(pid, signal.SIGTERM)
  said = end(job)
  assert all((tmp_path / f"saved{i}").exists() for i in range(2)), said
  assert "srun ended with 75" in said  # not before: SLURM kills what is then left
  assert (tmp_path / "requeued").read_text() == "requeue 7\n", said


def host(cwd: Path, python: str) -> Path:
  """A home with what `install` leaves there."""
  program(cwd / "bin" / "gcloud", GCLOUD)
  program(cwd / "bin" / "pkill", PKILL)
  (cwd / "mmgen_jax" / ".venv" / "bin").mkdir(parents=True)
  shutil.copy("/bin/bash", cwd / "mmgen_jax" / ".venv" / "bin" / "python")
  (cwd / "mmgen_jax" / "launch.py").write_text(python)
  return cwd


def tpu(cwd: Path, *arguments) -> subprocess.Popen:
  return start("tpu_vm.sh", "name", "zone", *arguments, cwd=cwd, PAUSE="0.2")


def test_stopping_tpu_hosts_saves_and_ends_their_loops(tmp_path):
  host(
    tmp_path,
    'trap "touch saved; exit 75" TERM\necho $$ $PPID >pids\n'
    "for i in {1..300}; do sleep 0.1; done",
  )
  run = tpu(tmp_path, "run", "--config=c", f"--workdir={tmp_path}/w")
  wait_until(lambda: len(pids(tmp_path / "mmgen_jax" / "pids")) == 2)
  stop = tpu(tmp_path, "stop")
  said = end(stop)
  assert stop.returncode == 0, said
  said = end(run)
  assert run.returncode == 75 and (tmp_path / "mmgen_jax" / "saved").exists(), said


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (0, 1), (71, 3)])
def test_a_tpu_host_starts_again_where_that_can_help(tmp_path, code, starts):
  host(
    tmp_path,
    f"echo >>starts; (($(wc -l <starts) < 3)) && exit {code}; exit 0",
  )
  run = tpu(tmp_path, "run", f"--workdir={tmp_path}/w d")
  said = end(run)
  assert run.returncode == (code if code != 71 else 0), said
  assert len((tmp_path / "mmgen_jax" / "starts").read_text()) == starts
  assert [f.read_text() for f in tmp_path.glob("w d/.ended-*")] == ["2\n"] * (code == 2)


def test_a_tpu_host_that_gives_up_ends_the_loops_of_the_others(tmp_path):
  """The second host shares the workdir, and only loses the first."""
  for i, code in enumerate((2, 71)):
    host(tmp_path / f"{i}", f"echo >>starts; exit {code}")
  both = 'for i in 0 1; do HOME="$HOME/$i" bash -c "$run" & done; wait'
  text = GCLOUD.replace(
    'exec bash -c "${a#--command=}"', f"run=${{a#--command=}}; {both}"
  )
  program(tmp_path / "bin" / "gcloud", text)
  run = tpu(tmp_path, "run", f"--workdir={tmp_path}/w")
  end(run)
  assert len((tmp_path / "1" / "mmgen_jax" / "starts").read_text()) <= 3


def test_what_is_installed_on_tpu_hosts(tmp_path):
  for name in ("data/big", "mmgen_jax/data/listing.py", "constraints.txt", "runs/a/x"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  pip = "mkdir -p .venv/bin; printf 'echo \"$@\" >asked' >.venv/bin/pip"
  program(tmp_path / "bin" / "python3", f"{pip}; chmod +x .venv/bin/pip")
  program(tmp_path / "bin" / "gcloud", GCLOUD)
  there = tmp_path / "home" / "mmgen_jax"
  job = start("tpu_vm.sh", "n", "z", "install", cwd=tmp_path, HOME=str(there.parent))
  said = end(job)
  assert job.returncode == 0, said
  assert (there / "mmgen_jax" / "data" / "listing.py").exists()
  assert not (there / "data").exists() and not (there / "runs").exists()
  assert "-c constraints.txt" in (there / "asked").read_text()
