#!/usr/bin/env bash
# A run of ia-jax as a workload on a GKE cluster of TPUs, through xpk.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/xpk.sh [--dry-run] COMMAND
  create     a cluster with SLICES slices
  run        build the wheel of HEAD and start `ia-jax run` as a workload; xpk puts wheel, lock file and recipes in an
             image
  status     the exit code of every worker; says which have failed, and exits with their code (75 while they run)
  wait       until the workload ends, then the same
  logs       follow the workload's log
  logs-all   the last LAST (100) lines of every worker's log
  resume     start the workload again: stages go on where they were, and what was compiled is in CACHE; after a
             preemption GKE does so itself
  stop       delete the workload
  delete     delete the cluster
  --dry-run  print the exact commands and run none

settings, from the environment:
  CLUSTER    name of the cluster                              (required)
  ZONE       like us-east5-a                                  (required)
  TYPE       TPU type of a slice, like v5p-128 (64 chips)     (required by create, run and resume)
  CONFIG     recipe, like configs/llama33_70b.py              (required by run and resume)
  WORKDIR    of the run: gs://BUCKET/DIR, or a directory that all pods mount  (required by run and resume)
  SLICES     how many; config.mesh.dcn is a multiple of it    (default: 1)
  CACHE      where compiled programs are kept                 (default: gs://BUCKET/ia_jax_compiled of WORKDIR's bucket)
  WORKLOAD   name of the workload                             (default: ia-jax)
  SUBCOMMAND like "study --arm=qwen3_4b"                      (default: run)
  OVERRIDES  like "--config.seed=7 --config.model.name=/mnt/llama" (a directory, where the hub wants a token)
  PROJECT    (default: that of gcloud)
  SPOT       1 for spot slices                                (default: 0)
  RESERVATION  name of a reservation to take them from
  IMAGE      base image, with a Python and pip                (default: python:3.13)
  RESTARTS   how often GKE starts again what was preempted    (default: 20)
  DIRTY      1 to send the working tree instead of HEAD       (default: 0)
  LIBTPU_INIT_ARGS  flags of XLA                              (default: launch/common.sh's)
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
pods=(--selector="jobset.sigs.k8s.io/jobset-name=$workload")

create() {
  need TYPE
  local how=(--on-demand)
  [[ ${SPOT:-0} == 1 ]] && how=(--spot)
  [[ -n ${RESERVATION:-} ]] && how=(--reservation="$RESERVATION")
  do_it xpk cluster create "${where[@]}" --tpu-type="$TYPE" --num-slices="$slices" "${how[@]}"
}

run() {
  check_run
  make_bundle
  # xpk restarts a workload that ends with 42 or 127 to 255, so with 143, which a preempted run does after it has saved
  # its state (for which it gets two minutes), and not with 1 or 2, which would be the same again.
  # exec: so that the run gets the signal, and not a shell around it.
  do_it xpk workload create --workload="$workload" "${where[@]}" --tpu-type="$TYPE" --num-slices="$slices" \
    --base-docker-image="${IMAGE:-python:3.13}" --script-dir=build/launch/bundle \
    --max-restarts="${RESTARTS:-20}" --termination-grace-period-seconds=120 \
    --command="bash on_worker.sh install && export ${key}$(surroundings) && exec bash on_worker.sh run $(arguments)"
}

stop() {
  do_it xpk workload delete --workload="$workload" "${where[@]}" --force
}

# The line of a pod that runs has no code yet.
state="{range .items[*]}slice {.metadata.labels.jobset\.sigs\.k8s\.io/job-index} \
worker {.metadata.annotations.batch\.kubernetes\.io/job-completion-index}: \
exit {.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}{end}"
status=(kubectl get pods "${pods[@]}" --output=jsonpath="$state")
case $command in
  create) create ;;
  run) run ;;
  status) ask "${status[@]}" ;;
  wait)
    do_it xpk workload list "${where[@]}" --wait-for-job-completion="$workload" || warn "the workload has not succeeded"
    ask "${status[@]}"
    ;;
  logs) do_it kubectl logs --follow --prefix "${pods[@]}" --max-log-requests=256 ;;
  logs-all) do_it kubectl logs --prefix --tail="${LAST:-100}" "${pods[@]}" --max-log-requests=256 ;;
  resume)
    check_run
    stop || warn "no workload $workload was there to delete"
    run
    ;;
  stop) stop ;;
  delete) do_it xpk cluster delete "${where[@]}" --force ;;
  *) fail "no command $command" ;;
esac
