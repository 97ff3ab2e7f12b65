#!/bin/bash
# A run on a SLURM cluster; it goes on by itself after a time limit or a preemption.
#
#   CONFIG=configs/fusion_digits.py WORKDIR=/shared/runs/digits sbatch deploy/slurm.sh
#
# Before: .venv/bin/pip install -c constraints.txt -e '.[cuda]'; export MMGEN_DATA_DIR, and
# MMGEN_RAW_AUDIO where the config asks for it. The config's batch must divide over all
# GPUs: add --config.batch_size=N after the script's name where it does not.
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

# srun ends with the highest code of all tasks: 137 of those that it kills hides the 1, 2,
# 70 or 74 of the one that knows, which would start again for ever. So that one leaves a
# file. The trap keeps its shell waiting while a SIGTERM makes Python save.
final="mmgen-$SLURM_JOB_ID.final"
rm -f "$final"
task='trap : TERM INT; final=$1; shift
"$@"; code=$?
case $code in 1 | 2 | 70 | 74) echo $code >"$final" ;; esac
exit $code'

# --kill-on-bad-exit: a lost process ends the step, so that it can start again as a whole.
srun --kill-on-bad-exit=1 bash -c "$task" task "$final" \
  "$PYTHON" launch.py --distributed --config="$CONFIG" --workdir="$WORKDIR" "$@"
code=$?
echo "srun ended with $code"
if [[ -s $final ]]; then
  code=$(<"$final")
  rm -f "$final"
  echo "a task ended with $code"
fi

# Exit codes: deploy/README.md. 71, 134 and 137: a process was lost; 75: stopped after
# saving; 143: SIGTERM before training had begun. The rest wants a person.
case $code in
  71 | 75 | 134 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
  *) exit $code ;;
esac
