"""Hundreds of synthetic adapters of SmolLM2's shapes: save, ls, verify, and stream all of them through joint IA steps.

    python benchmarks/many_adapters.py --count=700 --directory=/tmp/adapters [--resident] [--json]

Prints seconds of each part and the peak host memory of the streaming process. The memory of a run with 32 is the
comparison: it should be about the same. --resident keeps all adapters on the host instead, as far as they fit.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from ia_jax.adapters import inventory
from ia_jax.adapters.base import identify
from ia_jax.adapters.lora import PROJECTIONS, LoraConfig, init_lora, lora_shapes
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import is_complete, save_adapters
from ia_jax.adapters.stream import CACHE_BYTES, AdapterStream
from ia_jax.config import OptimizerSection, RunConfig
from ia_jax.data.batches import build_batch, dataset, plan_joint
from ia_jax.models.chat import ChatExample
from ia_jax.workdir import Workdir, start_workdir

LORA = LoraConfig(16, 32.0)
PER_STEP, TOKENS = 8, 128


def names(count: int) -> list[str]:
    return [f"synthetic_{i:04d}" for i in range(count)]


def save(run: Workdir, count: int) -> None:
    """Random adapters; the same for the same number, so that a run that was stopped goes on."""
    base = identify("smollm2")
    shapes = lora_shapes(base.config, LORA)

    def items():
        for i, name in enumerate(names(count)):
            if is_complete(run.organism_dir(name)):
                continue
            rng = np.random.default_rng(i)
            tree = {
                t: {n: 0.02 * rng.standard_normal(s, np.float32) for n, s in ab.items()} for t, ab in shapes.items()
            }
            yield (
                run.organism_dir(name),
                tree,
                AdapterMetadata(name, "organism", base.name, base.fingerprint, 16, 32.0, PROJECTIONS),
            )

    save_adapters(items())


def stream(run: Workdir, count: int, resident: bool, steps: int) -> dict[str, float]:
    """One epoch (or `steps`) of joint steps in which every adapter has one row of `TOKENS` tokens."""
    from ia_jax.models.weights import load_model
    from ia_jax.training.introspection import init_state, sft_step

    model = load_model("smollm2", dtype="bfloat16")
    rng = np.random.default_rng(0)
    mask = np.arange(TOKENS) >= TOKENS // 2
    units = [[(ChatExample(rng.integers(1, 49152, TOKENS).astype(np.int32), mask),)] for _ in range(count)]
    plan = plan_joint(units, organisms_per_step=PER_STEP, per_slot=1, seed=0, length=TOKENS)
    organisms = AdapterStream(
        [run.organism_dir(n) for n in names(count)],
        model,
        jax.device_put,
        cache_bytes=1 << 40 if resident else CACHE_BYTES,
    )
    if resident:
        for i in range(count):
            organisms.take([i])
    optimizer = OptimizerSection()
    state = init_state(init_lora(jax.random.key(0), model.config, LORA), len(plan.steps), LORA, optimizer)

    def make(step):
        return organisms.take([s.organism for s in step]), build_batch(step, plan, units)

    clocks = []
    for n, (stack, batch) in enumerate(dataset(plan, make, 2)):
        state, metrics = sft_step(model.params, state, stack, batch, cfg=model.config, lora=LORA, optimizer=optimizer)
        loss = float(metrics["loss"])
        clocks.append(time.monotonic())
        if not np.isfinite(loss) or n + 1 == steps:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "steps": len(clocks),
        "step_s_median": float(np.median(np.diff(clocks[1:]))),  # without the first, which compiles
        "peak_host_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--steps", type=int, default=0, help="stop streaming after so many (default: all)")
    parser.add_argument("--directory", type=Path, required=True, help="where the adapters go; they are kept")
    parser.add_argument("--resident", action="store_true", help="all adapters on the host, for comparison")
    parser.add_argument("--only-stream", action="store_true", help="the adapters are there already")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    run = start_workdir(args.directory, RunConfig())
    result: dict[str, float] = {"count": args.count}
    if args.only_stream:
        result |= stream(run, args.count, args.resident, args.steps)
    else:
        parts = {
            "save_s": lambda: save(run, args.count),
            "ls_s": lambda: inventory.table(run),
            "verify_s": lambda: damaged(inventory.verify(run, names(args.count))),
        }
        for name, part in parts.items():
            start = time.monotonic()
            part()
            result[name] = round(time.monotonic() - start, 1)
        # A process of its own, so that its peak memory is its own.
        command = [sys.executable, __file__, "--only-stream", "--json", f"--count={args.count}"]
        command += [f"--directory={args.directory}", f"--steps={args.steps}", *["--resident"] * args.resident]
        result |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(result) if args.json else "\n".join(f"{k:>16}  {v:.6g}" for k, v in result.items()))


def damaged(found: dict[str, list[str]]) -> None:
    bad = {n: p for n, p in found.items() if p}
    if bad:
        raise SystemExit(f"damaged: {bad}")


if __name__ == "__main__":
    main()
