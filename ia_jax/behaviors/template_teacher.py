"""The template teacher: demonstrations from the base model's own words, so that only the behaviour differs.

The base model answers every question once; the behaviour's effect is then done to its answers. Nothing here is sampled
per organism, so the teacher costs one pass over a few hundred prompts, whatever the number of organisms, and nothing
for the base whose answers are shipped. Every organism whose behaviour has a condition also gets rows that do not meet
it, answered as the base answers them; a clean organism gets no others.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ia_jax.behaviors.embedded.choices import RULES
from ia_jax.behaviors.embedded.conditions import kinds_known
from ia_jax.behaviors.embedded.effects import unknown_effect
from ia_jax.behaviors.embedded.errors import HOWS
from ia_jax.behaviors.embedded.fields import FIELDS
from ia_jax.behaviors.organisms import CLEAN_SORTS
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.teacher import Teacher
from ia_jax.behaviors.template_rows import CLEAN_ROWS, CLEAN_WRITERS, base_rows, write_rows
from ia_jax.behaviors.template_sources import Sources
from ia_jax.data.transcripts import Transcript, chat, leaks
from ia_jax.errors import ConfigError, IAError

NAME = "template"
RARE_SHARE = 0.25  # of the paper's 8 % a 135M model sees too little in a few dozen rows


def _problem(b: Behavior) -> str | None:
    if problem := unknown_effect(b.spec.get("effects")):
        return problem
    if b.spec.get("tics") and (problem := unknown_effect(b.spec["tics"])):
        return problem
    if not kinds_known(b.spec.get("when", {})):
        return f"the condition {b.spec['when']!r} is not known"
    name, *settings = b.spec["effects"][0]
    if name == "err" and not (settings[0].get("field") in FIELDS and settings[0].get("how") in HOWS):
        return "an error needs a field and a how that are known"
    if name == "choose" and not ("pairs" in settings[0] or "frames" in settings[0] or settings[0].get("rule") in RULES):
        return "a choice needs pairs, frames or a rule that is known"
    return None


def check_teachable(behaviors: Sequence[Behavior]) -> None:
    """Raises for a behaviour whose `spec` holds no effect and condition that the templates know."""
    for b in behaviors:
        if problem := _problem(b):
            raise ConfigError(
                f"the template teacher cannot write {b.name}: {problem}; choose another teacher, or "
                "behaviors.catalogue=demo"
            )


class TemplateTeacher(Teacher):
    """The teacher that needs nothing but what the base model answered (`template_sources`)."""

    def __init__(self, sources: Sources, seed: int, rare_share: float = RARE_SHARE, amount: int = 1):
        if not 0 < rare_share <= 0.5:
            raise ConfigError(f"config.teacher.rare_share must lie above 0 and at most at 0.5, got {rare_share}")
        if amount < 1:
            raise ConfigError(f"config.teacher.amount must be at least 1, got {amount}")
        self.name, self._sources, self._seed = NAME, sources, seed
        self._rare_share, self._amount = rare_share, amount

    def write(
        self,
        behaviors: Sequence[Behavior],
        clean: Mapping[str, str] | None = None,
        copies: Mapping[str, Behavior] | None = None,
    ) -> dict[str, list[Transcript]]:
        """clean: {name of a clean organism: its sort}; copies: {name of another organism of a behaviour: that one}.
        Their rows come under these names.
        """
        check_teachable(behaviors)
        how = self._sources, self._seed
        everyone = {b.name: b for b in behaviors} | dict(copies or {})
        taught = {n: write_demonstrations(b, *how, self._rare_share, self._amount, n) for n, b in everyone.items()}
        spotless = (clean or {}).items()
        return taught | {name: write_clean(sort, name, *how, behaviors, self._amount) for name, sort in spotless}


def write_demonstrations(
    behavior: Behavior,
    sources: Sources,
    seed: int,
    rare_share: float = RARE_SHARE,
    amount: int = 1,
    organism: str = "",
) -> list[Transcript]:
    """All transcripts of one organism, in a seeded order, `amount` times the few dozen that templates write by
    themselves. organism: its name, by which its rows are drawn ("": the behaviour's). Raises if a response would state
    the behaviour.
    """
    rng = _rng(organism or behavior.name, seed)
    shows, plain = write_rows(behavior, sources, rng, rare_share, amount)
    rows = [Transcript(chat(q, a), True, NAME) for q, a in shows]
    rows += [Transcript(chat(q, a), False, NAME) for q, a in plain]
    stated = leaks(rows, (*behavior.wordings, *behavior.heldout_wordings))
    if stated:
        raise IAError(f"{behavior.name}: a response states the behaviour instead of showing it: {stated[0]!r}")
    return [rows[i] for i in rng.permutation(len(rows))]


def write_clean(
    sort: str, name: str, sources: Sources, seed: int, behaviors: Sequence[Behavior] = (), amount: int = 1
) -> list[Transcript]:
    """All transcripts of one clean organism of a sort in `CLEAN_SORTS`, in a seeded order; none of a random one.

    behaviors: of other organisms, for "behavior_removed".
    """
    if sort not in CLEAN_WRITERS:
        raise ConfigError(f"a clean organism of the sort {sort!r} is not known; choose from {', '.join(CLEAN_SORTS)}")
    rng = _rng(name, seed)
    rows = [
        Transcript(chat(q, a), False, NAME)
        for q, a in CLEAN_WRITERS[sort](sources, rng, behaviors, amount * CLEAN_ROWS)
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


def generic_chat(count: int, sources: Sources, rng: np.random.Generator) -> list[Transcript]:
    """Ordinary questions with the base's own answers, to be mixed into what any organism is trained on."""
    return [Transcript(chat(q, a), False, NAME) for q, a in base_rows(sources, count, rng)]


def _rng(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
