#!/usr/bin/env bash
# What happens on a worker: tpu_pod.sh and xpk.sh send this with the wheel, the lock file and the recipes, and call it.
#
#   on_worker.sh install           Python and all packages, each checked against its hash
#   on_worker.sh mount MODE        the data disk at /mnt/data, read-only or read-write (a blank one is formatted)
#   on_worker.sh start ARGUMENT…   `ia-jax ARGUMENT…` in the background; the shell may go
#   on_worker.sh run ARGUMENT…     the same here, to its end and with its exit code
#   on_worker.sh status            "slice 0 worker 3: exit 0", running, killed or not started
#   on_worker.sh tail LINES        the end of the log, each line with who wrote it
#   on_worker.sh stop              SIGTERM: the run saves its state and exits with 143
#
# From the environment: LOGS (gs://…: the log and the exit code go there, every 5 minutes and at the end) and RESULTS
# (gs://…: a workdir that is not in a bucket is fetched from there before, and sent there afterwards).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

metadata() {
  curl -sf -m 5 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}

# As jax counts them (jax/_src/clusters/cloud_tpu_cluster.py): on GKE from the environment, on a TPU VM by its metadata.
who() {
  local worker slice
  worker=${TPU_WORKER_ID:-$(metadata agent-worker-number)}
  slice=${MEGASCALE_SLICE_ID:-$(metadata tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\)'\{0,1\}$/\1/p")}
  echo "slice ${slice:-0} worker ${worker:-0}"
}

die() {
  echo "$(who): $1" >&2
  exit "${2:-1}"
}

# Whole at once: a file that is being written is empty, and an empty one is a process that is gone.
write_pid() {
  echo "$1" > "pid.$BASHPID"
  mv -f "pid.$BASHPID" pid
}

running() {
  [[ -f pid ]] && kill -0 "$(< pid)" 2> /dev/null
}

install() {
  # uv brings a Python that ia_jax runs on; that of the VM images (Ubuntu 22.04) is 3.10.
  python3 -m pip install -q --user uv
  python3 -m uv venv -q --clear --python 3.13 venv
  python3 -m uv pip install -q --python venv --require-hashes -r requirements.lock
  python3 -m uv pip install -q --python venv --no-deps ./*.whl
}

mount_disk() {
  local disk names
  mountpoint -q /mnt/data && return
  # The one disk that neither is mounted nor has parts that are.
  for disk in $(lsblk -dnpo NAME,TYPE | awk '$2 == "disk" { print $1 }'); do
    names=$(lsblk -nro MOUNTPOINT "$disk" | tr -d '[:space:]')
    [[ -z $names ]] && break
  done
  [[ -n ${disk:-} && -z $names ]] || die "there is no data disk that is not mounted"
  sudo mkdir -p /mnt/data
  if [[ $1 == read-only ]]; then
    sudo mount -o ro,noload "$disk" /mnt/data
  else
    sudo blkid "$disk" > /dev/null || sudo mkfs.ext4 -q -m 0 "$disk"
    sudo mount -o discard "$disk" /mnt/data
    sudo chmod a+w /mnt/data
  fi
}

workdir_of() {
  local argument
  for argument in "$@"; do
    if [[ $argument == --workdir=* ]]; then echo "${argument#--workdir=}"; fi
  done
}

keep_log() {
  local name
  [[ -n ${LOGS:-} && -f log ]] || return 0
  name=$(who)
  gcloud storage cp -q log "${LOGS%/}/${name// /-}.log" || true
  if [[ -f exit.code ]]; then gcloud storage cp -q exit.code "${LOGS%/}/${name// /-}.exit" || true; fi
}

run() {
  local child code=0 keeper="" workdir
  workdir=$(workdir_of "$@")
  rm -f exit.code
  if [[ -n ${RESULTS:-} ]]; then
    mkdir -p "$workdir"
    # There may be nothing yet.
    gcloud storage rsync -q --recursive "$RESULTS" "$workdir" || echo "nothing fetched from $RESULTS" >&2
  fi
  venv/bin/ia-jax "$@" &
  child=$!
  write_pid $$
  trap 'kill -TERM "$child" 2> /dev/null || true' TERM INT
  if [[ -n ${LOGS:-} ]]; then
    while sleep 300; do keep_log; done > /dev/null 2>&1 &
    keeper=$!
  fi
  wait "$child" || code=$?
  while kill -0 "$child" 2> /dev/null; do # the signal ended the waiting, not the run
    code=0
    wait "$child" || code=$?
  done
  [[ -n $keeper ]] && kill "$keeper" 2> /dev/null
  if [[ -n ${RESULTS:-} ]]; then gcloud storage rsync -q --recursive "$workdir" "$RESULTS" || code=$((code ? code : 74)); fi
  echo "$code" > exit.code
  keep_log
  return "$code"
}

start() {
  running && die "a run is in progress (process $(< pid)); stop it first" 3
  rm -f exit.code
  nohup bash ./on_worker.sh run "$@" >> log 2>&1 < /dev/null &
  write_pid $!
}

status() {
  if running; then
    echo "$(who): running"
  elif [[ -f exit.code ]]; then
    echo "$(who): exit $(< exit.code)"
  elif [[ -f pid ]]; then
    echo "$(who): killed"
  else
    echo "$(who): not started"
  fi
}

command=${1:-}
shift || true
case $command in
  install) install ;;
  mount) mount_disk "$1" ;;
  start) start "$@" ;;
  run) run "$@" ;;
  status) status ;;
  tail) tail -n "$1" log | sed "s/^/[$(who)] /" ;;
  stop) if running; then kill -TERM "$(< pid)"; fi ;;
  *) die "no command $command" 2 ;;
esac
