# shellcheck shell=bash
# What both launchers share: --dry-run, the command, required settings, what is sent. Sourced with usage() defined and
# "$@" passed on.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1 # what is sent is of this checkout
script=${0##*/}
dry=0
if [[ ${1:-} == --dry-run ]]; then
  dry=1
  shift
fi
command=${1:-}
if [[ $# -ne 1 || $command == -h || $command == --help ]]; then
  usage
  [[ $command == -h || $command == --help ]] && exit 0
  exit 2
fi

fail() {
  echo "launch/$script: error: $1; see launch/$script --help" >&2
  exit 2
}

warn() {
  echo "launch/$script: warning: $1" >&2
}

need() {
  local setting
  for setting in "$@"; do
    [[ -n ${!setting:-} ]] || fail "set $setting to $command"
  done
}

# Runs its arguments, or prints them so that they can be pasted.
do_it() {
  if ((dry)); then
    local word out=""
    for word in "$@"; do
      if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then out+="$word "; else out+="'${word//\'/\'\\\'\'}' "; fi
    done
    printf '%s\n' "${out% }"
  else
    "$@"
  fi
}

# Collectives beside products, weights of the next layer gathered behind this one's. libtpu 0.0.50.1 and 0.0.52 take all of them (it
# refuses to start with one that it does not know); the first five are on by default in recent ones. The last two are
# for sums between slices. They are what AI-Hypercomputer/maxtext's benchmarks/xla_flags_library.py calls
# CF_FOR_ALL_GATHER and DATA_PARALLEL_OVERLAP. None was timed here.
xla_flags="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true \
--xla_enable_async_all_gather=true \
--xla_tpu_enable_data_parallel_all_reduce_opt=true \
--xla_tpu_data_parallel_opt_different_sized_ops=true"

slices=${SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$slices is no number of slices"

# What is run needs a recipe that is sent, and a mesh that knows of the slices.
check_run() {
  need TYPE CONFIG WORKDIR
  [[ $CONFIG == configs/*.py ]] || fail "CONFIG=$CONFIG is not under configs/, which is what is sent; move it there"
  [[ -f $CONFIG ]] || fail "there is no $CONFIG"
  if [[ ${DIRTY:-0} != 1 ]] && ! git ls-files --error-unmatch "$CONFIG" > /dev/null 2>&1; then
    fail "$CONFIG is not committed, so it is not sent; commit it, or set DIRTY=1 to send the working tree"
  fi
  if ((slices > 1)); then
    if [[ ${OVERRIDES:-} =~ --config\.mesh\.dcn=([0-9]+) ]]; then
      ((BASH_REMATCH[1] % slices == 0)) || fail "--config.mesh.dcn=${BASH_REMATCH[1]} is no multiple of SLICES=$slices"
    else
      warn "SLICES=$slices: config.mesh.dcn of $CONFIG must be a multiple of that, and its mesh all devices"
    fi
  fi
  if [[ -z $cache ]]; then
    warn "compiled programs are kept on the machines alone; set CACHE=gs://BUCKET/compiled to resume without compiling"
  fi
}

# What a run sees besides its arguments, as words of a shell's command line.
surroundings() {
  local out="IA_JAX_DISTRIBUTED=auto LIBTPU_INIT_ARGS='${LIBTPU_INIT_ARGS-$xla_flags}'"
  [[ -n $cache ]] && out+=" JAX_COMPILATION_CACHE_DIR=$cache"
  [[ -n ${LOGS:-} ]] && out+=" LOGS=$LOGS"
  [[ -n ${RESULTS:-} ]] && out+=" RESULTS=$RESULTS"
  printf '%s' "$out"
}

# The arguments of ia-jax.
arguments() {
  local more=${SUBCOMMAND:-run}
  printf '%s' "$more --config=$CONFIG --workdir=$WORKDIR${OVERRIDES:+ $OVERRIDES}"
}

# build/launch/bundle: the wheel, what it needs with hashes, the recipes, and the script that runs where they are sent.
# Of HEAD, so that what ran has a name; DIRTY=1 sends what lies here (but for what git ignores).
make_bundle() {
  local changed
  changed=$(git status --porcelain | wc -l)
  do_it rm -rf build/launch
  do_it mkdir -p build/launch/source build/launch/bundle
  if [[ ${DIRTY:-0} == 1 ]]; then
    ((changed)) && warn "$changed uncommitted changes are sent (DIRTY=1); the run's commit does not name them"
    do_it bash -c "git ls-files -z --cached --others --exclude-standard \
| tar --null --files-from=- --ignore-failed-read -cf build/launch/source.tar"
  else
    ((changed)) && warn "$changed uncommitted changes stay here; commit them, or set DIRTY=1 to send the working tree"
    do_it git archive --format=tar --output=build/launch/source.tar HEAD
  fi
  do_it tar -xf build/launch/source.tar -C build/launch/source
  do_it "${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir=build/launch/bundle ./build/launch/source
  do_it cp -r build/launch/source/configs build/launch/source/launch/on_worker.sh \
    build/launch/source/launch/requirements.lock build/launch/bundle
  do_it bash -c "git describe --always --dirty --abbrev=40 > build/launch/bundle/COMMIT"
}

# Reads "slice S worker W: exit N" (or running, killed, not started) of every worker, says which have failed, and
# returns the first code that is not 0; 75 while some still run.
verdict() {
  local line running=0 seen=0 first=0 code
  while IFS= read -r line; do
    [[ $line =~ ^slice\ [0-9]*\ worker\ [0-9]*:\ *(.*)$ ]] || continue
    seen=1
    echo "$line"
    case ${BASH_REMATCH[1]} in
      "exit 0") continue ;;
      exit\ [1-9]*)
        code=${BASH_REMATCH[1]#exit }
        echo "launch/$script: ${line%%:*} ended with $code" >&2
        # That of whoever failed counts before that of those it took along.
        if ((first == 0 || (first == 143 && code != 143))); then first=$code; fi
        ;;
      killed | "not started")
        echo "launch/$script: ${line%%:*} was ${BASH_REMATCH[1]}" >&2
        ((first)) || first=1
        ;;
      *) running=1 ;;
    esac
  done
  ((seen)) || {
    echo "launch/$script: no worker answers" >&2
    return 1
  }
  ((first)) && return "$first"
  ((running)) && return 75
  return 0
}

# Runs a command that prints every worker's state, and judges it.
ask() {
  if ((dry)); then
    do_it "$@"
    return
  fi
  local said code=0
  said=$("$@") || code=$?
  verdict <<< "$said" || return
  if ((code)); then
    echo "launch/$script: not every worker could be asked (${1} said $code)" >&2
    return "$code"
  fi
}

# The same until nobody runs.
wait_for() {
  if ((dry)); then
    do_it "$@"
    return
  fi
  local code
  while true; do
    code=0
    ask "$@" || code=$?
    ((code == 75)) || return "$code"
    sleep "${EVERY:-60}"
  done
}

# The key for Claude reaches a run by a command that prints it there (of a secret store), never through this shell.
# shellcheck disable=SC2034  # for those who source this
key=${KEY_FROM:+"ANTHROPIC_API_KEY=\"\$($KEY_FROM)\" "}

# Where compiled programs outlive the machines: in the workdir's bucket, unless CACHE says otherwise.
cache=${CACHE:-}
if [[ -z $cache && ${WORKDIR:-} == gs://* ]]; then
  cache=${WORKDIR#gs://}
  cache=gs://${cache%%/*}/ia_jax_compiled
fi
