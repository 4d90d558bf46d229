#!/usr/bin/env bash
# A run of ia-jax on Cloud TPU slices: create them, install on all workers, start, follow, resume, delete.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh [--dry-run] COMMAND
  create     ask for the slices as a queued resource, and wait until they are there
  install    build the wheel of HEAD, send it with lock file and recipes to every worker, and install it there
  run        start `ia-jax run` on all workers; it goes on when this shell ends
  status     the state and the exit code of every worker; says which have failed, and exits with their code
             (75 while they run)
  wait       the same until nobody runs
  logs       follow the log of worker 0
  logs-all   the last LAST (100) lines of every worker's log
  stop       SIGTERM to all: the run saves its state and exits with 143
  resume     after a preemption: delete the remains, create, install and run again; stages go on where they were, and
             what was compiled is in CACHE
  delete     give the slices back
  --dry-run  print the exact commands and run none

settings, from the environment:
  NAME       of the slices and their queued resource          (required)
  ZONE       like us-east5-a                                  (required)
  TYPE       accelerator type, like v5p-128 (64 chips)        (required by create and run)
  CONFIG     recipe, like configs/llama33_70b.py              (required by run)
  WORKDIR    of the run: gs://BUCKET/DIR, or a directory that all workers share; of one host, any  (required by run)
  SLICES     how many; config.mesh.dcn is a multiple of it    (default: 1)
  CACHE      where compiled programs are kept                 (default: gs://BUCKET/ia_jax_compiled of WORKDIR's bucket)
  LOGS       like gs://BUCKET/logs: every worker's log and exit code, every 5 minutes and at the end
  DATA_DISK  a disk of this zone, at /mnt/data                (mode: DISK_MODE, read-only or read-write; one host alone
             may write); with read-write, the hub's files and CACHE lie there too
  RESULTS    like gs://BUCKET/study: where a WORKDIR that is on the host's own disk is fetched from and sent to
  SUBCOMMAND like "study --arm=qwen3_4b"                      (default: run)
  OVERRIDES  like "--config.seed=7 --config.model.name=/mnt/data/llama" (a directory, where the hub wants a token)
  PROJECT    (default: that of gcloud; DATA_DISK needs it)
  RUNTIME    software version of the VMs                      (default: that of TYPE)
  SPOT       1 for spot slices, which may be preempted        (default: 0)
  RESERVED   1 for slices of your reservation                 (default: 0)
  DIRTY      1 to send the working tree instead of HEAD       (default: 0)
  LIBTPU_INIT_ARGS  flags of XLA                              (default: launch/common.sh's)
  KEY_FROM   where Claude teaches or judges: what prints its key there, like
             "gcloud secrets versions access latest --secret=anthropic"
TEXT
}

# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

need NAME ZONE
where=(--zone="$ZONE")
[[ -n ${PROJECT:-} ]] && where+=(--project="$PROJECT")
queue=(gcloud compute tpus queued-resources)

one_host() {
  case $TYPE in
    v5litepod-[148] | v6e-[148] | v5p-8 | v4-8) ((slices == 1)) ;;
    *) return 1 ;;
  esac
}

if [[ -n ${DATA_DISK:-} ]]; then
  need TYPE PROJECT
  if one_host; then mode=${DISK_MODE:-read-write}; else mode=${DISK_MODE:-read-only}; fi
  case $mode in
    read-only) ;;
    read-write)
      one_host || fail "DISK_MODE=read-write: $slices x $TYPE is several hosts, and one alone may write to a disk"
      [[ -n $cache ]] || cache=/mnt/data/compiled
      ;;
    *) fail "DISK_MODE=$mode is neither read-only nor read-write" ;;
  esac
fi

on_workers() { # which slices, which workers, what to do there
  do_it "${queue[@]}" ssh "$NAME" "${where[@]}" --node="$1" --worker="$2" --command="$3"
}

create() {
  need TYPE
  local runtime=tpu-ubuntu2204-base how=()
  case $TYPE in # cloud.google.com/tpu/docs/runtimes
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v7x-* | tpu7x-*) fail "TYPE=$TYPE: Google's Cloud TPU API ends with v6e; take launch/xpk.sh" ;;
  esac
  if ((slices > 1)); then how+=(--node-count="$slices" --node-prefix="$NAME"); else how+=(--node-id="$NAME"); fi
  [[ ${SPOT:-0} == 1 ]] && how+=(--spot)
  [[ ${RESERVED:-0} == 1 ]] && how+=(--reserved)
  if [[ -n ${DATA_DISK:-} ]]; then
    how+=(--data-disk="source=projects/$PROJECT/zones/$ZONE/disks/$DATA_DISK,mode=$mode")
  fi
  do_it "${queue[@]}" create "$NAME" --accelerator-type="$TYPE" --runtime-version="${RUNTIME:-$runtime}" \
    "${where[@]}" "${how[@]}"
  local state="gcloud compute tpus queued-resources describe $NAME ${where[*]} --format='value(state.state)'"
  do_it bash -c "while state=\$($state); do echo \"$NAME: \$state\"; \
case \$state in ACTIVE) exit 0 ;; FAILED | SUSPEND*) exit 1 ;; esac; sleep 30; done; exit 1"
}

install() {
  make_bundle
  do_it tar -czf build/launch/bundle.tar.gz -C build/launch/bundle .
  do_it "${queue[@]}" scp build/launch/bundle.tar.gz "$NAME:" "${where[@]}" --node=all --worker=all
  # A run's log, process and exit code lie in the same directory, and stay.
  on_workers all all "mkdir -p ia_jax && rm -f ia_jax/*.whl && tar -xzf bundle.tar.gz -C ia_jax \
&& bash ia_jax/on_worker.sh install${DATA_DISK:+ && bash ia_jax/on_worker.sh mount $mode}"
}

run() {
  check_run
  local env
  env=$(surroundings)
  [[ ${mode:-} == read-write ]] && env+=" HF_HOME=/mnt/data/huggingface"
  # jax finds its coordinator and its number on a TPU VM by itself; it only has to be told that there are several.
  on_workers all all "cd ia_jax && ${key}$env bash on_worker.sh start $(arguments)"
}

delete() {
  do_it "${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet
}

status=("${queue[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all --command="bash ia_jax/on_worker.sh status")
case $command in
  create) create ;;
  install) install ;;
  run) run ;;
  status) ask "${status[@]}" ;;
  wait) wait_for "${status[@]}" ;;
  logs) on_workers 0 0 "tail -n 100 -F ia_jax/log" ;;
  logs-all) on_workers all all "bash ia_jax/on_worker.sh tail ${LAST:-100}" ;;
  stop) on_workers all all "bash ia_jax/on_worker.sh stop" ;;
  resume)
    check_run
    delete || warn "nothing was there to delete"
    create
    install
    run
    ;;
  delete) delete ;;
  *) fail "no command $command" ;;
esac
