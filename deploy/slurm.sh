#!/bin/bash
# A run on a SLURM cluster; it goes on by itself after a time limit or a preemption.
#
#   CONFIG=configs/fusion_digits.py WORKDIR=/shared/runs/digits sbatch deploy/slurm.sh
#
# Run it from the repository; VENV (default .venv) and both paths must be visible on all
# nodes. One task per GPU: JAX then gives each process the GPU of its local rank.
#SBATCH --job-name=mmgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mmgen-%j.log
# SIGTERM to the tasks (not to this script) two minutes before the end: they save and
# exit with 75.
#SBATCH --signal=TERM@120

set -u
: "${CONFIG:?set CONFIG=configs/...}" "${WORKDIR:?set WORKDIR to a shared folder}"
PYTHON="${VENV:-.venv}/bin/python"

# --kill-on-bad-exit: a lost process ends the step, so that it can start again as a whole.
srun --kill-on-bad-exit=1 \
  "$PYTHON" launch.py --distributed --config="$CONFIG" --workdir="$WORKDIR" "$@"
code=$?
echo "srun ended with $code"

# Exit codes: mmgen_jax/process.py. 71, 134 and 137: a process was lost; 75: stopped after
# saving; 143: SIGTERM before training had begun. The rest wants a person.
case $code in
  71 | 75 | 134 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
  *) exit $code ;;
esac
