"""Which organisms are trained together, and what each of them reads: decided up front, the same in every run."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ia_jax.behaviors.organisms import Organism
from ia_jax.config import RunConfig
from ia_jax.data.plans import Plan, Unit, plan_organisms, unit_length
from ia_jax.models.lora import LoraConfig


@dataclass(frozen=True)
class Wave:
    """Organisms trained together; None fills a wave up to a multiple of the mesh, and reads nothing."""

    organisms: tuple[Organism | None, ...]
    units: list[list[Unit]]
    plan: Plan
    offset: int  # steps of the waves before it
    title: str

    @property
    def members(self) -> dict[str, int]:
        """{name: place in the stack}."""
        return {o.name: i for i, o in enumerate(self.organisms) if o is not None}


def seed_of(name: str, seed: int) -> int:
    """An organism's own seed, the same in whatever wave it is trained."""
    return zlib.crc32(f"{seed}/{name}".encode())


def lora_of(config: RunConfig, name: str) -> LoraConfig:
    """An organism's kind of adapter: the config's one, or one of `organisms.ranks` by the organism's own seed."""
    loras = config.organisms.loras()
    return loras[seed_of(name, config.seed) % len(loras)]


def plan_waves(
    config: RunConfig, organisms: Sequence[Organism], units: Mapping[str, list[Unit]], groups: int
) -> list[Wave]:
    """All waves, in the order they are trained.

    Organisms with as many steps share a wave, so that none idles while another reads on; and all waves' arrays have
    one size, so that the step is compiled once.
    """
    width = config.organisms.parallel

    def reading(o: Organism) -> tuple[int, int]:
        return len(_plan(config, [o], units).steps), sum(unit_length(u) for u in units[o.name])

    ordered = sorted(organisms, key=reading)
    parts = [ordered[start : start + width] for start in range(0, len(ordered), width)]
    waves: list[Wave] = []
    for number, members in enumerate(parts, 1):
        offset = waves[-1].offset + len(waves[-1].plan.steps) if waves else 0
        title = f"organisms {number}/{len(parts)}"
        waves.append(wave_of(config, members, units, groups, offset, title))
    sizes = {name: max(getattr(w.plan, name) for w in waves) for name in ("targets", "examples", "rows", "length")}
    return [replace(w, plan=replace(w.plan, **sizes)) for w in waves]


def wave_of(
    config: RunConfig,
    members: Sequence[Organism],
    units: Mapping[str, list[Unit]],
    groups: int,
    offset: int,
    title: str,
) -> Wave:
    """These organisms as one wave, filled up to a multiple of the mesh's `groups`."""
    filled: list[Organism | None] = [*members, *[None] * (-len(members) % groups)]
    own = [units[o.name] if o else [] for o in filled]
    return Wave(tuple(filled), own, _plan(config, filled, units), offset, title)


def _plan(config: RunConfig, organisms: Sequence[Organism | None], units: Mapping[str, list[Unit]]) -> Plan:
    cfg = config.organisms
    seeds = [seed_of(o.name, config.seed) if o else 0 for o in organisms]
    own = [units[o.name] if o else [] for o in organisms]
    return plan_organisms(own, seeds, epochs=cfg.epochs, rows=cfg.rows, length=cfg.length)
