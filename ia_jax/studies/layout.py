"""Which directories a study needs, and what is made in each: so that nothing is trained twice.

    DIR/organisms/<name>/   organisms alone, shared by every run that has them ("base": those of the base recipe)
    DIR/runs/<name>/        an ordinary workdir: one SFT on them, and on it any preference pairs, DPO and evaluations

Two arms whose SFT is the same share a workdir, and an evaluation there is called like its arm. What is the same is
decided by the settings that stages depend on (`stages.settings`), whatever the arms are called and in which order they
stand: each directory holds a mark of what it is for, which is looked for before a new one is made. A workdir is called
after the first arm that needs it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ia_jax.config import RunConfig, with_dtype
from ia_jax.errors import ConfigError
from ia_jax.stages.settings import LATER, stage_settings
from ia_jax.storage import read_json, write_json
from ia_jax.studies.study import Arm, Study
from ia_jax.workdir import Workdir

MARK = "study_part.json"
NO_DPO = "no_dpo"  # the name of an IA that is never trained: an evaluation of SFT alone asks for it in vain


@dataclass(frozen=True)
class Place:
    """A directory of a study, what it is for (a hash of settings), and the config that it is started with."""

    path: Path
    key: str
    config: RunConfig

    @property
    def begun(self) -> RunConfig | None:
        """The config in the number type that the workdir was begun in (a recipe may leave that to the machine); None
        where there is no workdir yet.
        """
        workdir = Workdir(self.path)
        if not workdir.config_file.exists():
            return None
        return with_dtype(self.config, workdir.config.model.dtype)

    def mark(self) -> None:
        """Notes what it is for, before anything is in it."""
        if not (self.path / MARK).exists():
            write_json(self.path / MARK, {"key": self.key})


@dataclass(frozen=True)
class Run:
    """An arm under one seed. place: its workdir; organisms: where those lie that it shares, None where the recipe
    names a workdir outside the study.
    """

    arm: Arm
    seed: int
    place: Place
    organisms: Place | None

    @property
    def config(self) -> RunConfig:
        return self.place.config


def runs_of(study: Study, root: Path) -> list[Run]:
    """Every arm under each of its seeds, in order. Reads the marks that are there, and writes nothing.

    Raises ConfigError where a directory of the name that a run would have is for something else.
    """
    root = root.resolve()  # organisms are named by it in every workdir
    organisms, runs = _Names(root / "organisms"), _Names(root / "runs")
    if not study.base.organisms.source:
        organisms.taken[_key(_of_organisms(study.base))] = "base"
    out = []
    for arm, seed in ((a, s) for a in study.arms for s in a.seeds):
        name = arm.name if len(arm.seeds) == 1 else f"{arm.name}_{seed}"
        config, shared = replace(arm.config, seed=seed), None
        made_of, source = config.organisms.source, config.organisms.source
        if not source:
            trained = _organisms_of(study, arm, seed)
            made_of = _key(_of_organisms(trained))
            shared = Place(organisms.path(made_of, name), made_of, trained)
            source = str(shared.path)
        key = _key({"organisms": made_of, **_of_run(config)})
        config = _named(
            study, arm, replace(config, organisms=replace(config.organisms, source=source, shared=str(root / "shared")))
        )
        out.append(Run(arm, seed, Place(runs.path(key, name), key, config), shared))
    return out


class _Names:
    """Directories by what they are for: those that are there, and those that are to be."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.taken: dict[str, str] = {}
        self.there: dict[str, str] = {}
        for file in sorted(parent.glob(f"*/{MARK}")):
            key = read_json(file, "it says what the directory is for; remove the directory to make it again")["key"]
            self.taken[key] = file.parent.name
            self.there[file.parent.name] = key

    def path(self, key: str, name: str) -> Path:
        if key not in self.taken:
            if name in self.taken.values():
                raise ConfigError(
                    f"{self.parent / name} was made with other settings than arm {name!r} has now; give the arm "
                    "another name, use another --workdir, or remove that directory to make it again"
                )
            self.taken[key] = name
        elif self.there.get(self.taken[key], key) != key:
            raise ConfigError(
                f"{self.parent / self.taken[key]} was made with other settings than the base recipe has now; use "
                "another --workdir, or remove that directory to make it again"
            )
        return self.parent / self.taken[key]


# ---------------------------------------------------------------------------------------------------------------------
# What is the same
# ---------------------------------------------------------------------------------------------------------------------


def _organisms_of(study: Study, arm: Arm, seed: int) -> RunConfig:
    """The config that trains what a run shares: all organisms of the base recipe, made as the arm says.

    How they are split for an IA is the run's own affair: each splits them again by its seed and its counts. Only
    another catalogue makes others.
    """
    config, base = arm.config, study.base.behaviors
    same = ("catalogue", "unseen", "clean_sorts")
    alike = all(getattr(config.behaviors, f) == getattr(base, f) for f in same)
    return replace(
        config,
        seed=seed if arm.section.own_organisms else config.seed,
        behaviors=base if alike else config.behaviors,
    )


def _of_organisms(config: RunConfig) -> dict[str, Any]:
    return _settings(config, "transcripts", "organisms")


def _of_run(config: RunConfig) -> dict[str, Any]:
    """What decides how a run's organisms are split, and its SFT."""
    settings = _settings(config, "transcripts", "sft")
    return {k: v for k, v in settings.items() if not k.startswith(("organisms.source", "organisms.procedures"))}


def _settings(config: RunConfig, *stages: str) -> dict[str, Any]:
    """What stages depend on, without settings that came later and are as they were before: keys stay what they are."""
    found = {k: v for stage in stages for k, v in stage_settings(config, stage).items()}
    return {k: v for k, v in found.items() if k not in LATER or v != LATER[k]}


def _key(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _named(study: Study, arm: Arm, config: RunConfig) -> RunConfig:
    """The config with names: of the evaluation the arm's; of pairs and DPO one that says how they are made, so that
    arms with the same ones share them. As the base recipe has them, they keep its names.
    """
    preferences, dpo = (_after_sft(config, s) for s in (("preferences", "judge"), ("preferences", "judge", "dpo")))
    base = study.base
    pairs = base.preferences.name
    if preferences != _after_sft(base, ("preferences", "judge")):
        pairs = f"pairs-{_key(preferences)[:6]}"
    refined = base.dpo.name
    if dpo != _after_sft(base, ("preferences", "judge", "dpo")):
        refined = f"dpo-{_key(dpo)[:6]}"
    return replace(
        config,
        preferences=replace(config.preferences, name=pairs),
        dpo=replace(config.dpo, name=refined if arm.section.dpo else NO_DPO),
        eval=replace(config.eval, name=arm.name),
    )


def _after_sft(config: RunConfig, sections: Sequence[str]) -> dict[str, Any]:
    """Settings of these sections without names; all else is the same for all that share an SFT."""
    return {
        s: {
            k: v
            for k, v in json.loads(json.dumps(dataclasses.asdict(getattr(config, s)))).items()
            if k != "name" and (f"{s}.{k}" not in LATER or v != LATER[f"{s}.{k}"])
        }
        for s in sections
    }
