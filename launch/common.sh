# shellcheck shell=bash
# What both launchers share: --dry-run, the command, required settings. Sourced with usage() defined and "$@" passed on.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1 # what is sent is this checkout
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

# The key for Claude reaches a run by a command that prints it there (of a secret store), never through this shell.
# shellcheck disable=SC2034  # for those who source this
key=${KEY_FROM:+"ANTHROPIC_API_KEY=\"\$($KEY_FROM)\" "}
