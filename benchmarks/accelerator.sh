#!/usr/bin/env bash
# The GPU tests, then benchmarks/accelerator.py, on a machine with one accelerator and no network; jax, flax, optax and
# pytest (and torch, transformers and peft, for the peer) are there. Arguments go to the script, after --.
#   OUT=results bash benchmarks/accelerator.sh [--no-tests] [-- --sections=machine,llama --budget=200]
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out="${OUT:-.}" tests=1 status=0
while [ $# -gt 0 ]; do
    case "$1" in
    --no-tests) tests=0 ;;
    --)
        shift
        break
        ;;
    *)
        echo "accelerator.sh: unknown argument $1" >&2
        exit 2
        ;;
    esac
    shift
done
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
mkdir -p "$out"
if [ "$tests" = 1 ]; then
    # Beside the CPU, to which they compare: what reaches the fused kernel, and generation. A hang costs 90 seconds.
    IA_JAX_TEST_PLATFORM=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false timeout 90 \
        python3 -m pytest -q -p no:cacheprovider -m gpu -k "bf16 or greedy" --durations=5 tests/test_accelerators.py 2>&1 |
        tail -40 | tee "$out/tests.txt"
    status=$?
fi
python3 benchmarks/accelerator.py --out="$out/accelerator.json" "$@" 2>"$out/accelerator.log" || status=$?
tail -c 2000 "$out/accelerator.log" | grep -v '^$' | tail -3 >&2
exit $status
