"""A study as data: a base recipe, and arms that differ from it in some settings; each arm under one or more seeds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia_jax.behaviors.catalogue import is_name
from ia_jax.behaviors.splits import HELD
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.sections import parse_section

# (recipe file, settings like "sft.steps=50") -> the recipe's config with them, checked
Load = Callable[[str, tuple[str, ...]], RunConfig]


@dataclass(frozen=True)
class ArmSection:
    """An arm, as a study's file has it.

    overrides: settings in which it differs from the base recipe, like "sft.lora.rank=4".
    seeds: of its IAs, and of which organisms they hold out (none: the recipe's). Organisms are the same for all, those
        of the recipe's seed.
    own_organisms: whether each seed trains organisms of its own instead: what a repetition of everything gives.
    dpo: whether preference pairs and DPO follow SFT; the figure is that of the last stage.
    label: what it is called in the figure (default: its name).
    x: where it stands on the study's axis; arms without stand under each other.
    series: of several curves over the axis, the one that it belongs to.
    topology: the slice that its chip-hours are for, like "v6e:2x2" (default: the study's).
    """

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    own_organisms: bool = False
    dpo: bool = False
    label: str = ""
    x: float | None = None
    series: str = ""
    topology: str = ""


@dataclass(frozen=True)
class StudySection:
    """A study, as its file has it, without the arms.

    base: the recipe, a path from where the study's file lies.
    overrides: settings of all arms, and of the organisms that they share.
    title, question: what is asked, for the page.
    order: names of arms as they are to stand in the figure (a ConfigDict sorts them; those not named come last).
    reference: the arm that every other one is compared with, in pairs ("": none).
    split: whose reports the figure is of: "heldout", or "remade" (other fine-tunes of known behaviours).
    axis: what the arms' `x` counts; log: whether it is drawn in powers.
    topology: the slice that chip-hours are for.
    """

    base: str = ""
    overrides: tuple[str, ...] = ()
    title: str = ""
    question: str = ""
    order: tuple[str, ...] = ()
    reference: str = ""
    split: str = "heldout"
    axis: str = ""
    log: bool = False
    topology: str = ""


@dataclass(frozen=True)
class Arm:
    """An arm with its config, which has every override but neither a seed of `seeds` nor names."""

    name: str
    section: ArmSection
    config: RunConfig
    topology: str

    @property
    def label(self) -> str:
        return self.section.label or self.name

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.section.seeds or (self.config.seed,)


@dataclass(frozen=True)
class Study:
    """A study: its base recipe with the settings of all arms, and the arms."""

    name: str
    section: StudySection
    base: RunConfig
    arms: tuple[Arm, ...]

    def arm(self, name: str) -> Arm:
        """Raises ConfigError for one that there is not."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ConfigError(f"--arm={name} is none of this study's; it has: {', '.join(a.name for a in self.arms)}")


def parse_study(values: Mapping[str, Any], file: str, load: Load) -> Study:
    """The study that a file's `get_config()` returned. Raises ConfigError naming the arm and what is wrong with it."""
    values = dict(values)
    given = values.pop("arms", None)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{file}: a study has `arms`, a mapping of names to groups of settings")
    section = parse_section(StudySection, values, "study")
    recipe = str((Path(file).parent / section.base).resolve()) if section.base else ""
    if not Path(recipe).is_file():
        raise ConfigError(f"{file}: study.base={section.base!r} is no file beside it; give a recipe's path from there")
    base = load(recipe, section.overrides)
    names = [*dict.fromkeys(section.order), *sorted(given.keys() - set(section.order))]
    for field, named in (("reference", [section.reference]), ("order", section.order)):
        unknown = [n for n in named if n and n not in given]
        if unknown:
            raise ConfigError(f"{file}: study.{field} {unknown[0]!r} is no arm; there are: {', '.join(sorted(given))}")
    if section.split not in HELD:
        raise ConfigError(f"{file}: study.split {section.split!r} unknown; choose from {', '.join(HELD)}")
    arms = [_arm(n, given[n], section, lambda more: load(recipe, (*section.overrides, *more))) for n in names]
    if not arms:
        raise ConfigError(f"{file}: study.arms is empty; give one arm at least")
    return Study(Path(file).stem, section, base, tuple(arms))


def _arm(name: str, values: Any, study: StudySection, load: Callable[[tuple[str, ...]], RunConfig]) -> Arm:
    if not is_name(name):
        raise ConfigError(f"study.arms: the name {name!r} must be letters, digits, _ and -")
    section = parse_section(ArmSection, dict(values), f"study.arms.{name}")
    repeated = {s for s in section.seeds if section.seeds.count(s) > 1}
    if repeated:
        raise ConfigError(f"study.arms.{name}.seeds has {min(repeated)} twice")
    try:
        config = load(section.overrides)
    except ConfigError as error:
        raise ConfigError(f"study.arms.{name}: {error}") from None
    if section.dpo and not config.behaviors.organisms["dpo"]:
        raise ConfigError(
            f"study.arms.{name}.dpo is set, but config.behaviors.dpo and dpo_copies are 0; give it organisms for DPO"
        )
    return Arm(name, section, config, section.topology or study.topology)
