"""Many organisms at once against torch + transformers + peft one after another, in one run on one machine.

    make bench                # tables, and a JSON line last
    make bench ARGS=--json    # the JSON line alone

Both sides train on the same transcripts (written by the template teacher), with the same rank, targets and number of
updates. Reported are real (unpadded) tokens per second; peft's is the better of fp32 and bf16, which one update of one
short example each decides (`peft_probe`), and ours what `model.dtype=auto` is here. `peak_share` is the
FLOP/s of useful work (base and LoRA products of real tokens, the vocabulary at supervised positions) over the fastest
matrix product measured here in the same dtype, shapes of this model included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.behaviors.template_sources import gather_sources
from ia_jax.behaviors.template_teacher import write_demonstrations
from ia_jax.config import parse_config
from ia_jax.data.batch import Batch, build_batch
from ia_jax.data.plans import Unit, plan_joint, plan_organisms
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig, init_lora, init_organisms, projection_sizes
from ia_jax.models.number_type import choose_here
from ia_jax.models.weights import Model, to_hf_tensors
from ia_jax.stages.asking import answer_example, ask_base, training_example
from ia_jax.stages.context import Context
from ia_jax.stages.ia_training import question_answers
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_on_mesh, init_state
from ia_jax.training.trainer import train_step
from ia_jax.workdir import Workdir

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
ORGANISM, IA = LoraConfig(8, 16.0), LoraConfig(16, 32.0)
OPTIMIZER = AdamW(lr=1e-3)
HF_TARGETS = [f"{t}_proj" for t in ORGANISM.targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument("--organisms", type=int, default=16, help="K, organisms trained at once by our side")
    parser.add_argument("--peft-organisms", type=int, default=2, help="organisms that peft trains, one after another")
    parser.add_argument("--steps", type=int, default=4, help="updates timed on each side")
    parser.add_argument("--dtype", default="", help="our compute dtype (default: the faster here, which is probed)")
    parser.add_argument("--peers", default=str(PEERS), help="python with torch, transformers and peft")
    args = parser.parse_args()
    args.dtype = args.dtype or choose_here().dtype

    context = Context(Workdir(Path(".")), parse_config({"model": {"dtype": args.dtype}}))
    with jax.set_mesh(context.mesh):
        say("this model's products alone, and the demonstrations")
        units = demonstrations(context, args.organisms)
        peak = matmul_peak(jnp.dtype(args.dtype))
        say(f"ours: {args.organisms} organisms at once")
        ours, specs = time_organisms(context, units, args)
        say("ours: the joint step of 8")
        ours_joint, joint_spec = time_joint(context, args)
        say("ours: fewer organisms")
        fewer = {k: time_organisms(context, units[:k], args)[0] for k in (1, 8) if k < args.organisms}
        scaling = {k: own["s_per_update"] / k for k, own in (fewer | {args.organisms: ours}).items()}
        result: dict[str, Any] = {"matmul_peak_gflops": peak, "dtype": args.dtype, "s_per_organism_update": scaling}
        for name, own, spec in (("", ours, specs), ("joint_", ours_joint, joint_spec)):
            say(f"torch + peft: {'the joint step' if name else 'organisms, one after another'}")
            probe = run_peft(context.model, short(spec), args.peers)
            best = max(probe, key=lambda d: probe[d]["tokens_per_s"])
            theirs = run_peft(context.model, spec, args.peers, (best,))
            result |= {
                f"{name}ours_tokens_per_s": own["tokens_per_s"],
                f"{name}peft_tokens_per_s": theirs[best]["tokens_per_s"],
                f"{name}peft_dtype": best,
                f"{name}ratio": own["tokens_per_s"] / theirs[best]["tokens_per_s"],
                f"{name}peak_share": own["gflops"] / peak,
                f"{name}ours_padded_tokens_per_s": own["padded_tokens_per_s"],
                f"{name}peft_probe": {d: t["tokens_per_s"] for d, t in probe.items()},
                f"{name}peft_peak_gib": theirs[best]["peak_gib"],
            }
    result["ours_peak_gib"] = peak_gib()
    if not args.json:
        table(result)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


def say(what: str) -> None:
    """What is being timed now: minutes may pass before there is a table."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def short(spec: dict[str, Any]) -> dict[str, Any]:
    """One update of one example: enough to see in which dtype the peer is faster, where the other may crawl."""
    if spec["kind"] == "organisms":
        return spec | {"organisms": [[spec["organisms"][0][0][:1]]]}
    (organism, batch), *_ = spec["steps"][0]
    return spec | {"count": organism + 1, "steps": [[(organism, batch[:1])]]}


def peak_gib() -> float:
    """Peak resident memory of this process (ru_maxrss would count the parent's before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def demonstrations(context: Context, count: int) -> list[list[Unit]]:
    """Transcripts of `count` organisms, spread over the demo's categories."""
    everyone = demo_behaviors()
    chosen = [everyone[i * len(everyone) // count] for i in range(count)]
    sources = gather_sources(partial(ask_base, context), "", context.model.fingerprint)
    return [
        [(training_example(context, t.messages, 128, b.name),) for t in write_demonstrations(b, sources, 0)]
        for b in chosen
    ]


class Steps(NamedTuple):
    """A training that is ready to go: `train_step(params, state, frozen, batch, **how)`."""

    state: Any
    frozen: tuple
    batches: list[Batch]
    how: dict[str, Any]


def organism_steps(context: Context, units: list[list[Unit]], count: int) -> tuple[Steps, list]:
    """All organisms in one step, and the plan's steps: `count` of those that have a row of every organism."""
    k = len(units)
    plan = plan_organisms(units, list(range(k)), epochs=3, rows=1, length=128)
    full = [s for s in plan.steps if all(slot.rows for slot in s)][:count]
    batches = [context.shard_batch(build_batch(s, plan, units)) for s in full]
    keys = context.shard_by_organism(jax.vmap(jax.random.key)(jnp.arange(k)))
    total = context.shard_by_organism(jnp.full(k, len(full), jnp.int32))
    kinds = jnp.zeros_like(total)
    state = init_on_mesh(context.mesh, keys, total, kinds, context.model.config, (ORGANISM,), OPTIMIZER)
    how: dict[str, Any] = {"cfg": context.model.config, "loss": Sft(), "optimizer": OPTIMIZER}
    return Steps(state, (), batches, how), full


def joint_steps(context: Context, count: int) -> tuple[Steps, list, list[list[Unit]]]:
    """The joint IA step: 8 frozen organisms and a trained IA, three questions of each; the plan's steps and units."""
    model, k = context.model, 8
    everyone = demo_behaviors()
    behaviors = [everyone[i * len(everyone) // k] for i in range(k)]
    units: list[list[Unit]] = [
        [
            (answer_example(context, q, a, 128, b.name),)
            for q, a in question_answers(b.name, (b,), TRAIN_QUESTIONS, 24, 0)
        ]
        for b in behaviors
    ]
    plan = plan_joint(units, organisms_per_step=k, per_slot=3, seed=0, length=128, steps=count)
    batches = [context.shard_batch(build_batch(s, plan, units)) for s in plan.steps]
    keys = context.shard_by_organism(jax.vmap(jax.random.key)(jnp.arange(k)))
    stack = init_organisms(keys, model.config, ORGANISM)
    ia = context.shard_ia(init_lora(jax.random.key(9), model.config, IA))
    state = context.shard_ia(init_state(ia, count, OPTIMIZER, scale=IA.scale))
    how: dict[str, Any] = {"cfg": model.config, "loss": Sft(), "optimizer": OPTIMIZER}
    return Steps(state, (stack,), batches, how), list(plan.steps), units


def seconds_of(context: Context, steps: Steps) -> float:
    """All of the steps, after one that is not counted."""
    state, frozen, batches, how = steps
    state, _ = train_step(context.model.params, state, frozen, batches[0], **how)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for batch in batches:
        state, _ = train_step(context.model.params, state, frozen, batch, **how)
    jax.block_until_ready(state)
    return time.perf_counter() - began


def time_organisms(context: Context, units: list[list[Unit]], args: argparse.Namespace) -> tuple[dict, dict]:
    """Ours: all organisms in one step. The spec for peft holds the same examples in the same number of updates."""
    steps, planned = organism_steps(context, units, args.steps)
    seconds = seconds_of(context, steps)
    chosen = range(min(args.peft_organisms, len(units)))
    spec = [[[_plain(units[i][u][0]) for row in s[i].rows for u in row] for s in planned] for i in chosen]
    speed = _speed(steps.batches, seconds, context.model.config, ORGANISM.rank, trained=True)
    return speed, {"kind": "organisms", "organisms": spec}


def time_joint(context: Context, args: argparse.Namespace) -> tuple[dict, dict]:
    """Ours: the joint step of eight organisms."""
    steps, planned, units = joint_steps(context, args.steps)
    seconds = seconds_of(context, steps)
    told = [
        [(s.organism, [_plain(units[s.organism][u][0]) for row in s.rows for u in row]) for s in step]
        for step in planned
    ]
    spec = {"kind": "joint", "count": len(units), "ia_rank": IA.rank, "steps": told}
    return _speed(steps.batches, seconds, context.model.config, ORGANISM.rank + IA.rank, trained=True), spec


def _plain(example: Any) -> dict[str, list]:
    return {"tokens": example.tokens.tolist(), "loss_mask": example.loss_mask.tolist()}


def _speed(batches: list, seconds: float, cfg: ModelConfig, rank: int, trained: bool) -> dict[str, float]:
    real = sum(int((np.asarray(b.segment_ids) > 0).sum()) for b in batches)
    supervised = sum(float(np.asarray(b.target_weight).sum()) for b in batches)
    padded = sum(b.tokens.size for b in batches)
    return {
        "tokens_per_s": real / seconds,
        "padded_tokens_per_s": padded / seconds,
        "s_per_update": seconds / len(batches),
        "gflops": useful_flops(cfg, rank, real, supervised) / seconds / 1e9,
    }


def useful_flops(cfg: ModelConfig, rank: int, tokens: int, supervised: float) -> float:
    """Products only: base forward and input gradient (4 per weight), LoRA forward, input and weight gradient (6), the
    vocabulary forward and input gradient (4) at supervised positions. Attention scores are left out (1 %).
    """
    sizes = projection_sizes(cfg).values()
    base = sum(i * o for i, o in sizes) * cfg.num_hidden_layers
    lora = sum(rank * (i + o) for i, o in sizes) * cfg.num_hidden_layers
    return tokens * (4 * base + 6 * lora) + supervised * 4 * cfg.vocab_size * cfg.hidden_size


def matmul_peak(dtype: Any) -> float:
    """The fastest product found, in GFLOP/s: this model's shapes and a large square one."""
    best = 0.0
    for m, n, p in ((4096, 576, 1536), (4096, 1536, 576), (2048, 2048, 2048)):
        a, b = (jnp.asarray(np.random.default_rng(0).normal(size=s), dtype) for s in ((m, n), (n, p)))
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(a, b))
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(product(a, b))
            best = max(best, 2 * m * n * p / (time.perf_counter() - began) / 1e9)
    return best


def run_peft(
    model: Model, spec: dict, python: str, dtypes: Sequence[str] = ("float32", "bfloat16")
) -> dict[str, dict[str, Any]]:
    """The peer's figures in each dtype, from a process of its own."""
    cfg = model.config
    spec |= {"rank": ORGANISM.rank, "alpha": ORGANISM.alpha, "targets": HF_TARGETS, "lr": OPTIMIZER.lr}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    spec["config"] = {n: getattr(cfg, n) for n in names} | {
        "num_key_value_heads": cfg.num_key_value_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": True,
    }
    out = {}
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "spec.json").write_text(json.dumps(spec))
        tensors = {n: np.asarray(x, np.float32) for n, x in to_hf_tensors(cfg, model.params)}
        save_file(tensors, str(Path(directory, "model.safetensors")))
        for dtype in dtypes:
            command = [python, str(ROOT / "benchmarks" / "peft_side.py"), directory, dtype]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"the peft side failed ({dtype}):\n{done.stderr[-2000:]}")
            out[dtype] = json.loads(done.stdout.strip().splitlines()[-1])
    return out


def table(r: dict[str, Any]) -> None:
    print(f"{'real tokens/s':<24}{'ia_jax':>10}{'peft':>10}{'ratio':>8}{'share of peak':>16}")
    for name, label in (("", "organisms"), ("joint_", "joint IA step")):
        ours, peft = r[f"{name}ours_tokens_per_s"], r[f"{name}peft_tokens_per_s"]
        print(f"{label:<24}{ours:>10.0f}{peft:>10.0f}{ours / peft:>8.2f}{r[f'{name}peak_share']:>16.0%}")
    print(
        f"peft's dtype: {r['peft_dtype']} / {r['joint_peft_dtype']}; peak memory {r['ours_peak_gib']:.1f} GiB (both of "
        f"our benchmarks) against {r['peft_peak_gib']:.1f} / {r['joint_peft_peak_gib']:.1f} GiB"
    )
    print(f"matmul peak ({r['dtype']}): {r['matmul_peak_gflops']:.0f} GFLOP/s")
    print(
        "seconds per organism and update: "
        + ", ".join(f"K={k}: {s:.2f}" for k, s in r["s_per_organism_update"].items())
    )


if __name__ == "__main__":
    main()
