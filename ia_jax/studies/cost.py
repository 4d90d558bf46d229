"""What a study would run, and what that would cost: for `ia-jax study --dry-run`. Nothing is written."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.planning.batches import Batches
from ia_jax.planning.hours import stage_chip_hours
from ia_jax.planning.prices import amount, price_of
from ia_jax.planning.topology import topology_of
from ia_jax.progress import duration
from ia_jax.stages.expected import SPAN, not_known, stage_seconds
from ia_jax.stages.planned import planned
from ia_jax.studies.layout import Run
from ia_jax.studies.running import ORGANISMS, Job, jobs_of
from ia_jax.studies.study import Study

Count = Callable[[RunConfig, str], Batches]
TRAINED = ("organisms", "sft", "dpo")
# Of `ia-jax plan`'s stages those that a stage's time is made of: pairs and reports are sampled.
PLANNED = {"organisms": "organisms", "sft": "sft", "dpo": "dpo", "eval": "sample"}


@dataclass(frozen=True)
class Cost:
    """A job that is left, and what it takes at least: seconds here, or chip-hours (with what those cost at list prices,
    where that is known); or why neither is known.
    """

    job: Job
    left: tuple[str, ...]
    seconds: float | None = None
    chip_hours: float | None = None
    dollars: float | None = None
    unknown: str = ""


class Machine:
    """Where seconds are estimated for. rate: FLOP/s of products in a number type; cores: of the CPU."""

    def __init__(self, platform: str, rate: Callable[[str], float], cores: int) -> None:
        self.platform, self.cores, self._measure = platform, cores, rate
        self._rates: dict[str, float] = {}

    def rate(self, dtype: str) -> float:
        if dtype not in self._rates:
            self._rates[dtype] = self._measure(dtype)
        return self._rates[dtype]


def costs(runs: Sequence[Run], study: Study, machine: Machine, count: Count | None = None) -> list[Cost]:
    """What is left of these runs, in order, each directory's stages once.

    Tokens are counted once for all seeds of an arm, and sampling for pairs with that for reports. count: `planned` of
    each topology's memory, if it is not given.
    """

    @functools.cache
    def counting(topology: str) -> Count:
        return count or planned(memory=topology_of(topology).memory if topology else 0)

    out: list[Cost] = []
    counted: set[tuple[str, str]] = set()
    for run in runs:
        for job in jobs_of(run):
            new = tuple(s for s in job.left if (str(job.place.path), _name(job, s)) not in counted)
            counted |= {(str(job.place.path), _name(job, s)) for s in new}
            if any(s != "report" for s in new):
                config = replace(job.place.config, seed=study.base.seed)  # what it costs does not hang on it
                out.append(_cost(job, new, config, run.arm.topology, machine, counting))
    return out


def _name(job: Job, stage: str) -> str:
    """What a stage makes in its directory: evaluations and second IAs have names."""
    config = job.place.config
    return stage + {
        "preferences": config.preferences.name,
        "dpo": config.dpo.name,
        "eval": config.eval.name,
        "report": config.eval.name,
    }.get(stage, "")


def _cost(
    job: Job,
    left: tuple[str, ...],
    config: RunConfig,
    topology: str,
    machine: Machine,
    counting: Callable[[str], Count],
) -> Cost:
    here = not topology
    why = not_known(config, machine.platform) if here else ""
    if why:
        return Cost(job, left, unknown=why)
    taken = bool(config.organisms.source)  # they are not trained in this directory
    work = [s for s in left if s in PLANNED and not (taken and s == "organisms")]
    try:
        count = counting(topology)
        if not here:
            asked = config if "preferences" in left else _without_pairs(config)
            read = {s: count(asked if s == "sample" else config, s) for s in (PLANNED[x] for x in work)}
            hours = sum(stage_chip_hours(config, topology, s, b) for s, b in read.items())
            return Cost(job, left, chip_hours=hours, dollars=_dollars(topology, hours))
        batches = {s: count(config, s) for s in work if s in TRAINED}
        rate = machine.rate(config.model.dtype)
        seconds = stage_seconds(config, architecture(config.model.name), batches, rate, machine.cores)
    except Exception as error:  # no dry run ends for want of an estimate; a stage itself says what is wrong
        return Cost(job, left, unknown=f"what there is to do cannot be counted ({' '.join(str(error).split())})")
    small = ORGANISMS if taken else ()
    return Cost(job, left, seconds=sum(x for s, x in seconds.items() if s in left and s not in small))


def _dollars(topology: str, hours: float) -> float | None:
    try:
        return hours * price_of(topology_of(topology).chip.name).dollars
    except ConfigError:
        return None


def _without_pairs(config: RunConfig) -> RunConfig:
    """Where no reports are sampled for pairs."""
    return replace(config, preferences=replace(config.preferences, questions=0))


# ---------------------------------------------------------------------------------------------------------------------
# In words
# ---------------------------------------------------------------------------------------------------------------------


def as_text(study: Study, runs: Sequence[Run], found: Sequence[Cost]) -> str:
    """A line for each directory with work left, then the sum."""
    done = sum(not jobs_of(run)[-1].left for run in runs)
    lines = [
        f"study {study.name}: {study.section.title}" if study.section.title else f"study {study.name}",
        f"{len({r.arm.name for r in runs})} arms, {len(runs)} runs, of which {done} are finished",
    ]
    lines += [f"  {c.job.title:<36} {', '.join(_shown(c))}: {_amount(c)}" for c in found]
    return "\n".join([*lines, total(found)])


def _shown(cost: Cost) -> list[str]:
    """The stages that take any time: organisms of another directory are only named."""
    taken = ORGANISMS if cost.job.place.config.organisms.source else ()
    return [s for s in cost.left if s not in (*taken, "report")]


def total(found: Sequence[Cost]) -> str:
    """All of it in a line."""
    if not found:
        return "nothing is left to run"
    parts = []
    seconds = [c.seconds for c in found if c.seconds is not None]
    hours = [c.chip_hours for c in found if c.chip_hours is not None]
    if seconds:
        parts.append(f"{duration(SPAN[0] * sum(seconds))} to {duration(SPAN[1] * sum(seconds))} on this machine")
    if hours:
        dollars = [c.dollars for c in found if c.chip_hours is not None]
        price = "" if None in dollars else f", {amount(sum(d or 0 for d in dollars))} at list prices"
        parts.append(f"at least {sum(hours):.3g} chip-hours{price} (a roofline by hand, docs/plan.md)")
    unknown = sum(bool(c.unknown) for c in found)
    if unknown:
        parts.append(f"{unknown} of unknown length")
    return f"to run: {'; '.join(parts)}"


def _amount(cost: Cost) -> str:
    if cost.unknown:
        return f"not known: {cost.unknown}"
    if cost.chip_hours is not None:
        price = "" if cost.dollars is None else f", {amount(cost.dollars)}"
        return f"at least {cost.chip_hours:.3g} chip-hours{price}"
    assert cost.seconds is not None
    return f"about {max(1, round(cost.seconds / 60))} min"
