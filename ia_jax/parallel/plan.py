"""`ia-jax plan`: compiles the true step of a stage for a TPU slice that nobody here has, and says what it would cost.

The jitted functions that the stages call are lowered with shapes and shardings in place of arrays, and compiled by the
libtpu that `jax[tpu]` brings, on a machine without a TPU. Memory is the compiler's own account; collectives are read
from the program; FLOPs are counted by hand (`chips.step_flops`); the step time is a roofline, so a lower bound.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ia_jax.adapters.lora import LoraConfig, adapter_shardings, leaf_axes, lora_shapes
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.config import ModelConfig
from ia_jax.models.known import architecture
from ia_jax.models.sampling import PROMPT_BUCKET, decode
from ia_jax.models.transformer import WeightSpec, abstract_params, weight_specs
from ia_jax.parallel.chips import GIB, Chip, Work, chip_of, step_flops, step_hbm_bytes
from ia_jax.parallel.hlo import Collective, collectives
from ia_jax.parallel.mesh import RULES, make_mesh
from ia_jax.training import introspection, organisms
from ia_jax.training.losses import Batch

STAGES = ("organisms", "sft", "dpo", "sample")
SMALL = 4096  # elements: below this a gather is counters and norms, whatever its shape


@dataclass(frozen=True)
class Shape:
    """What a plan compiles: the mesh, the stage's rows and the remat policy."""

    fsdp: int
    tp: int
    rows: int
    remat: str


def plan(
    config: RunConfig, topology: str, stage: str, shape: Shape | None = None, demonstration_tokens: int = 2**18
) -> dict[str, Any]:
    """The report of one compilation, with the keys of `ia-jax plan --json`.

    Raises ConfigError where the topology, the mesh or the stage does not exist, IAError where libtpu is not installed.
    A program that does not fit the chips is reported (`fits` false, and what the compiler said), not raised.
    """
    if stage not in STAGES:
        raise ConfigError(f"--stage {stage} unknown; choose from {', '.join(STAGES)}")
    chip, devices = chip_of(topology), _devices(topology)
    cfg = architecture(config.model.name)
    shape = shape or Shape(config.mesh.fsdp, config.mesh.tp, _rows(config, stage), config.model.remat)
    if shape.fsdp * shape.tp != len(devices):
        raise ConfigError(
            f"mesh fsdp={shape.fsdp} x tp={shape.tp} is {shape.fsdp * shape.tp} chips, {topology} has {len(devices)}; "
            f"set --config.mesh.fsdp={len(devices) // shape.tp}"
        )
    mesh = make_mesh(shape.fsdp, shape.tp, devices)
    work = _work(config, stage, shape)
    lora = (config.organisms if stage == "organisms" else config.sft).lora.lora()
    report: dict[str, Any] = {
        "topology": topology,
        "chips": len(devices),
        "stage": stage,
        "model": config.model.name,
        "mesh": {"fsdp": shape.fsdp, "tp": shape.tp},
        "batch": {"organisms": work.organisms, "rows": work.rows, "length": work.length},
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
            return report | {"fits": False, "capacity_gib": chip.capacity / GIB, "reason": _first_line(error)}
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
    report |= _roofline(cfg, lora, work, shape, chip, found, config.eval.max_new_tokens if stage == "sample" else 1)
    steps = _steps(config, stage, demonstration_tokens)
    report |= {"steps": steps, "chip_hours": _chip_hours(config, cfg, report, demonstration_tokens)}
    return report | {"peaks": f"{chip.source} (bf16 {chip.flops / 1e12:.0f} TFLOP/s)", "compile_s": round(seconds, 1)}


def search(
    config: RunConfig, topology: str, stage: str, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Plans of the mesh shapes, rows and remat policies that could be best, best first: those that fit, by tokens/s.

    What the roofline says of a shape before compiling bounds what it can reach, so shapes are compiled in that order,
    and the search stops when none left can beat the best that fits.
    """
    chip, chips = chip_of(topology), len(_devices(topology))
    cfg, lora = architecture(config.model.name), config.sft.lora.lora()
    rows = _rows(config, stage)
    candidates: list[tuple[float, Shape]] = []
    for tp, r, remat in itertools.product((1, 2, 4, 8, 16), (rows, 2 * rows, 4 * rows), ("full", "dots", "none")):
        shape = Shape(chips // tp, tp, r, remat)
        if chips % tp or cfg.num_key_value_heads % tp or _organisms(config, stage) % shape.fsdp:
            continue
        work = _work(config, stage, shape)
        ideal = _roofline(cfg, lora, work, shape, chip, [], 1)["predicted_step_s"]
        candidates.append((work.tokens / ideal, shape))
    if not candidates:
        raise ConfigError(
            f"no mesh of {chips} chips divides {_organisms(config, stage)} organisms and "
            f"{cfg.num_key_value_heads} key heads; change the stage's organisms"
        )
    reports: list[dict[str, Any]] = []
    best = 0.0
    for bound, shape in sorted(candidates, key=lambda c: -c[0]):
        if bound <= best:
            break
        report = plan(config, topology, stage, shape)
        speed = _work(config, stage, shape).tokens / report["predicted_step_s"] if report["fits"] else 0.0
        report["tokens_per_s"] = round(speed)
        best = max(best, speed)
        reports.append(report)
        progress(f"{shape}: {report.get('hbm_gib', 'too much')} GiB, {round(speed)} tokens/s")
    return sorted(reports, key=lambda r: (-r["tokens_per_s"], r.get("hbm_gib", math.inf)))


def _devices(topology: str) -> Sequence[Any]:
    # No TPU here, so nothing is to be asked of the cloud about this machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # whatever libtpu raises: its classes are not public
        text = _first_line(error)
        if "libtpu" in text.lower() or isinstance(error, ImportError):
            raise IAError(f"plan needs libtpu, which is not installed; pip install 'ia-jax[tpu]' ({text})") from error
        raise ConfigError(f"--topology {topology} does not exist ({text}); examples: v5e:4x4, v5p:4x4x4") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


# ---------------------------------------------------------------------------------------------------------------------
# The step and its arguments
# ---------------------------------------------------------------------------------------------------------------------


def _organisms(config: RunConfig, stage: str) -> int:
    """Organisms in one step."""
    if stage == "organisms":
        return config.organisms.parallel
    return config.dpo.organisms_per_step if stage == "dpo" else config.sft.organisms_per_step


def _rows(config: RunConfig, stage: str) -> int:
    """Rows of one organism in a step: a pair has two."""
    return {
        "organisms": config.organisms.rows,
        "sft": config.sft.per_slot,
        "dpo": 2 * config.dpo.per_slot,
        "sample": config.preferences.samples,
    }[stage]


def _work(config: RunConfig, stage: str, shape: Shape) -> Work:
    k = _organisms(config, stage)
    if stage == "sample":
        return Work(k, shape.rows, 1, 1, adapters=2, trained=0, remat="none", backward=False)
    length = {"organisms": config.organisms.length, "sft": config.sft.length, "dpo": config.dpo.length}[stage]
    adapters = 1 if stage == "organisms" else 2
    return Work(k, shape.rows, length, shape.rows * length, adapters, trained=1, remat=shape.remat)


def _lower(config: RunConfig, cfg: ModelConfig, stage: str, mesh: Mesh, work: Work) -> Any:
    """The stage's own jitted function, lowered. Every position counts as supervised: the worst case."""
    base = abstract_params(cfg, jnp.dtype(config.model.dtype), mesh)
    k, b, t, p = work.organisms, work.rows, work.length, work.targets

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

    weights = jax.ShapeDtypeStruct((k, p), jnp.float32)
    rows, targets = [integers(k, b, t)] * 3, [integers(k, p), integers(k, p), weights, integers(k, p)]
    batch = placed(Batch(*rows, *targets), organisms=True)
    theirs, ours = config.organisms.lora.lora(), config.sft.lora.lora()
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
        prompt = math.ceil(config.sft.length / PROMPT_BUCKET) * PROMPT_BUCKET
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
    reference = placed(jax.ShapeDtypeStruct((k, b), jnp.float32), organisms=True)
    static |= {"beta": config.dpo.beta, "sft_weight": config.dpo.sft_weight}
    return introspection.dpo_step.lower(base, state, stack, batch, reference, **static)


# ---------------------------------------------------------------------------------------------------------------------
# Reading the program
# ---------------------------------------------------------------------------------------------------------------------


def _names(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh, work: Work) -> Callable[[str, str, tuple[int, ...]], str]:
    """What a collective's array is, by its shape: a base weight or an adapter, whole or a shard; else activations.

    So whatever is not known to be something else counts as activations. Axes of size 1 and their order are ignored.
    Base weights are only ever gathered: they are frozen, so nothing about them is reduced.
    """

    def spellings(shape: Sequence[int], axes: Sequence[str | None]) -> Iterator[tuple[int, ...]]:
        choices = []
        for size, axis in zip(shape, axes, strict=True):
            mesh_axis = RULES[axis] if axis else None
            choices.append({size, size // mesh.shape[mesh_axis]} if mesh_axis else {size})
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

    def what(op: str, dtype: str, shape: tuple[int, ...]) -> str:
        if dtype[0] in "sup":
            return "ids"
        if math.prod(shape) <= SMALL:
            return "scalars"
        dims = tuple(sorted(d for d in shape if d > 1))
        if dims in weights and op in ("all-gather", "collective-permute"):
            return "weights"
        return "adapters" if dims in adapters else "activations"

    return what


def _roofline(
    cfg: ModelConfig,
    lora: LoraConfig,
    work: Work,
    shape: Shape,
    chip: Chip,
    found: Sequence[Collective],
    decode_steps: int,
) -> dict[str, Any]:
    """Lower bounds of a step's time, each as if the other two were free and hidden behind it.

    A collective is taken to use one torus axis in both directions, whichever mesh axis it is on.
    """
    chips = shape.fsdp * shape.tp
    needed, executed = step_flops(cfg, lora, work)
    seconds = {
        "compute": executed / chips / chip.flops,
        "hbm": step_hbm_bytes(cfg, lora, work, shape.fsdp, shape.tp) / chip.hbm,
        "ici": sum(c.wire_bytes for c in found) / decode_steps / chip.axis_bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        "flops_per_chip": executed / chips,
        "predicted_step_s": round(seconds[bound], 4),
        "bound": bound,
        "bounds_s": {name: round(s, 4) for name, s in seconds.items()},
        "predicted_mfu": round(needed / chips / chip.flops / max(seconds.values()), 3),
    }


def _steps(config: RunConfig, stage: str, demonstration_tokens: int) -> int:
    """Updates of a whole stage. Organisms: waves of `parallel`, each over its demonstrations `epochs` times."""
    b, o, s, d = config.behaviors, config.organisms, config.sft, config.dpo
    if stage == "organisms":
        waves = math.ceil((b.train + b.dpo + b.heldout) / o.parallel)
        return waves * o.epochs * math.ceil(demonstration_tokens / (o.rows * o.length))
    if stage == "sft":
        return s.steps or math.ceil(b.train * s.questions_per_organism / (s.organisms_per_step * s.per_slot))
    p = config.preferences
    pairs = b.dpo * (p.sampled_per_organism + p.truth_per_organism) + p.abstention_pairs
    if stage == "dpo":
        return d.epochs * math.ceil(pairs / (d.organisms_per_step * d.per_slot))
    return math.ceil(b.dpo / s.organisms_per_step) * p.questions * p.max_new_tokens


def _chip_hours(
    config: RunConfig, cfg: ModelConfig, report: dict[str, Any], demonstration_tokens: int
) -> dict[str, float]:
    """Chip-hours of each training stage. The stages that were not compiled are taken to run at this one's MFU."""
    hours: dict[str, float] = {}
    chip = chip_of(report["topology"])
    for stage in ("organisms", "sft", "dpo"):
        steps = _steps(config, stage, demonstration_tokens)
        if stage == report["stage"]:
            hours[stage] = steps * report["predicted_step_s"] * report["chips"] / 3600
            continue
        shape = Shape(report["mesh"]["fsdp"], report["mesh"]["tp"], _rows(config, stage), report["remat"])
        lora = (config.organisms if stage == "organisms" else config.sft).lora.lora()
        needed, _ = step_flops(cfg, lora, _work(config, stage, shape))
        hours[stage] = steps * needed / chip.flops / max(report["predicted_mfu"], 1e-9) / 3600
    return {**{s: round(h, 2) for s, h in hours.items()}, "total": round(sum(hours.values()), 2)}


# ---------------------------------------------------------------------------------------------------------------------
# For a person
# ---------------------------------------------------------------------------------------------------------------------


def as_text(report: dict[str, Any]) -> str:
    """The report as a page of text."""
    mesh, batch = report["mesh"], report["batch"]
    title = f"{report['model']}, {report['stage']} on {report['topology']}: {report['chips']} chips, "
    title += f"fsdp {mesh['fsdp']} x tp {mesh['tp']}, {batch['organisms']} organisms x {batch['rows']} rows x "
    title += f"{batch['length']} tokens, remat {report['remat']}"
    if "hbm_gib" not in report:
        return f"{title}\ndoes not fit {report['capacity_gib']:.2f} GiB: {report['reason']}"
    memory = f"{report['hbm_gib']} GiB of {report['capacity_gib']} GiB a chip: "
    memory += "fits" if report["fits"] else "DOES NOT FIT"
    memory += f" (arguments {report['argument_gib']}, temporaries {report['temp_gib']})"
    bounds = ", ".join(f"{name} {s:.3f} s" for name, s in report["bounds_s"].items())
    step = f"at least {report['predicted_step_s']} s, bound by {report['bound']} ({bounds}); "
    step += f"MFU at most {report['predicted_mfu']:.1%}"
    hours = ", ".join(f"{name} {h}" for name, h in report["chip_hours"].items())
    lines = [
        title,
        f"memory   {memory}",
        f"step     {step}",
        f"FLOPs    {report['flops_per_chip']:.3g} a chip and step; peaks from {report['peaks']}",
        f"job      {report['steps']} steps; chip-hours at least: {hours}",
        f"gathers of activations: {report['activation_gathers']}; compiled in {report['compile_s']} s",
        "collectives (per step and chip):",
    ]
    for c in report["collectives"][:14]:
        lines.append(f"  {c['op']:19}{c['bytes'] / 2**20:10.2f} MiB x {c['count']:<6}{c['what']:12}{c['shape']}")
    if len(report["collectives"]) > 14:
        lines.append(f"  and {len(report['collectives']) - 14} smaller kinds")
    return "\n".join(lines)
