"""`ia-jax plan`: compiles the true step of a stage for a TPU slice that nobody here has, and says what it would cost.

The jitted functions that the stages call are lowered with shapes and shardings in place of arrays, for the batches that
the stage's own plan has, and compiled by the libtpu that `jax[tpu]` brings, on a machine without a TPU. Memory is the
compiler's own account; collectives are read from the program; FLOPs are counted by hand (`chips.step_flops`); the step
time is a roofline, so a lower bound. `plan_by_hand` compiles nothing: for GPUs, and where seconds matter.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp

from ia_jax.config import RunConfig, with_dtype
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.config import ModelConfig
from ia_jax.models.known import architecture
from ia_jax.models.number_type import BF16
from ia_jax.models.ring import MOST_STEPS
from ia_jax.models.transformer import abstract_params
from ia_jax.parallel.mesh import DECODING, make_mesh
from ia_jax.planning.batches import Batches
from ia_jax.planning.carried import namer
from ia_jax.planning.chips import GIB
from ia_jax.planning.hlo import SLICES, collectives
from ia_jax.planning.hours import memory_by_hand, stage_chip_hours, step_by_hand
from ia_jax.planning.roofline import Layout, bandwidths, dcn_by_hand, ici_by_hand, roofline
from ia_jax.planning.steps import STAGES, argument_gib, bank_gib, lower, sampling_rules, trained_lora, work_of
from ia_jax.planning.topology import Topology, topology_of

# What a stage of a config reads. Raises ConfigError for a stage that the config does not have.
Data = Callable[[RunConfig, str], Batches]
SHARE_FOR_BANK = 0.5  # of what the base leaves free, unless `organisms.bank_gib` says otherwise (as adapters.bank does)


def plan(config: RunConfig, topology: str, stage: str, data: Data) -> dict[str, Any]:
    """The report of one compilation, with the keys of `ia-jax plan --json`. data: what the stages read.

    Raises ConfigError where the topology, the mesh or the stage does not exist, IAError where libtpu is not installed.
    A program that does not fit the chips is reported (`fits` false, and what the compiler said), not raised.
    """
    where = _where(topology, stage)
    config = with_dtype(config, BF16)  # "auto" on a TPU
    chip, devices = where.chip, devices_of(where)
    cfg, layout = architecture(config.model.name, config.model.quantization), layout_of(config)
    _check_size(layout, topology, len(devices))
    mesh = make_mesh(layout.fsdp, layout.tp, layout.dcn, layout.rows, devices=devices)
    batches = data(config, stage)
    work, lora = work_of(config, stage, batches), trained_lora(config, stage)
    needed = bank_gib(config, cfg, batches, mesh) if batches.bank else 0.0
    budget = config.organisms.bank_gib or SHARE_FOR_BANK * (chip.capacity - _base_bytes(cfg, layout)) / GIB
    report = _heading(config, where, stage, batches) | {"bank": _bank_in_words(batches.bank, needed, budget)}
    start = time.monotonic()
    resident = needed <= budget
    rules, beside = DECODING, 0.0
    if stage == "sample":
        stays = argument_gib(config, cfg, stage, mesh, batches) - (0 if resident else needed)
        rules = sampling_rules(config, cfg, mesh, chip.capacity - stays * GIB)
        if rules == DECODING and layout.shards > 1:
            beside = _base_bytes(cfg, layout)  # as it was loaded: what is sampled from is a copy
    with jax.set_mesh(mesh):
        lowered = lower(config, cfg, stage, mesh, batches, resident, rules)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used = needed_gib(str(error))
            report |= {"fits": False, "hbm_gib": used and round(used + beside / GIB, 2)}
            return report | {"capacity_gib": round(chip.capacity / GIB, 2), "reason": _first_line(error)}
    seconds = time.monotonic() - start
    found = collectives(compiled.as_text(), namer(cfg, lora, mesh, work), unknown_trips=MOST_STEPS)
    report |= _memory(compiled, chip.capacity, beside)
    report |= {
        "collectives": [asdict(c) for c in found],
        "activation_gathers": sum(c.count for c in found if c.op == "all-gather" and c.what == "activations"),
    }
    speed = bandwidths(mesh.devices, chip)
    ici_s = sum(c.wire_bytes / speed.get(c.group, chip.link) for c in found if c.op != SLICES)
    dcn_s = sum(c.wire_bytes / chip.dcn for c in found if c.op == SLICES)
    if stage == "sample":  # of one new token, as everything else
        ici_s, dcn_s = ici_s / MOST_STEPS, dcn_s / MOST_STEPS
    report |= roofline(cfg, lora, work, layout, chip, ici_s, dcn_s)
    report |= {"steps": batches.steps, "chip_hours": _chip_hours(config, cfg, report, layout, speed, data)}
    return report | {"peaks": _peaks(where), "compile_s": round(seconds, 1)}


def plan_by_hand(config: RunConfig, topology: str, stage: str, data: Data) -> dict[str, Any]:
    """As `plan`, from docs/plan.md's formulas alone: without a compiler (`compile_s` is missing), so for GPUs too.

    Of memory it has what stays there, and so knows only what does not fit; of collectives what the formulas have.
    """
    where = _where(topology, stage)
    config = with_dtype(config, BF16)
    batches = data(config, stage)
    report = _heading(config, where, stage, batches)
    report |= step_by_hand(config, where, stage, batches) | memory_by_hand(config, where, stage, batches)
    hours = {}
    for other in STAGES:
        try:
            hours[other] = stage_chip_hours(config, topology, other, data(config, other))
        except ConfigError:  # a run without DPO, say
            continue
    return report | {"steps": batches.steps, "chip_hours": _rounded(hours), "peaks": _peaks(where)}


def _where(topology: str, stage: str) -> Topology:
    if stage not in STAGES:
        raise ConfigError(f"--stage {stage} unknown; choose from {', '.join(STAGES)}")
    return topology_of(topology)


def _heading(config: RunConfig, where: Topology, stage: str, batches: Batches) -> dict[str, Any]:
    work = work_of(config, stage, batches)
    return {
        "topology": where.name,
        "chips": where.chips,
        "stage": stage,
        "model": config.model.name,
        "mesh": {a: n for a, n in asdict(layout_of(config)).items() if n > 1 or a in ("fsdp", "tp")},
        "batch": {"organisms": work.organisms, "rows": work.rows, "length": batches.length, "targets": work.targets},
        "fill": round(batches.fill, 4),
        "data": batches.source,
        "remat": work.remat,
    }


def _peaks(where: Topology) -> str:
    each = "" if where.chip.cores == 1 else f" for each of a chip's {where.chip.cores} devices"
    return f"{where.chip.source} (bf16 {where.chip.flops / 1e12:.0f} TFLOP/s{each})"


def _rounded(hours: dict[str, float]) -> dict[str, float]:
    return {**{s: round(h, 3) for s, h in hours.items()}, "total": round(sum(hours.values()), 3)}


def layout_of(config: RunConfig) -> Layout:
    return Layout(**asdict(config.mesh))


def _check_size(layout: Layout, topology: str, devices: int) -> None:
    if layout.chips != devices:
        shape = " x ".join(f"{a}={n}" for a, n in asdict(layout).items() if n > 1 or a in ("fsdp", "tp"))
        raise ConfigError(
            f"mesh {shape} is {layout.chips} chips, {topology} has {devices}; set --config.mesh.fsdp="
            f"{max(1, devices * layout.fsdp // layout.chips)} and as many organisms a step as groups of chips"
        )


def devices_of(topology: str | Topology) -> Sequence[Any]:
    """The devices of slices that are not there. Raises as `plan` does."""
    where = topology_of(topology) if isinstance(topology, str) else topology
    if not where.chip.libtpu:
        raise ConfigError(f"{where.name} is no TPU, so there is no compiler for it here; ask without --search")
    # libtpu is to ask the cloud nothing about this machine and print nothing about it; and plans may run side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise IAError("plan needs libtpu, which is not installed; pip install 'ia-jax[tpu]'")
    try:
        several = {"num_slices": where.slices} if where.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=where.of_libtpu, **several).devices
    except jax.errors.JaxRuntimeError as error:
        text = _first_line(error)
        if "libtpu" in text:
            raise IAError(f"libtpu does not start: {text}") from error
        raise ConfigError(f"--topology {where.name} does not exist ({text}); examples: v5e:4x4, v5p:4x4x4") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


def _base_bytes(cfg: ModelConfig, layout: Layout) -> float:
    """Of the base in bf16, projections maybe in int8, of one chip; norms and biases are nothing beside it."""
    weights = jax.tree.leaves(abstract_params(cfg, "bfloat16"))
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in weights) / (layout.shards * layout.tp)


def _bank_in_words(organisms: int, needed: float, budget: float) -> str:
    if not organisms:
        return "no frozen organisms"
    where = "resident" if needed <= budget else "streamed from the host"
    return f"{organisms} frozen organisms, {needed:.2f} GiB of each chip ({where}: up to {budget:.2f})"


def _memory(compiled: Any, capacity: float, beside: float) -> dict[str, Any]:
    """beside: bytes of what stays there and is no argument."""
    memory = compiled.memory_analysis()
    argument = memory.argument_size_in_bytes + beside
    # Outputs that are not donated arguments, and the program itself, lie in HBM too.
    temp = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temp += memory.generated_code_size_in_bytes
    return {
        "fits": argument + temp <= capacity,
        "hbm_gib": round((argument + temp) / GIB, 2),
        "capacity_gib": round(capacity / GIB, 2),
        "argument_gib": round(argument / GIB, 2),
        "temp_gib": round(temp / GIB, 2),
    }


def needed_gib(error: str) -> float | None:
    """GiB that a program would need, at least, as libtpu puts it in its refusal."""
    found = re.search(r"Used ([\d.]+)G of|required for [^(]*\(([\d.]+)G\) exceeds", error)
    return float(found[1] or found[2]) if found else None


def _chip_hours(
    config: RunConfig,
    cfg: ModelConfig,
    report: dict[str, Any],
    layout: Layout,
    speed: dict[int, float],
    data: Data,
) -> dict[str, float]:
    """Chip-hours of each stage, at least: this one's predicted step, and the others' by hand."""
    where = topology_of(report["topology"])
    hours: dict[str, float] = {}
    for stage in STAGES:
        try:
            batches = data(config, stage)
        except ConfigError:  # a run without DPO, say
            continue
        step = report
        if stage != report["stage"]:
            work = work_of(config, stage, batches)
            ici_s = ici_by_hand(cfg, work, layout, speed)
            lora = trained_lora(config, stage)
            dcn_s = dcn_by_hand(cfg, lora, work, layout, where.chip, where.slices)
            step = roofline(cfg, lora, work, layout, where.chip, ici_s, dcn_s)
        hours[stage] = batches.steps * step["predicted_step_s"] * where.chips / 3600
    return _rounded(hours)
