#!/usr/bin/env bash
# A run of ia-jax on a Cloud TPU pod slice: create it, install on all workers, start, follow, resume, delete.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [--dry-run] COMMAND
  create     ask for the slice as a queued resource, and wait until it is there
  install    copy this checkout (what git knows of) to every worker and install it there
  run        start `ia-jax run` on all workers; it goes on when this shell ends
  logs       follow the log of worker 0
  resume     after a preemption: delete the remains, create, install and run again (stages go on where they were)
  delete     give the slice back
  --dry-run  print the exact commands and run none

settings, from the environment:
  NAME       of the slice and its queued resource             (required)
  ZONE       like us-east5-a                                  (required)
  TYPE       accelerator type, like v5p-128 (64 chips)        (required by create)
  CONFIG     recipe, like configs/llama33_70b.py              (required by run)
  WORKDIR    of the run, a directory that all workers share   (required by run)
  PROJECT    (default: that of gcloud)
  RUNTIME    software version of the VMs                      (default: that of TYPE)
  SPOT       1 for a spot slice, which may be preempted       (default: 0)
  OVERRIDES  like "--config.seed=7 --config.model.name=/mnt/llama" (a directory, where the hub wants a token)
  KEY_FROM   where Claude teaches or judges: what prints its key there, like
             "gcloud secrets versions access latest --secret=anthropic"
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME ZONE
where=(--zone="$ZONE")
[[ -n ${PROJECT:-} ]] && where+=(--project="$PROJECT")

on_workers() { # which workers, what to do there
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  need TYPE
  local runtime spot=()
  case $TYPE in # cloud.google.com/tpu/docs/runtimes
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
  [[ ${SPOT:-0} == 1 ]] && spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="${RUNTIME:-$runtime}" "${where[@]}" "${spot[@]}"
  local state="gcloud compute tpus queued-resources describe $NAME ${where[*]} --format='value(state.state)'"
  do_it bash -c "while state=\$($state); do echo \"$NAME: \$state\"; \
case \$state in ACTIVE) exit 0 ;; FAILED | SUSPEND*) exit 1 ;; esac; sleep 30; done; exit 1"
}

install() {
  # What git knows of, so that runs and environments stay here.
  do_it git archive --format=tar.gz --output=ia_jax.tar.gz HEAD
  do_it gcloud compute tpus tpu-vm scp ia_jax.tar.gz "$NAME:" "${where[@]}" --worker=all
  # uv brings a Python that ia_jax runs on; that of the VM images (Ubuntu 22.04) is 3.10.
  on_workers all "mkdir -p ia_jax && tar -xzf ia_jax.tar.gz -C ia_jax && python3 -m pip install -q --user uv \
&& python3 -m uv venv -q --clear --python 3.13 venv && python3 -m uv pip install -q --python venv -e './ia_jax[tpu]'"
}

run() {
  need CONFIG WORKDIR
  # jax finds its coordinator and its number on a TPU VM by itself; it only has to be told that there are several.
  # The braces matter: without them, all of it runs in a shell of its own that keeps the connection open to the end.
  on_workers all "cd ia_jax && { ${key}IA_JAX_DISTRIBUTED=auto nohup ../venv/bin/ia-jax run --config=$CONFIG \
--workdir=$WORKDIR ${OVERRIDES:-} >> ../ia_jax.log 2>&1 < /dev/null & }"
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

case $command in
  create) create ;;
  install) install ;;
  run) run ;;
  logs) on_workers 0 "tail -n 100 -F ia_jax.log" ;;
  resume)
    need TYPE CONFIG WORKDIR
    delete
    create
    install
    run
    ;;
  delete) delete ;;
  *) fail "no command $command" ;;
esac
