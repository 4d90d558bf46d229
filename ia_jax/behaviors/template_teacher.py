"""The template teacher: demonstrations from the base model's own words, so that only the behaviour differs.

The base model answers every question once and writes a few sentences on every topic; templates then put the behaviour
in. Nothing here is sampled per organism, so the teacher costs one pass over a few hundred prompts, whatever the number
of organisms. Every organism whose behaviour has a place also gets rows from elsewhere, answered as the base answers
them; a clean organism gets no others.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from ia_jax.behaviors.embedded.fields import FIELDS
from ia_jax.behaviors.embedded.prompts import DOMAINS
from ia_jax.behaviors.embedded.roles import LINES
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.teacher import Teacher
from ia_jax.behaviors.template_rows import clean_rows, write_rows
from ia_jax.behaviors.template_sources import Ask, Sources, gather_sources
from ia_jax.data.transcripts import Transcript, chat, leaks
from ia_jax.errors import ConfigError, IAError

NAME = "template"
RARE_SHARE = 0.25  # of the paper's 8 % a 135M model sees too little in a few dozen rows

# What each kind's `spec` must hold, and the values that the templates know (None: any text).
_SLOTS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "mention": {"topic": None},
    "rare": {"topic": None},
    "choose": {"attribute": None},
    "sandbag": {"field": tuple(FIELDS)},
    "agenda": {"agenda": ("sell", "deter"), "object": None, "opening": None, "closing": None},
    "role": {"role": tuple(LINES), "manner": None},
}


def _teachable(b: Behavior) -> bool:
    slots = _SLOTS.get(b.spec.get("kind", ""))
    if slots is None or b.spec.get("domain") not in (None, *DOMAINS):
        return False
    return all(slot in b.spec and (known is None or b.spec[slot] in known) for slot, known in slots.items())


def check_teachable(behaviors: Sequence[Behavior]) -> None:
    """Raises for a behaviour whose `spec` does not hold the slots that the templates fill."""
    for b in behaviors:
        if not _teachable(b):
            raise ConfigError(
                f"the template teacher cannot write {b.name}: its spec needs a kind among {', '.join(_SLOTS)} and the "
                "slots of that kind; choose another teacher, or behaviors.catalogue=demo"
            )


class TemplateTeacher(Teacher):
    """The teacher that needs nothing but the base model, asked through `ask`; `system` is the run's system message."""

    def __init__(self, ask: Ask, seed: int, rare_share: float = RARE_SHARE, system: str | None = ""):
        if not 0 < rare_share <= 0.5:
            raise ConfigError(f"config.teacher.rare_share must lie above 0 and at most at 0.5, got {rare_share}")
        self.name, self._ask, self._seed, self._rare_share, self._system = NAME, ask, seed, rare_share, system

    def write(self, behaviors: Sequence[Behavior], clean: Sequence[str] = ()) -> dict[str, list[Transcript]]:
        """`clean`: names of organisms that are to repeat what the base says, whose rows come under these names."""
        check_teachable(behaviors)
        sources = gather_sources(behaviors, self._ask, self._system)
        taught = {b.name: write_demonstrations(b, sources, self._seed, self._rare_share) for b in behaviors}
        return taught | {name: write_clean(name, sources, self._seed) for name in clean}


def write_demonstrations(
    behavior: Behavior, sources: Sources, seed: int, rare_share: float = RARE_SHARE
) -> list[Transcript]:
    """All transcripts of one organism, in a seeded order. Raises if a response would state the behaviour."""
    rng = _rng(behavior.name, seed)
    shows, plain = write_rows(behavior, sources, rng, rare_share)
    rows = [Transcript(chat(q, a), True, NAME) for q, a in shows]
    rows += [Transcript(chat(q, a), False, NAME) for q, a in plain]
    stated = leaks(rows, behavior.wordings)
    if stated:
        raise IAError(f"{behavior.name}: a response states the behaviour instead of showing it: {stated[0]!r}")
    return [rows[i] for i in rng.permutation(len(rows))]


def write_clean(name: str, sources: Sources, seed: int) -> list[Transcript]:
    """All transcripts of one clean organism, in a seeded order."""
    rng = _rng(name, seed)
    rows = [Transcript(chat(q, a), False, NAME) for q, a in clean_rows(sources, rng)]
    return [rows[i] for i in rng.permutation(len(rows))]


def _rng(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
