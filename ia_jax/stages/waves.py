"""Which organisms are trained together, and what each of them reads: decided up front, the same in every run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ia_jax.behaviors.organisms import Organism, procedure_of, seed_of
from ia_jax.behaviors.procedures import Phase, Procedure
from ia_jax.config import OrganismsSection, RunConfig
from ia_jax.data.plans import Plan, Unit, plan_organisms, unit_length
from ia_jax.models.lora import LoraConfig
from ia_jax.sections import override

PhaseUnits = Mapping[str, Sequence[list[Unit]]]  # {organism: what it reads in each of its phases}


@dataclass(frozen=True)
class Reading:
    """What the organisms of a wave read in one phase. offset: steps of all phases and waves before it."""

    phase: Phase
    units: list[list[Unit]]
    plan: Plan
    offset: int


@dataclass(frozen=True)
class Wave:
    """Organisms that are made alike and trained together; None fills a wave up to a multiple of the mesh, and reads
    nothing. plain: chats that a phase with a `kl_weight` is held to, the same for all.
    """

    organisms: tuple[Organism | None, ...]
    readings: tuple[Reading, ...]
    title: str
    plain: Sequence[Unit] = ()

    @property
    def members(self) -> dict[str, int]:
        """{name: place in the stack}."""
        return {o.name: i for i, o in enumerate(self.organisms) if o is not None}


def section_of(config: RunConfig, phase: Phase) -> OrganismsSection:
    """`config.organisms` with the adapter that a phase trains: the config's, in what the phase sets otherwise."""
    cfg = config.organisms
    if not phase.lora:
        return cfg
    own = override(cfg.lora, phase.lora, "organisms.procedures: a phase's lora")
    return replace(cfg, lora=own, ranks=() if {"rank", "kind"} & phase.lora.keys() else cfg.ranks)


def loras_of(config: RunConfig, phase: Phase) -> tuple[LoraConfig, ...]:
    """The kinds of adapters that a phase trains."""
    return section_of(config, phase).loras()


def lora_of(config: RunConfig, name: str, phase: Phase) -> LoraConfig:
    """An organism's kind of adapter: the phase's one, or one of `organisms.ranks` by the organism's own seed."""
    loras = loras_of(config, phase)
    return loras[seed_of(name, config.seed) % len(loras)]


def plan_waves(
    config: RunConfig, organisms: Sequence[Organism], units: PhaseUnits, groups: int, plain: Sequence[Unit] = ()
) -> list[Wave]:
    """All waves, in the order they are trained: one procedure after the other.

    Organisms with as many steps share a wave, so that none idles while another reads on; and all arrays of a
    procedure's waves have one size, so that each phase's step is compiled once.
    """
    width, waves = config.organisms.parallel, []

    def reading(o: Organism) -> tuple[int, int]:
        plans = [
            _plan(config, phase, [o], [own]) for phase, own in zip(procedure_of(o).phases, units[o.name], strict=True)
        ]
        return sum(len(p.steps) for p in plans), sum(unit_length(u) for own in units[o.name] for u in own)

    kinds = by_procedure(organisms)
    parts = [
        (procedure, ordered[start : start + width])
        for procedure, members in kinds
        for ordered in [sorted(members, key=reading)]
        for start in range(0, len(ordered), width)
    ]
    for number, (_, members) in enumerate(parts, 1):
        offset = _end(waves[-1]) if waves else 0
        title = f"organisms {number}/{len(parts)}"
        waves.append(wave_of(config, members, units, groups, offset, title, plain))
    alike = {id(p): [w for (q, _), w in zip(parts, waves, strict=True) if p is q] for p, _ in parts}
    return [_sized(wave, alike[id(p)]) for (p, _), wave in zip(parts, waves, strict=True)]


def by_procedure(organisms: Sequence[Organism]) -> list[tuple[Procedure, list[Organism]]]:
    """The organisms of each procedure, in the order in which procedures first occur."""
    kinds: dict[str, tuple[Procedure, list[Organism]]] = {}
    for o in organisms:
        procedure = procedure_of(o)
        kinds.setdefault(json.dumps(procedure.to_json(), sort_keys=True), (procedure, []))[1].append(o)
    return list(kinds.values())


def _end(wave: Wave) -> int:
    return wave.readings[-1].offset + len(wave.readings[-1].plan.steps)


def _sized(wave: Wave, alike: Sequence[Wave]) -> Wave:
    """The wave with arrays of the size that all of these need."""

    def reading(number: int, own: Reading) -> Reading:
        plans = [w.readings[number].plan for w in alike]
        sizes = {name: max(getattr(p, name) for p in plans) for name in ("targets", "examples", "rows", "length")}
        return replace(own, plan=replace(own.plan, **sizes))

    return replace(wave, readings=tuple(reading(n, r) for n, r in enumerate(wave.readings)))


def wave_of(
    config: RunConfig,
    members: Sequence[Organism],
    units: PhaseUnits,
    groups: int,
    offset: int,
    title: str,
    plain: Sequence[Unit] = (),
) -> Wave:
    """These organisms, which are made alike, as one wave, filled up to a multiple of the mesh's `groups`."""
    filled: list[Organism | None] = [*members, *[None] * (-len(members) % groups)]
    readings: list[Reading] = []
    for number, phase in enumerate(procedure_of(members[0]).phases):
        own = [units[o.name][number] if o else [] for o in filled]
        plan = _plan(config, phase, filled, own)
        readings.append(Reading(phase, own, plan, offset))
        offset += len(plan.steps)
    return Wave(tuple(filled), tuple(readings), title, plain)


def _plan(config: RunConfig, phase: Phase, organisms: Sequence[Organism | None], units: Sequence[list[Unit]]) -> Plan:
    cfg = config.organisms
    seeds = [seed_of(o.name, config.seed) if o else 0 for o in organisms]
    return plan_organisms(units, seeds, epochs=phase.epochs or cfg.epochs, rows=cfg.rows, length=cfg.length)
