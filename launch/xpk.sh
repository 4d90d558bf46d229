#!/usr/bin/env bash
# A run of ia-jax as a workload on a GKE cluster of TPUs, through xpk.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/xpk.sh [--dry-run] COMMAND
  create     a cluster with SLICES slices
  run        start `ia-jax run` as a workload; xpk uploads this checkout in an image
  logs       follow the workload's log
  resume     start the workload again (stages go on where they were); after a preemption GKE does so itself
  stop       delete the workload
  delete     delete the cluster
  --dry-run  print the exact commands and run none

settings, from the environment:
  CLUSTER    name of the cluster                              (required)
  ZONE       like us-east5-a                                  (required)
  TYPE       TPU type of a slice, like v5p-128 (64 chips)     (required by create, run and resume)
  SLICES     how many; more than one need --config.mesh.dcn   (default: 1)
  CONFIG     recipe, like configs/llama33_70b.py              (required by run and resume)
  WORKDIR    of the run, a directory that all pods mount      (required by run and resume)
  WORKLOAD   name of the workload                             (default: ia-jax)
  PROJECT    (default: that of gcloud)
  IMAGE      base image, a Python of 3.11 or newer            (default: python:3.13)
  OVERRIDES  like "--config.seed=7 --config.model.name=/mnt/llama" (a directory, where the hub wants a token)
  KEY_FROM   where Claude teaches or judges: what prints its key there, like
             "gcloud secrets versions access latest --secret=anthropic"
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need CLUSTER ZONE
workload=${WORKLOAD:-ia-jax}
where=(--cluster="$CLUSTER" --zone="$ZONE")
[[ -n ${PROJECT:-} ]] && where+=(--project="$PROJECT")

run() {
  need TYPE CONFIG WORKDIR
  do_it xpk workload create --workload="$workload" "${where[@]}" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
    --base-docker-image="${IMAGE:-python:3.13}" --script-dir=. --max-restarts=20 \
    --command="pip install -q -e '.[tpu]' && ${key}IA_JAX_DISTRIBUTED=auto ia-jax run --config=$CONFIG --workdir=$WORKDIR \
${OVERRIDES:-}"
}

stop() {
  do_it xpk workload delete --workload="$workload" "${where[@]}" --force
}

case $command in
  create)
    need TYPE
    do_it xpk cluster create "${where[@]}" --tpu-type="$TYPE" --num-slices="${SLICES:-1}"
    ;;
  run) run ;;
  logs) do_it kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$workload" --max-log-requests=64 ;;
  resume)
    need TYPE CONFIG WORKDIR
    stop
    run
    ;;
  stop) stop ;;
  delete) do_it xpk cluster delete "${where[@]}" --force ;;
  *) fail "no command $command" ;;
esac
