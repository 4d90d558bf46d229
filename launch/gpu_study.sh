#!/usr/bin/env bash
# The whole study on SmolLM2, on one GPU, in minutes: organisms, recipes compared, seeds of the best, reports.
#
#   launch/gpu_study.sh DIR [--budget=SECONDS] [--seeds=1547,1,2] [--arms=plain,contrast] [-- --config.…=…]
#
# Everything that benchmarks/gpu_study.py takes may follow DIR; see its --help. To see whether an IA knows behaviours again
# and not organisms: -- --config.behaviors.copies=4 --config.behaviors.remade=64 (docs/study.md).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"
if [ $# -lt 1 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit $(($# < 1 ? 2 : 0))
fi
directory="$1"
shift
if ! "$python" -c 'import jax, sys; sys.exit(jax.default_backend() not in ("gpu", "tpu"))' 2>/dev/null; then
    echo "gpu_study.sh: jax of $python sees no accelerator; install ia-jax[cuda] (docs/accelerators.md), or set PYTHON" >&2
    exit 2
fi
"$python" benchmarks/gpu_study.py --workdir="$directory" --out="$directory/results" "$@"
for seed in "$directory"/seed*; do
    [ -e "$seed/eval/asked.json" ] || continue
    "$python" -m ia_jax.cli eval --workdir="$seed"
    "$python" -m ia_jax.cli report --workdir="$seed"
done
