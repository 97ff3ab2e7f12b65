#!/bin/bash
# A run on all hosts of a Cloud TPU VM slice, from your own machine.
#
#   deploy/tpu_vm.sh NAME ZONE install
#   deploy/tpu_vm.sh NAME ZONE run --config=configs/quickstart.py --workdir=/mnt/runs/q
#   deploy/tpu_vm.sh NAME ZONE stop      # SIGTERM: saves, then exits
#
# PROJECT names the Google Cloud project (default: gcloud's own). The workdir has to be a
# folder that all hosts share: see deploy/README.md.
set -euo pipefail
if [[ $# -lt 3 ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
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
    tar czf /tmp/mmgen_jax.tgz --exclude=.git --exclude=runs --exclude=.venv .
    gcloud compute tpus tpu-vm scp /tmp/mmgen_jax.tgz "$name":/tmp/ --zone="$zone" \
      ${PROJECT:+--project="$PROJECT"} --worker=all
    on_all_hosts 'mkdir -p ~/mmgen_jax && cd ~/mmgen_jax && tar xzf /tmp/mmgen_jax.tgz &&
      python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
    ;;
  run)
    # Each host starts again by itself while that can help: a lost process (71, 134, 137)
    # or a stop after saving (75). They meet again at JAX's start, which waits for all.
    # "stop" leaves a file that ends the loop.
    arguments=$(printf ' %q' "$@")
    on_all_hosts "cd ~/mmgen_jax && rm -f .stop && while true; do
        .venv/bin/python launch.py --distributed$arguments; code=\$?
        [[ -e .stop ]] && exit \$code
        case \$code in 71|75|134|137) sleep 10 ;; *) exit \$code ;; esac
      done"
    ;;
  stop)
    on_all_hosts 'touch ~/mmgen_jax/.stop; pkill -TERM -u "$USER" -f launch.py || true'
    ;;
  *)
    echo "unknown: $what (install, run, stop)" >&2
    exit 2
    ;;
esac
