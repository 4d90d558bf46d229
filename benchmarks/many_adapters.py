"""Hundreds of synthetic adapters of SmolLM2's shapes: save, ls, verify, and stream all of them through joint IA steps.

    python benchmarks/many_adapters.py --directory=/tmp/adapters                       # 700 adapters, 14 GB
    python benchmarks/many_adapters.py --directory=/tmp/adapters --only-stream --count=32 --epochs=22

Prints the seconds of each part and the peak memory of the streaming process, which the second command is to compare
with: as many steps (a process's heap grows for a while, whatever it streams) over 32 adapters. Blocks of streamed steps
alternate with blocks of the same steps over a stack that is on the device already, so that `stream_cost`, the median
over pairs of blocks, means something on a busy machine too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ia_jax.adapters.stream import AdapterStream

from ia_jax.adapters.base import identify
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import is_complete, save_adapters
from ia_jax.config import RunConfig
from ia_jax.data.batch import build_batch
from ia_jax.data.plans import dataset, plan_joint
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import PROJECTIONS, LoraConfig, init_lora, lora_shapes
from ia_jax.parallel.mesh import make_mesh
from ia_jax.stages import inventory
from ia_jax.stages.settings import start_workdir
from ia_jax.training.optimizer import AdamW
from ia_jax.workdir import Workdir

LORA = LoraConfig(16, 32.0)
PER_STEP, TOKENS = 8, 128
BLOCK, AHEAD = 11, 2
EDGE = AHEAD  # at the ends of a block the read-ahead is filling or idle: those steps are not timed


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


def stream(run: Workdir, count: int, epochs: int) -> dict[str, float]:
    """Epochs of joint steps in which every adapter has one row of `TOKENS` tokens."""
    from ia_jax.models.weights import load_model
    from ia_jax.training.introspection import init_state, sft_step

    model = load_model("smollm2", dtype="bfloat16")
    rng = np.random.default_rng(0)
    mask = np.arange(TOKENS) >= TOKENS // 2
    units = [[(ChatExample(rng.integers(1, 49152, TOKENS).astype(np.int32), mask),)] for _ in range(count)]
    plan = plan_joint(units, organisms_per_step=PER_STEP, per_slot=1, seed=0, length=TOKENS)
    plan = replace(plan, steps=plan.steps * epochs)
    organisms = AdapterStream([run.organism_dir(n) for n in names(count)], model, jax.device_put)
    optimizer = AdamW()
    state = init_state(init_lora(jax.random.key(0), model.config, LORA), 2 * len(plan.steps), LORA, optimizer)
    resident = organisms.take(range(PER_STEP))
    reading: list[float] = []

    def streamed(step: Any) -> Any:
        began = time.monotonic()
        stack = organisms.take([s.organism for s in step])
        reading.append(time.monotonic() - began)
        return stack, build_batch(step, plan, units)

    def timed(items: Iterable[Any]) -> list[float]:
        """Seconds of each step, reading included; the state goes on."""
        nonlocal state
        clocks = [time.monotonic()]
        for stack, batch in items:
            state, metrics = sft_step(
                model.params, state, stack, batch, cfg=model.config, lora=LORA, optimizer=optimizer
            )
            if not np.isfinite(float(metrics["loss"])):
                raise SystemExit(f"the loss is {metrics['loss']}")
            clocks.append(time.monotonic())
        return np.diff(clocks).tolist()

    timed([(resident, build_batch(plan.steps[0], plan, units))] * 2)  # compiles
    pairs = []
    for first in range(0, len(plan.steps), BLOCK):
        block = replace(plan, steps=plan.steps[first : first + BLOCK])
        ours = timed(dataset(block, streamed, AHEAD))
        theirs = timed(dataset(block, lambda step: (resident, build_batch(step, plan, units)), AHEAD))
        if len(ours) == BLOCK:
            pairs.append((np.mean(ours[EDGE:-EDGE]), np.mean(theirs[EDGE:-EDGE])))
        done = first + len(ours)
        print(f"{done} of {len(plan.steps)} steps, peak {peak_gib():.2f} GiB", file=sys.stderr, flush=True)
    result = {"steps": float(len(plan.steps)), "read_s_a_step": float(np.median(reading)), "peak_gib": peak_gib()}
    if pairs:
        result |= {
            "streamed_step_s": float(np.median([a for a, _ in pairs])),
            "resident_step_s": float(np.median([b for _, b in pairs])),
            "stream_cost": float(np.median([a / b for a, b in pairs]) - 1),
            "stream_cost_min": float(min(a / b for a, b in pairs) - 1),
            "stream_cost_max": float(max(a / b for a, b in pairs) - 1),
        }
    return result


def peak_gib() -> float:
    """Peak resident memory of this process (ru_maxrss would count the parent's before exec)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True, help="where the adapters go; they are kept")
    parser.add_argument("--only-stream", action="store_true", help="the adapters are there already")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    run = start_workdir(args.directory, RunConfig())
    result: dict[str, float] = {"count": args.count}
    if args.only_stream:
        with jax.set_mesh(make_mesh()):
            result |= stream(run, args.count, args.epochs)
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
            print(f"{name} {result[name]}", file=sys.stderr, flush=True)
        # A process of its own, so that its peak memory is its own.
        command = [sys.executable, __file__, "--only-stream", "--json", f"--directory={args.directory}"]
        command += [f"--count={args.count}", f"--epochs={args.epochs}"]
        result |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(result) if args.json else "\n".join(f"{k:>16}  {v:.6g}" for k, v in result.items()))


def damaged(found: dict[str, list[str]]) -> None:
    bad = {n: p for n, p in found.items() if p}
    if bad:
        raise SystemExit(f"damaged: {bad}")


if __name__ == "__main__":
    main()
