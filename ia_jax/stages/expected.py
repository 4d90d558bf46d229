"""How long a run's stages take on this CPU, about, before they begin: for `ia-jax doctor` and a run's first lines.

The work is counted (FLOPs of the real tokens of the stages' own plans, `stages.planned`; tokens to be sampled), the
rate of matrix products is measured here, and three constants turn one into the other. They are fitted to what was
timed on two cores with SmolLM2 (docs/benchmark.md, docs/demo.md and two AVX2 cores, named below), so other bases and
accelerators have no estimate.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ia_jax.config import RunConfig
from ia_jax.models.config import ModelConfig
from ia_jax.models.known import architecture
from ia_jax.models.lora import LoraConfig
from ia_jax.models.sources import EMBEDDED
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import layer_parameters, training_flops
from ia_jax.planning.steps import trained_lora
from ia_jax.progress import duration
from ia_jax.stages.behavior_check import TOKENS
from ia_jax.stages.planned import Planned
from ia_jax.workdir import Workdir

STAGES = ("transcripts", "organisms", "sft", "preferences", "dpo", "eval")

# What a training step does besides its products (elementwise passes, saving residuals, thin products) takes as long as
# products at this rate would, whatever their number type: FLOP/s of one core. Of eight timings (organisms and joint
# steps; bf16 at 504 and 883 GFLOP/s, in docs/benchmark.md; two AVX2 cores, fp32 at 145 and bf16 at 110) none is further
# away than `SPAN` says.
BESIDE_PRODUCTS = 100e9
# Of the rate of products, what sampling reaches: 0.11 to 0.18 in docs/benchmark.md (64 rows) and on two AVX2 cores.
SAMPLING_SHARE = 0.125
# Of a stage that computes: loading the base, compiling, storing. A guess, as it was never measured alone.
STARTING = 25.0
WRITING = 8.0  # of the transcripts stage, which is made of answers that ship with the package and computes nothing
SPAN = (0.75, 1.5)  # the true time over the estimate


class Expected(NamedTuple):
    """Seconds by stage, or why they are not known."""

    seconds: dict[str, float]
    unknown: str = ""

    @property
    def range(self) -> tuple[float, float]:
        """Seconds of all these stages together, at least and at most."""
        total = sum(self.seconds.values())
        return SPAN[0] * total, SPAN[1] * total


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy(count: int, load: Callable[[], tuple[float, float, float]] = os.getloadavg) -> str:
    """What other work on these cores does to a measurement, in words; "" where there is little of it, or no telling."""
    try:
        now = load()[0]  # processes that want to run, in the mean of the last minute
    except OSError:
        return ""
    if now < 0.6 * count:
        return ""
    return f"other work is on this machine (load {now:.1f} on {count} cores): it is faster alone"


def not_known(config: RunConfig, platform: str) -> str:
    """Why there is no estimate for this config on this platform; "" where there is one."""
    if platform != "cpu":
        return f"nothing was timed on a {platform.upper()} yet"
    if config.model.name != EMBEDDED:
        return f"only runs on {EMBEDDED} were timed"
    if config.teacher.name != "template" or config.judge.name == "claude":
        return "it depends on how fast Claude, or a teacher of your own, answers"
    return ""


def expected(
    config: RunConfig,
    workdir: Workdir | None,
    platform: str,
    rate: Callable[[], float],
    count: int,
    left: Collection[str] = STAGES,
) -> Expected:
    """Seconds of the stages that are left. rate: measures FLOP/s of products in the config's number type; it, and
    counting, which takes some seconds, are only done where there is an estimate. count: of cores.
    """
    why = not_known(config, platform)
    if why:
        return Expected({}, why)
    plan = Planned(config, workdir, branches=True)  # on CPUs, which alone have an estimate
    try:
        batches = {s: plan.batches(s) for s in ("organisms", "sft", "dpo") if s in left}
    except Exception as error:  # no run ends for want of an estimate; whatever is wrong, the stage itself says so
        return Expected({}, f"what there is to do cannot be counted ({' '.join(str(error).split())})")
    seconds = stage_seconds(config, architecture(config.model.name), batches, rate(), count)
    return Expected({s: seconds[s] for s in STAGES if s in left})


def stage_seconds(
    config: RunConfig, cfg: ModelConfig, batches: Mapping[str, Batches], rate: float, count: int
) -> dict[str, float]:
    """Seconds of every stage; of training, for the stages that `batches` has."""
    sampled = {s: n * _flops_of_new(cfg) / (SAMPLING_SHARE * rate) for s, n in sampled_tokens(config).items()}
    trained = {s: training_seconds(step_work(config, cfg, s, b), rate, count) for s, b in batches.items()}
    computed = {s: STARTING + sampled.get(s, 0.0) + trained.get(s, 0.0) for s in STAGES}
    return computed | {"transcripts": WRITING}


def training_seconds(flops: float, rate: float, count: int) -> float:
    """Of `flops` that training needs, with products at `rate` FLOP/s on `count` cores."""
    return flops / rate + flops / (BESIDE_PRODUCTS * count)


def step_work(config: RunConfig, cfg: ModelConfig, stage: str, batches: Batches) -> float:
    """FLOPs that all steps of a stage need for their real tokens."""
    lora = trained_lora(config, stage)
    below: list[LoraConfig] = [] if stage == "organisms" else [config.organisms.loras()[-1]]
    each = training_flops(cfg, batches.length, [*below, lora], [lora])
    flops = batches.tokens * each["tokens"] + batches.supervised * each["supervised_tokens"]
    return flops * (1.5 if stage == "dpo" else 1.0)  # the reference goes forward once: half of forward and back


def sampled_tokens(config: RunConfig) -> dict[str, float]:
    """New tokens that each stage samples at most: as if no reply ended early."""
    b, p, e, own = config.behaviors, config.preferences, config.eval, config.organisms
    clean, held = b.clean_train + b.clean_dpo + b.clean_heldout, b.organisms["heldout"] + b.organisms["remade"]
    trained = 0 if own.source else sum(b.organisms.values()) + clean
    asked = held + b.clean_heldout + min(e.train_organisms, b.organisms["train"])
    refined = b.organisms["dpo"]
    under = 3 if refined else 2  # alone, after SFT, after DPO
    baselines = held * (32 * e.plain_prompts + e.questions * e.max_new_tokens) if e.plain_prompts else 0
    return {
        "organisms": trained * 2 * own.check_prompts * TOKENS,  # of two sorts: where it should show, and where not
        "preferences": (refined + b.clean_dpo + 1) * p.questions * p.samples * p.max_new_tokens if refined else 0,
        "eval": under * asked * e.questions * e.samples * e.max_new_tokens + baselines,
    }


def _flops_of_new(cfg: ModelConfig) -> float:
    """Of one new token: the base's matrices and the vocabulary."""
    return 2.0 * (cfg.num_hidden_layers * layer_parameters(cfg) + cfg.vocab_size * cfg.hidden_size)


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def in_words(found: Expected) -> str:
    """The time, as in "about 20 to 45 min"; or that it is not known, and why."""
    if found.unknown:
        return f"not known: {found.unknown}"
    low, high = found.range
    if high < 90:
        return "about a minute"
    if high < 3 * 3600:
        return f"about {low / 60:.0f} to {high / 60:.0f} min"
    return f"about {duration(low)} to {duration(high)}"


def by_stage(found: Expected) -> str:
    """As in "organisms 14, sft 6 min", without stages of less than a minute."""
    return ", ".join(f"{s} {x / 60:.0f}" for s, x in found.seconds.items() if x >= 60) + " min"


def opening(config: RunConfig, place: str, left: Sequence[str], done: Sequence[str]) -> str:
    """The first lines of a run: what will happen, and in what. left, done: names of stages."""
    b = config.behaviors
    behaving, clean = sum(b.organisms.values()), b.clean_train + b.clean_dpo + b.clean_heldout
    also = f" and {clean} clean ones" if clean else ""
    pairs = b.organisms["dpo"]
    refined = f", is refined on {pairs + b.clean_dpo} (DPO)" if pairs else ""
    if config.organisms.source:
        what = f"the organisms of {config.organisms.source} are taken; the IA learns from those for training{refined}"
        asked = "that are held out"
    else:
        what = f"{behaving} organisms with a behaviour{also} are trained; the IA learns from "
        what += f"{b.organisms['train'] + b.clean_train}{refined}"
        asked = f"{b.organisms['heldout'] + b.organisms['remade'] + b.clean_heldout} that it never saw"
    lines = [
        f"{place}: {config.model.name} in {config.model.dtype}, judged by {config.judge.name}",
        f"  {what}, and is asked about {asked}",
    ]
    lines += [f"  already done: {', '.join(done)}; left: {', '.join(left)}"] if done else []
    return "\n".join(lines)


def time_here(found: Expected, beside: str = "") -> str:
    """The line after it: how long that takes here, and what if it is stopped. beside: as `busy` says."""
    estimate = "" if found.unknown else f" (an estimate, `ia-jax doctor` says how{f'; {beside}' if beside else ''})"
    return f"  time here: {in_words(found)}{estimate}; stopped by whatever means, the same command goes on"


def how(rate: float, count: int) -> str:
    """How an estimate was made."""
    return (
        f"products at the {rate / 1e9:,.0f} GFLOP/s measured, the real tokens of the run's plans, and what else a step "
        f"takes, fitted to timings on two cores (docs/benchmark.md) that took {SPAN[0]:g} to {SPAN[1]:g} times as "
        f"long; {count} cores here"
    )


def as_json(found: Expected) -> dict[str, Any]:
    """As JSON."""
    low, high = found.range
    known = {"seconds": [round(low), round(high)], "by_stage": {s: round(x) for s, x in found.seconds.items()}}
    return {"unknown": found.unknown} if found.unknown else known
