"""Hundreds of synthetic adapters of SmolLM2's shapes: save, ls, verify, and train on them from a bank.

    python benchmarks/many_adapters.py --directory=/tmp/adapters                       # 700 adapters, 14 GB
    python benchmarks/many_adapters.py --directory=/tmp/adapters --only=streamed --count=32 --epochs=22

Joint IA steps of 8 adapters, from a bank that streams and then from one that is resident in bf16 (7 GB): the seconds of
each part, of opening the bank, and the peak memory of each process. The second command is to compare that with: as many
steps (a process's heap grows for a while, whatever it streams) over 32 adapters. Blocks of steps from the bank
alternate with blocks of the same steps over one stack that never changes, so `cost`, the median over pairs of blocks,
means something on a busy machine too.
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

from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.base import identify
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import is_complete, save_adapters
from ia_jax.config import RunConfig
from ia_jax.data.batch import build_batch
from ia_jax.data.plans import dataset, plan_joint
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import PROJECTIONS, LoraConfig, adapter_shardings, init_lora, lora_shapes
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


def train(run: Workdir, count: int, epochs: int, steps: int | None, resident: bool) -> dict[str, float]:
    """Epochs of joint steps (the first `steps` of them) in which every adapter has one row of `TOKENS` tokens."""
    from ia_jax.models.weights import load_model
    from ia_jax.training.losses import Sft
    from ia_jax.training.state import init_state
    from ia_jax.training.trainer import train_step

    mesh = make_mesh()
    model = load_model("smollm2", dtype="bfloat16", mesh=mesh)
    rng = np.random.default_rng(0)
    mask = np.arange(TOKENS) >= TOKENS // 2
    units = [[(ChatExample(rng.integers(1, 49152, TOKENS).astype(np.int32), mask),)] for _ in range(count)]
    plan = plan_joint(units, organisms_per_step=PER_STEP, per_slot=1, seed=0, length=TOKENS)
    plan = replace(plan, steps=(plan.steps * epochs)[:steps])
    began = time.monotonic()
    directories = [run.organism_dir(n) for n in names(count)]
    bank = open_bank(directories, model, mesh, dtype="bfloat16", budget_bytes=1 << 40 if resident else 0)
    opened = time.monotonic() - began
    optimizer = AdamW()
    state = init_state(
        init_lora(jax.random.key(0), model.config, LORA), 2 * len(plan.steps), optimizer, scale=LORA.scale
    )
    state = jax.device_put(state, adapter_shardings(state, mesh))
    same = bank.take(range(PER_STEP))
    reading: list[float] = []

    def batch(step: Any) -> Any:
        made = build_batch(step, plan, units)
        return jax.device_put(made, adapter_shardings(made, mesh, organisms=True))

    def taken(step: Any) -> Any:
        began = time.monotonic()
        stack = bank.take([s.organism for s in step])
        reading.append(time.monotonic() - began)
        return stack, batch(step)

    def timed(items: Iterable[Any]) -> list[float]:
        """Seconds of each step, reading included; the state goes on."""
        nonlocal state
        clocks = [time.monotonic()]
        for stack, rows in items:
            state, metrics = train_step(
                model.params, state, (stack,), rows, cfg=model.config, loss=Sft(), optimizer=optimizer
            )
            if not np.isfinite(float(metrics["loss"])):
                raise SystemExit(f"the loss is {metrics['loss']}")
            clocks.append(time.monotonic())
        return np.diff(clocks).tolist()

    with jax.set_mesh(mesh):
        timed([(same, batch(plan.steps[0]))] * 2)  # compiles
        pairs = []
        for first in range(0, len(plan.steps), BLOCK):
            block = replace(plan, steps=plan.steps[first : first + BLOCK])
            ours = timed(dataset(block, taken, AHEAD))
            theirs = timed(dataset(block, lambda step: (same, batch(step)), AHEAD))
            if len(ours) == BLOCK:
                pairs.append((np.mean(ours[EDGE:-EDGE]), np.mean(theirs[EDGE:-EDGE])))
            done = first + len(ours)
            print(f"{done} of {len(plan.steps)} steps, peak {peak_gib():.2f} GiB", file=sys.stderr, flush=True)
    result = {"steps": float(len(plan.steps)), "open_s": opened, "take_s_a_step": float(np.median(reading))}
    result["peak_gib"] = peak_gib()
    if pairs:
        result |= {
            "step_s": float(np.median([a for a, _ in pairs])),
            "same_stack_step_s": float(np.median([b for _, b in pairs])),
            "cost": float(np.median([a / b for a, b in pairs]) - 1),
            "cost_min": float(min(a / b for a, b in pairs) - 1),
            "cost_max": float(max(a / b for a, b in pairs) - 1),
        }
    return result


def peak_gib() -> float:
    """Peak resident memory of this process (ru_maxrss would count the parent's before exec)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of joint training, at most")
    parser.add_argument("--directory", type=Path, required=True, help="where the adapters go; they are kept")
    parser.add_argument("--only", choices=("streamed", "resident"), help="the adapters are there already")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    run = start_workdir(args.directory, RunConfig())
    result: dict[str, float] = {"count": args.count}
    if args.only:
        result |= train(run, args.count, args.epochs, args.steps, args.only == "resident")
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
        # Processes of their own, so that their peak memory is their own.
        for kind in ("streamed", "resident"):
            command = [sys.executable, __file__, f"--only={kind}", "--json", f"--directory={args.directory}"]
            command += [f"--count={args.count}", f"--epochs={args.epochs}"]
            command += [f"--steps={args.steps}"] if args.steps is not None else []
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            result |= {f"{kind}_{k}": v for k, v in json.loads(printed).items() if k != "count"}
    print(json.dumps(result) if args.json else "\n".join(f"{k:>26}  {v:.6g}" for k, v in result.items()))


def damaged(found: dict[str, list[str]]) -> None:
    bad = {n: p for n, p in found.items() if p}
    if bad:
        raise SystemExit(f"damaged: {bad}")


if __name__ == "__main__":
    main()
