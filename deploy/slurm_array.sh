#!/bin/bash
# A sweep on a SLURM cluster, one run per array task; each goes on after a time limit.
#
#   export CONFIG=configs/study_fusion.py:sprites WORKDIR=/shared/runs/study
#   .venv/bin/python launch.py --mode=compare --config=$CONFIG --dry_run   # lists N+1 runs
#   first=$(sbatch --parsable --array=0 --export=ALL,INDEX=-1 deploy/slurm_array.sh)
#   sbatch --array=0-N --dependency=afterok:$first deploy/slurm_array.sh
#   .venv/bin/python launch.py --mode=compare --config=$CONFIG --workdir=$WORKDIR --workers=0
#
# The first job prepares data and judges, the last line writes the page. A run that is
# made from others waits for them, and they come before it in the array. Set
# MMGEN_DATA_DIR to a shared folder; VENV (default .venv) and WORKDIR must be visible on
# all nodes.
#SBATCH --job-name=mmgen-sweep
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mmgen-sweep-%A_%a.log
#SBATCH --signal=TERM@120

set -u
: "${CONFIG:?set CONFIG=configs/...}" "${WORKDIR:?set WORKDIR to a shared folder}"
PYTHON="${VENV:-.venv}/bin/python"

srun "$PYTHON" launch.py --mode=compare --config="$CONFIG" --workdir="$WORKDIR" \
  --index="${INDEX:-$SLURM_ARRAY_TASK_ID}" "$@"
code=$?
echo "srun ended with $code"

# Exit codes: deploy/README.md. 75: stopped after saving; 137: killed; 143: SIGTERM
# before training had begun.
case $code in
  75 | 137 | 143) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;
  *) exit $code ;;
esac
