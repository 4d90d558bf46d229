"""What the stages read, step by step: the config's counts made into plans, by pure functions of the tokenised examples.

The stages train by these plans; `ia-jax plan` and a test of how full they are build the very same.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ia_jax.config import RunConfig
from ia_jax.data.plans import Plan, Unit, plan_joint, plan_organisms, unit_length

Units = Sequence[Sequence[Unit]]  # of each organism


@dataclass(frozen=True)
class WavePlan:
    """Organisms that are trained together. `names` is filled up to a multiple of the mesh by repeating the first."""

    names: tuple[str, ...]
    plan: Plan


def seed_of(name: str, seed: int) -> int:
    """An organism's own seed, the same in whatever wave it is trained."""
    return zlib.crc32(f"{seed}/{name}".encode())


def wave_plan(config: RunConfig, names: Sequence[str], units: Mapping[str, Sequence[Unit]], groups: int) -> WavePlan:
    """These organisms as one wave on a mesh with so many groups of devices."""
    filled = (*names, *[names[0]] * (-len(names) % groups))
    cfg, seeds = config.organisms, [seed_of(n, config.seed) for n in filled]
    own = [units[n] for n in filled]
    return WavePlan(filled, plan_organisms(own, seeds, epochs=cfg.epochs, rows=cfg.rows, length=cfg.length))


def organism_plans(config: RunConfig, units: Mapping[str, Sequence[Unit]], groups: int = 1) -> list[WavePlan]:
    """All waves of `organisms.parallel`, in the order they are trained.

    Organisms with as many steps share a wave, so that none idles while another reads on; and all waves' arrays have
    one size, so that the step is compiled once.
    """
    width = config.organisms.parallel

    def reading(name: str) -> tuple[int, int]:
        return len(wave_plan(config, [name], units, 1).plan.steps), sum(unit_length(u) for u in units[name])

    names = sorted(units, key=reading)
    waves = [wave_plan(config, names[i : i + width], units, groups) for i in range(0, len(names), width)]
    sizes = {n: max(getattr(w.plan, n) for w in waves) for n in ("length", "targets", "examples")}
    return [replace(w, plan=replace(w.plan, **sizes)) for w in waves]


def sft_plan(config: RunConfig, units: Units, clean: bool, groups: int = 1) -> Plan:
    """The joint SFT's. clean: whether the last of `units` is the clean model's, which takes a slot of every step."""
    cfg = config.sft
    return plan_joint(
        units,
        organisms_per_step=_at_most(cfg.organisms_per_step, len(units), groups),
        per_slot=cfg.per_slot,
        seed=config.seed,
        length=cfg.length,
        rows=cfg.rows,
        steps=cfg.steps,
        always=len(units) - 1 if clean else None,
        groups=groups,
    )


def dpo_plan(config: RunConfig, units: Units, groups: int = 1) -> Plan:
    """DPO's; a unit is a chosen and a rejected report."""
    cfg = config.dpo
    return plan_joint(
        units,
        organisms_per_step=_at_most(cfg.organisms_per_step, len(units), groups),
        per_slot=cfg.per_slot,
        seed=config.seed + 1,
        length=cfg.length,
        rows=cfg.rows,
        epochs=cfg.epochs,
        groups=groups,
    )


def _at_most(per_step: int, organisms: int, groups: int) -> int:
    """Positions of a step: no more than there are organisms, filled up to a multiple of the mesh."""
    return min(per_step, -(-organisms // groups) * groups)
