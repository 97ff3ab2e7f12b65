#!/bin/bash
# A run on all hosts of a Cloud TPU VM slice, from your own machine.
#
#   deploy/tpu_vm.sh NAME ZONE install
#   deploy/tpu_vm.sh NAME ZONE run --config=configs/quickstart.py --workdir=/mnt/runs/q
#   deploy/tpu_vm.sh NAME ZONE stop      # SIGTERM: saves, then exits
#
# PROJECT names the Google Cloud project (default: gcloud's own), PYTHON a Python of 3.11
# or later on the hosts (default: python3; install one where that is older). The workdir
# has to be a folder that all hosts share: see deploy/README.md.
set -euo pipefail
if [[ $# -lt 3 ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 what=$3
shift 3

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" ${PROJECT:+--project="$PROJECT"} \
    --worker=all --command="$1"
}

case $what in
  install)
    tar czf /tmp/mmgen_jax.tgz --exclude=./.git --exclude=./runs --exclude=./data \
      --exclude=./.venv .
    gcloud compute tpus tpu-vm scp /tmp/mmgen_jax.tgz "$name":/tmp/ --zone="$zone" \
      ${PROJECT:+--project="$PROJECT"} --worker=all
    on_all_hosts 'mkdir -p ~/mmgen_jax && cd ~/mmgen_jax && tar xzf /tmp/mmgen_jax.tgz &&
      '"${PYTHON:-python3}"' -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[tpu]"'
    ;;
  run)
    # Each host starts again by itself while that can help: a lost process (71, 134, 137)
    # or a stop after saving (75). They meet again at JAX's start, which waits for all.
    # "stop" leaves a file that ends the loop; a host that gives up leaves one in the
    # workdir, named by this start, that ends the others' loops.
    arguments=$(printf ' %q' "$@")
    workdir=.
    for a in "$@"; do [[ $a == --workdir=* ]] && workdir=${a#--workdir=}; done
    ended=$(printf '%q' "$workdir/.ended-$(date +%s)-$$")
    on_all_hosts "cd ~/mmgen_jax && rm -f .stop && while true; do
        .venv/bin/python launch.py --distributed$arguments; code=\$?
        case \$code in
          0) exit 0 ;;
          71|75|134|137) [[ -e .stop ]] || sleep ${PAUSE:-10} ;;
          *) mkdir -p $(printf '%q' "$workdir"); echo \$code >$ended; exit \$code ;;
        esac
        [[ -e .stop || -e $ended ]] && exit \$code
      done"
    ;;
  stop)
    # Python alone: the shells that started it have launch.py in their commands too.
    on_all_hosts 'touch ~/mmgen_jax/.stop
      pkill -TERM -u "$(id -u)" -f "^[^ ]*python[0-9.]* launch[.]py" || true'
    ;;
  *)
    echo "unknown: $what (install, run, stop)" >&2
    exit 2
    ;;
esac
