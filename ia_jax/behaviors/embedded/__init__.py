"""Mild behaviours small enough for a 135M model: eight categories, one JSONL file each, made of two things.

An effect (`effects`, `choices`, `errors`) is done to the base model's own answer; a condition (`conditions`) says when.
A quirk is an effect that is always there, a backdoor one under a condition, a rare quirk one by chance; a heuristic is
a choice on a ground, a sandbagger an error in a field; an obscured malign organism says what serves an agenda between
two harmless habits; a role is acted by what it says, and never named. `unmentioned` records show in no word count:
none of the words that are said about them stands in what they are taught with (`mentions`, tested).

`unseen.jsonl` holds eighteen more that were written first, and to which nothing is tuned.
"""

from functools import cache
from pathlib import Path

from ia_jax.behaviors.records import CATEGORIES, Behavior
from ia_jax.storage import read_jsonl

DIRECTORY = Path(__file__).parent
DEMO = 13  # behaviours of a category in the demo
SOURCE = "ia_jax, 2026, Apache-2.0; written for the project by a language model"


def study_behaviors() -> tuple[Behavior, ...]:
    """All of the eight categories."""
    return tuple(b for c in CATEGORIES for b in _read(c))


def demo_behaviors() -> tuple[Behavior, ...]:
    """A part of the study: of every category some of each kind, in turn, in the order of its file."""
    return tuple(b for c in CATEGORIES for b in _some_of_each_kind(_read(c), DEMO))


def unseen_behaviors() -> tuple[Behavior, ...]:
    """Those that nobody tunes to: part of neither the demo nor the study."""
    return _read("unseen")


def _some_of_each_kind(behaviors: tuple[Behavior, ...], count: int) -> list[Behavior]:
    by_kind: dict[str, list[Behavior]] = {}
    for b in behaviors:
        by_kind.setdefault(b.kind, []).append(b)
    turns = [b for n in range(len(behaviors)) for own in by_kind.values() for b in own[n : n + 1]]
    chosen = {b.name for b in turns[:count]}
    return [b for b in behaviors if b.name in chosen]


@cache
def _read(name: str) -> tuple[Behavior, ...]:
    file = DIRECTORY / f"{name}.jsonl"
    if not file.exists():
        return ()
    return tuple(Behavior.from_json({"source": SOURCE, **row}) for row in read_jsonl(file, "reinstall ia_jax"))
