"""Step time of an introspection adapter on all layers, with dropout, on the upper half, on one, and as one vector.

    python benchmarks/layers.py                   # SmolLM2, 8 organisms x 128 tokens, a table

Each kind of IA trains over the same frozen organisms and tokens. Rounds of a few steps of each kind follow one another,
so that what else the machine does meets all alike; a kind's time is the median over its steps. Beside it: what the
roofline's arithmetic (`training_flops`) would make of it, and what the compiler says that the program holds.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.data.batch import Batch, build_batch
from ia_jax.data.plans import plan_joint
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import RESIDUAL, LoraConfig, adapter_shardings, init_lora, init_organisms
from ia_jax.models.weights import load_model
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning.chips import training_flops
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step

ORGANISM, OPTIMIZER = LoraConfig(8, 16.0), AdamW()


def kinds(layers: int) -> dict[str, tuple[LoraConfig, float]]:
    """{name: (the adapter, its dropout)}."""
    half, one = tuple(range(layers // 2, layers)), (layers // 2,)
    return {
        "all layers": (LoraConfig(16, 32.0), 0.0),
        "with dropout": (LoraConfig(16, 32.0), 0.05),
        "upper half": (LoraConfig(16, 32.0, layers=half), 0.0),
        "one layer": (LoraConfig(16, 32.0, layers=one), 0.0),
        "one vector": (LoraConfig(0, 0.0, (RESIDUAL,), layers=one), 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--organisms", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each kind in a round")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        found = measure(args, mesh)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'':12}  {'step':>8}  {'of all':>6}  {'FLOPs':>6}  {'temporaries':>11}  {'adapter':>9}")
    whole = found["all layers"]
    for name, x in found.items():
        shares = (x["step_s"] / whole["step_s"], x["flops"] / whole["flops"])
        print(
            f"{name:12}  {x['step_s']:6.2f} s  {shares[0]:6.2f}  {shares[1]:6.2f}  {x['temp_mib']:7.0f} MiB  "
            f"{x['adapter_mib']:5.2f} MiB"
        )


def measure(args: argparse.Namespace, mesh: jax.sharding.Mesh) -> dict[str, dict[str, float]]:
    model = load_model(args.model, dtype=args.dtype, mesh=mesh)
    cfg, key = model.config, jax.random.key(0)
    frozen = init_organisms(jax.random.split(key, args.organisms), cfg, ORGANISM)
    frozen = jax.tree.map(lambda x: x.astype(args.dtype), frozen)
    batch = a_batch(args.organisms, args.length, cfg.vocab_size)
    programs, states, seconds, out = {}, {}, {name: [] for name in kinds(cfg.num_hidden_layers)}, {}
    for name, (lora, dropout) in kinds(cfg.num_hidden_layers).items():
        ia = init_lora(key, cfg, lora)
        state = init_state(ia, 1000, OPTIMIZER, scale=lora.scale, keys=key)
        states[name] = jax.device_put(state, adapter_shardings(state, mesh))
        how: dict[str, Any] = {
            "cfg": cfg,
            "loss": Sft(),
            "optimizer": OPTIMIZER,
            "remat": args.remat,
            "dropout": dropout,
        }
        programs[name] = train_step.lower(model.params, states[name], (frozen,), batch, **how).compile()
        each = training_flops(cfg, args.length, [ORGANISM, lora], [lora])
        out[name] = {
            "flops": batch.tokens.size * each["tokens"] + batch.target_weight.sum() * each["supervised_tokens"],
            "temp_mib": programs[name].memory_analysis().temp_size_in_bytes / 2**20,
            "adapter_mib": sum(x.nbytes for x in jax.tree.leaves(ia)) / 2**20,
        }
    for number in range(args.rounds + 1):  # the first warms up
        for name, program in programs.items():
            for _ in range(args.steps):
                began = time.monotonic()
                states[name], metrics = program(model.params, states[name], (frozen,), batch, optimizer=OPTIMIZER)
                if not np.isfinite(float(metrics["loss"])):
                    raise SystemExit(f"{name}: the loss is {metrics['loss']}")
                if number:
                    seconds[name].append(time.monotonic() - began)
    return {
        name: {"step_s": statistics.median(seconds[name]), **{k: float(v) for k, v in x.items()}}
        for name, x in out.items()
    }


def a_batch(organisms: int, length: int, vocabulary: int) -> Batch:
    rng = np.random.default_rng(0)
    mask = np.arange(length) >= length // 2
    units = [[(ChatExample(rng.integers(1, vocabulary, length).astype(np.int32), mask),)] for _ in range(organisms)]
    plan = plan_joint(units, organisms_per_step=organisms, per_slot=1, seed=0, length=length)
    return jax.tree.map(jnp.asarray, build_batch(plan.steps[0], plan, units))


if __name__ == "__main__":
    main()
