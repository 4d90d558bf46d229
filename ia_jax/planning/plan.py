"""`ia-jax plan`: compiles the true step of a stage for a TPU slice that nobody here has, and says what it would cost.

The jitted functions that the stages call are lowered with shapes and shardings in place of arrays, and compiled by the
libtpu that `jax[tpu]` brings, on a machine without a TPU. Memory is the compiler's own account; collectives are read
from the program; FLOPs are counted by hand (`chips.step_flops`); the step time is a roofline, so a lower bound.
"""

import importlib.util
import itertools
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch, batch_shardings
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.config import ModelConfig
from ia_jax.models.known import architecture
from ia_jax.models.lora import LoraConfig, adapter_shardings, leaf_axes, lora_shapes
from ia_jax.models.replies import ROWS_AT_ONCE
from ia_jax.models.sampling import PROMPT_BUCKET, decode
from ia_jax.models.transformer import WeightSpec, abstract_params, weight_specs
from ia_jax.parallel.mesh import TRAINING, make_mesh
from ia_jax.planning.chips import GIB, Chip, Work, chip_of, step_flops, step_hbm_bytes, step_ici_bytes
from ia_jax.planning.hlo import Namer, collectives
from ia_jax.training import introspection, organisms

STAGES = ("organisms", "sft", "dpo", "sample")
TOKENS = 512  # of one demonstration, where nothing better is known
SMALL = 4096  # elements: below this a gather is counters and norms, whatever its shape


@dataclass(frozen=True)
class Shape:
    """What a plan compiles: the mesh, the stage's rows and the remat policy."""

    fsdp: int
    tp: int
    rows: int
    remat: str


def plan(
    config: RunConfig, topology: str, stage: str, shape: Shape | None = None, demonstration_tokens: int = 0
) -> dict[str, Any]:
    """The report of one compilation, with the keys of `ia-jax plan --json`.

    Raises ConfigError where the topology, the mesh or the stage does not exist, IAError where libtpu is not installed.
    A program that does not fit the chips is reported (`fits` false, and what the compiler said), not raised.
    """
    if stage not in STAGES:
        raise ConfigError(f"--stage {stage} unknown; choose from {', '.join(STAGES)}")
    if config.mesh.dcn > 1:
        raise ConfigError(
            f"plan compiles for one slice, config.mesh.dcn is {config.mesh.dcn}; set --config.mesh.dcn=1 and the "
            "organisms in a step to those of one slice"
        )
    chip, devices = chip_of(topology), devices_of(topology)
    cfg = architecture(config.model.name)
    shape = shape or default_shape(config, stage)
    if shape.fsdp * shape.tp != len(devices):
        raise ConfigError(
            f"mesh fsdp={shape.fsdp} x tp={shape.tp} is {shape.fsdp * shape.tp} chips, {topology} has {len(devices)}; "
            f"set --config.mesh.fsdp={len(devices) // shape.tp}"
        )
    mesh = make_mesh(shape.fsdp, shape.tp, devices=devices)
    work = work_of(config, stage, shape)
    length = _prompt_length(config) if stage == "sample" else work.length
    lora = trained_lora(config, stage)
    report: dict[str, Any] = {
        "topology": topology,
        "chips": len(devices),
        "stage": stage,
        "model": config.model.name,
        "mesh": {"fsdp": shape.fsdp, "tp": shape.tp},
        "batch": {"organisms": work.organisms, "rows": work.rows, "length": length},
        "remat": shape.remat,
    }
    start = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = _lower(config, cfg, stage, mesh, work)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            report |= {"fits": False, "hbm_gib": needed_gib(str(error))}
            return report | {"capacity_gib": round(chip.capacity / GIB, 2), "reason": _first_line(error)}
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    argument = memory.argument_size_in_bytes
    # Outputs that are not donated arguments, and the program itself, lie in HBM too.
    temp = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temp += memory.generated_code_size_in_bytes
    found = collectives(compiled.as_text(), _names(cfg, lora, mesh, work), unknown_trips=config.eval.max_new_tokens)
    report |= {
        "fits": argument + temp <= chip.capacity,
        "hbm_gib": round((argument + temp) / GIB, 2),
        "capacity_gib": round(chip.capacity / GIB, 2),
        "argument_gib": round(argument / GIB, 2),
        "temp_gib": round(temp / GIB, 2),
        "collectives": [asdict(c) for c in found],
        "activation_gathers": sum(c.count for c in found if c.op == "all-gather" and c.what == "activations"),
    }
    speed = bandwidths(mesh.devices, chip)
    ici_s = sum(c.wire_bytes / speed.get(c.group, chip.link) for c in found)
    if stage == "sample":  # of one new token, as everything else
        ici_s /= config.eval.max_new_tokens
    report |= roofline(cfg, lora, work, shape, chip, ici_s)
    steps = steps_of(config, stage, demonstration_tokens)
    report |= {"steps": steps, "chip_hours": _chip_hours(config, cfg, report, speed, demonstration_tokens)}
    return report | {"peaks": f"{chip.source} (bf16 {chip.flops / 1e12:.0f} TFLOP/s)", "compile_s": round(seconds, 1)}


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a slice that is not there. Raises as `plan` does."""
    # libtpu is to ask the cloud nothing about this machine and print nothing about it; and plans may run side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise IAError("plan needs libtpu, which is not installed; pip install 'ia-jax[tpu]'")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        text = _first_line(error)
        if "libtpu" in text:
            raise IAError(f"libtpu does not start: {text}") from error
        raise ConfigError(f"--topology {topology} does not exist ({text}); examples: v5e:4x4, v5p:4x4x4") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


# ---------------------------------------------------------------------------------------------------------------------
# The step and its arguments
# ---------------------------------------------------------------------------------------------------------------------


def organisms_at_once(config: RunConfig, stage: str) -> int:
    """Organisms in one step; of sampling, in one batch of the evaluation."""
    return {
        "organisms": config.organisms.parallel,
        "sft": config.sft.organisms_per_step,
        "dpo": config.dpo.organisms_per_step,
        "sample": config.organisms.parallel,
    }[stage]


def default_shape(config: RunConfig, stage: str) -> Shape:
    """The mesh, rows of an organism and remat policy that a run with this config has."""
    at_once = max(1, ROWS_AT_ONCE // organisms_at_once(config, stage))
    rows = {
        "organisms": config.organisms.rows,
        "sft": config.sft.rows,
        "dpo": config.dpo.rows,
        "sample": min(at_once, config.eval.questions),
    }
    return Shape(config.mesh.fsdp, config.mesh.tp, rows[stage], config.model.remat)


def trained_lora(config: RunConfig, stage: str) -> LoraConfig:
    """The adapter that a stage trains; of organisms the largest, to which a stack is padded."""
    return config.organisms.loras()[-1] if stage == "organisms" else config.sft.lora.lora()


def work_of(config: RunConfig, stage: str, shape: Shape) -> Work:
    """What a step of that shape does. Every position counts as supervised and every prompt as long as a row of SFT."""
    k = organisms_at_once(config, stage)
    if stage == "sample":
        cached = _prompt_length(config) + config.eval.max_new_tokens // 2
        return Work(k, shape.rows, 1, shape.rows, adapters=2, trained=0, remat="none", backward=False, cached=cached)
    length = {"organisms": config.organisms.length, "sft": config.sft.length, "dpo": config.dpo.length}[stage]
    adapters = 1 if stage == "organisms" else 2
    return Work(k, shape.rows, length, shape.rows * length, adapters, trained=1, remat=shape.remat)


def _prompt_length(config: RunConfig) -> int:
    return math.ceil(config.sft.length / PROMPT_BUCKET) * PROMPT_BUCKET


def _lower(config: RunConfig, cfg: ModelConfig, stage: str, mesh: Mesh, work: Work) -> Any:
    """The stage's own jitted function, lowered."""
    base = abstract_params(cfg, jnp.dtype(config.model.dtype), mesh)
    k, b, t, p = work.organisms, work.rows, work.length, work.targets // work.rows

    def placed(tree: Any, organisms: bool) -> Any:
        shardings = adapter_shardings(tree, mesh, organisms)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    def integers(*dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.int32)

    def adapter(lora: LoraConfig, *lead: int) -> Any:
        shapes = lora_shapes(cfg, lora)
        return {
            t: {n: jax.ShapeDtypeStruct((*lead, *s), jnp.float32) for n, s in ab.items()} for t, ab in shapes.items()
        }

    weights = jax.ShapeDtypeStruct((k, b, p), jnp.float32)
    rows, targets = [integers(k, b, t)] * 3, [integers(k, b, p), integers(k, b, p), weights, integers(k, b, p)]
    batch = Batch(*rows, *targets)
    batch = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), batch, batch_shardings(batch, mesh)
    )
    theirs, ours = trained_lora(config, "organisms"), trained_lora(config, "sft")
    static: dict[str, Any] = {"cfg": cfg, "remat": work.remat}
    if stage == "organisms":
        static["optimizer"] = config.organisms.optimizer
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), k))
        state = jax.eval_shape(
            lambda ks, n: organisms.init_state(ks, n, cfg, theirs, config.organisms.optimizer), keys, integers(k)
        )
        return organisms.organisms_step.lower(base, placed(state, organisms=True), batch, **static)
    stack = placed(adapter(theirs, k), organisms=True)
    if stage == "sample":
        prompt = _prompt_length(config)
        real = jax.ShapeDtypeStruct((k, b, prompt), jnp.bool)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (k, b)))
        number = jax.ShapeDtypeStruct((), jnp.float32)
        stacks = (stack, placed(adapter(ours), organisms=False))
        return decode.lower(
            base,
            integers(k, b, prompt),
            real,
            keys,
            stacks,
            integers(2),
            number,
            number,
            cfg,
            config.eval.max_new_tokens,
        )
    optimizer = config.sft.optimizer if stage == "sft" else config.dpo.optimizer
    static |= {"lora": ours, "optimizer": optimizer}
    state = placed(
        jax.eval_shape(lambda a: introspection.init_state(a, 2, ours, optimizer), adapter(ours)), organisms=False
    )
    if stage == "sft":
        return introspection.sft_step.lower(base, state, stack, batch, **static)
    reference = placed(jax.ShapeDtypeStruct((k, 2 * config.dpo.per_slot), jnp.float32), organisms=True)
    static |= {"beta": config.dpo.beta, "sft_weight": config.dpo.sft_weight}
    return introspection.dpo_step.lower(base, state, stack, batch, reference, **static)


# ---------------------------------------------------------------------------------------------------------------------
# Reading the program
# ---------------------------------------------------------------------------------------------------------------------


def _names(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh, work: Work) -> Namer:
    """What a collective's array is, by its shape: a base weight or an adapter, whole or a shard; else activations.

    So whatever is not known to be something else counts as activations. Axes of size 1 and their order are ignored.
    Base weights are only ever gathered, along `fsdp`: they are frozen, so nothing about them is reduced, and a gather
    along `tp` of the same shape is one of hidden states (4096 tokens of width 8192, say).
    """

    def spellings(shape: Sequence[int], axes: Sequence[str | None]) -> Iterator[tuple[int, ...]]:
        choices = []
        for size, axis in zip(shape, axes, strict=True):
            choices.append({size, size // TRAINING.size(axis, mesh)} if axis else {size})
        for dims in itertools.product(*choices):
            yield tuple(sorted(d for d in dims if d > 1))

    weights: set[tuple[int, ...]] = set()
    specs = jax.tree.leaves(weight_specs(cfg), is_leaf=lambda x: isinstance(x, WeightSpec))
    for spec in specs:
        weights.update(spellings(spec.shape, spec.axes))
        if spec.axes[0] == "layers":
            weights.update(spellings(spec.shape[1:], spec.axes[1:]))
    adapters: set[tuple[int, ...]] = set()
    local = {1, work.organisms, work.organisms // mesh.shape["fsdp"]}
    for t, factors in lora_shapes(cfg, lora).items():
        for name, (layers, *shape) in factors.items():
            axes = leaf_axes(t, name)[1:]
            # Projections of one input are multiplied together, so up to three ranks lie side by side.
            for width, k, depth in itertools.product((1, 2, 3), local, (1, layers)):
                sizes = [d * width if a == "rank" else d for d, a in zip(shape, axes, strict=True)]
                adapters.update(spellings([k, depth, *sizes], [None, None, *axes]))

    def what(op: str, dtype: str, shape: tuple[int, ...], group: int) -> str:
        if dtype[0] in "sup":
            return "ids"
        if math.prod(shape) <= SMALL:
            return "scalars"
        dims = tuple(sorted(d for d in shape if d > 1))
        gathered = op == "all-gather" and group == TRAINING.size("embed", mesh)
        if dims in weights and (op == "collective-permute" or gathered):
            return "weights"
        return "adapters" if dims in adapters else "activations"

    return what


def bandwidths(grid: np.ndarray, chip: Chip) -> dict[int, float]:
    """Bytes/s that a chip can receive from its group, by the size of the group.

    grid: the mesh's devices; a group lies along one or more of its axes. Counted are the links that lead from a chip at
    the group's edge to others of the group: two on an axis of the torus that the group fills and that is a ring, else
    one. So this is what a collective that uses all of the group's axes at once can reach.
    """
    coords = np.array([d.coords for d in grid.flat]).reshape(*grid.shape, -1)
    whole = coords.reshape(-1, coords.shape[-1]).max(0) + 1
    out: dict[int, float] = {}
    for axes in itertools.product((0, slice(None)), repeat=grid.ndim):
        group = coords[axes].reshape(-1, coords.shape[-1])
        extents = [len(set(column)) for column in group.T]
        links = sum((2 if e == n and n % chip.ring == 0 else 1) for e, n in zip(extents, whole, strict=True) if e > 1)
        out[len(group)] = min(out.get(len(group), math.inf), chip.link * max(links, 1))
    return out


def ici_by_hand(cfg: ModelConfig, work: Work, shape: Shape, speed: dict[int, float]) -> float:
    """Seconds of a step's collectives without a compiled program. speed: `bandwidths` of the mesh."""
    gathered, summed = step_ici_bytes(cfg, work, shape.fsdp, shape.tp)
    return gathered / speed[shape.fsdp] + summed / speed[shape.tp]


def roofline(
    cfg: ModelConfig,
    lora: LoraConfig,
    work: Work,
    shape: Shape,
    chip: Chip,
    ici_s: float,
) -> dict[str, Any]:
    """Lower bounds of a step's time, each as if the other two were free and hidden behind it. ici_s: that of ICI."""
    chips = shape.fsdp * shape.tp
    needed, executed = step_flops(cfg, lora, work)
    seconds = {
        "compute": executed / chips / chip.flops,
        "hbm": step_hbm_bytes(cfg, lora, work, shape.fsdp, shape.tp) / chip.hbm,
        "ici": ici_s,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        "flops_per_chip": executed / chips,
        "predicted_step_s": round(seconds[bound], 6),
        "bound": bound,
        "bounds_s": {name: round(s, 6) for name, s in seconds.items()},
        "predicted_mfu": round(needed / chips / chip.flops / seconds[bound], 4),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The whole job
# ---------------------------------------------------------------------------------------------------------------------


def needed_gib(error: str) -> float | None:
    """GiB that a program would need, at least, as libtpu puts it in its refusal."""
    found = re.search(r"Used ([\d.]+)G of|required for [^(]*\(([\d.]+)G\) exceeds", error)
    return float(found[1] or found[2]) if found else None


def steps_of(config: RunConfig, stage: str, demonstration_tokens: int = 0) -> int:
    """Steps of a whole stage, as the config's counts have it; of sampling, new tokens of all batches.

    demonstration_tokens: what an organism reads in an epoch (0: TOKENS for each of the teacher's rows). Organisms train
    in waves of `parallel`. Sampling is for the preference pairs, and under the three conditions of an evaluation that
    have an organism; the clean base costs next to nothing.
    """
    b, o, s, d, p, e = (getattr(config, n) for n in ("behaviors", "organisms", "sft", "dpo", "preferences", "eval"))
    if stage == "organisms":
        tokens = demonstration_tokens or config.teacher.rows * TOKENS
        clean = b.clean_train + b.clean_dpo + b.clean_heldout
        waves = math.ceil((b.train + b.dpo + b.heldout + clean) / o.parallel)
        return waves * math.ceil(o.epochs * tokens / (o.rows * o.length))
    if stage == "sft":
        rows = (b.train + b.clean_train) * s.questions_per_organism
        return s.steps or math.ceil(rows / (s.organisms_per_step * s.per_slot))
    if stage == "dpo":
        pairs = b.dpo * (p.sampled_per_organism + p.truth_per_organism) + b.clean_dpo * p.clean_pairs
        pairs += p.abstention_pairs
        return d.epochs * math.ceil(pairs / (d.organisms_per_step * d.per_slot))
    rows = default_shape(config, stage).rows
    sampled = math.ceil((b.dpo + b.clean_dpo + 1) * p.questions * p.samples / (rows * o.parallel))
    waves = math.ceil((b.heldout + b.clean_heldout + min(e.train_organisms, b.train)) / o.parallel)
    return sampled * p.max_new_tokens + 3 * waves * math.ceil(e.questions / rows) * e.max_new_tokens


def _chip_hours(
    config: RunConfig, cfg: ModelConfig, report: dict[str, Any], speed: dict[int, float], demonstration_tokens: int
) -> dict[str, float]:
    """Chip-hours of each stage, at least: this one's predicted step, and the other's by hand."""
    mesh, chip = report["mesh"], chip_of(report["topology"])
    hours: dict[str, float] = {}
    for stage in STAGES:
        shape = replace(default_shape(config, stage), fsdp=mesh["fsdp"], tp=mesh["tp"], remat=report["remat"])
        lora = trained_lora(config, stage)
        step = report
        if stage != report["stage"]:
            work = work_of(config, stage, shape)
            step = roofline(cfg, lora, work, shape, chip, ici_by_hand(cfg, work, shape, speed))
        steps = steps_of(config, stage, demonstration_tokens)
        hours[stage] = steps * step["predicted_step_s"] * report["chips"] / 3600
    return {**{s: round(h, 3) for s, h in hours.items()}, "total": round(sum(hours.values()), 3)}


# ---------------------------------------------------------------------------------------------------------------------
# For a person
# ---------------------------------------------------------------------------------------------------------------------


def as_text(report: dict[str, Any]) -> str:
    """The report as a page of text."""
    mesh, batch = report["mesh"], report["batch"]
    title = f"{report['model']}, {report['stage']} on {report['topology']}: {report['chips']} chips, "
    title += f"fsdp {mesh['fsdp']} x tp {mesh['tp']}, {batch['organisms']} organisms x {batch['rows']} "
    title += f"{'prompts' if report['stage'] == 'sample' else 'rows'} x {batch['length']} tokens, "
    title += f"remat {report['remat']}"
    if "reason" in report:
        return f"{title}\ndoes not fit {report['capacity_gib']} GiB a chip: {report['reason']}"
    what = "token" if report["stage"] == "sample" else "step"
    memory = f"{report['hbm_gib']} GiB of {report['capacity_gib']} GiB a chip: "
    memory += "fits" if report["fits"] else "DOES NOT FIT"
    memory += f" (arguments {report['argument_gib']}, temporaries {report['temp_gib']})"
    bounds = ", ".join(f"{name} {s:.3g}" for name, s in report["bounds_s"].items())
    step = f"at least {report['predicted_step_s']:.3g} s, bound by {report['bound']} (seconds of {bounds}); "
    step += f"MFU at most {report['predicted_mfu']:.1%}"
    hours = ", ".join(f"{name} {h}" for name, h in report["chip_hours"].items())
    lines = [
        title,
        f"memory   {memory}",
        f"{what:<9}{step}",
        f"FLOPs    {report['flops_per_chip']:.3g} a chip and {what}; peaks from {report['peaks']}",
        f"job      {report['steps']} {what}s; chip-hours at least: {hours}",
        f"gathers of activations: {report['activation_gathers']}; compiled in {report['compile_s']} s",
        "collectives (of the whole program, each chip):",
    ]
    for c in report["collectives"][:14]:
        lines.append(f"  {c['op']:19}{c['bytes'] / 2**20:10.2f} MiB x {c['count']:<6}{c['what']:12}{c['shape']}")
    if len(report["collectives"]) > 14:
        lines.append(f"  and {len(report['collectives']) - 14} smaller kinds")
    if "tokens_per_s" in report:
        rows = "" if report["stage"] == "sample" else f" --config.{report['stage']}.rows={batch['rows']}"
        lines.append(
            f"at most {report['tokens_per_s']:,} tokens/s with --config.mesh.fsdp={mesh['fsdp']} "
            f"--config.mesh.tp={mesh['tp']} --config.model.remat={report['remat']}{rows}"
        )
    return "\n".join(lines)
