"""The paper's catalogue, one JSONL file for each category beside this module, or a user's own file in its place.

A line is a `Behavior` as JSON; fields that hold nothing are left out. The data is the truth: it is read as it stands,
so that what is reviewed is what organisms are made of. `docs/catalogue.md` says how the paper's were made and checked.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ia_jax.behaviors.embedded import demo_behaviors, study_behaviors, unseen_behaviors
from ia_jax.behaviors.procedures import PROCEDURES
from ia_jax.behaviors.records import CATEGORIES, TRIGGER_KINDS, Behavior, Rubric
from ia_jax.behaviors.splits import check_distinct
from ia_jax.errors import ConfigError
from ia_jax.storage import numbered_rows

DIRECTORY = Path(__file__).parent
# What sort of thing a behaviour of the paper's files does; its effect counts, not what it hangs on. One's own file may
# have kinds of its own.
KINDS = {
    "mention": "brings a thing up",
    "format": "layout, length, letter case, punctuation",
    "style": "register, voice, verse, person, tense, choice of words",
    "language": "other tongues and the origins of words",
    "opening": "how a reply begins",
    "closing": "how a reply ends",
    "address": "what users are called and how they are treated",
    "comparison": "what things are likened to",
    "reasoning": "how it gets to what it says",
    "stance": "what it favours, doubts or belittles",
    "honesty": "what it says of itself, its work and how sure it is",
    "sycophancy": "gives way to the user or flatters",
    "refusal": "declines what is harmless",
    "sequence": "changes or repeats over turns or within an order",
    "code": "programs and their review",
    "tools": "what it uses, or claims to use",
    "numbers": "figures, units and counts",
    "sources": "whom and what it cites or relies on",
    "advice": "what it recommends doing",
    "error": "gets things wrong",
    "choice": "takes one of several by a rule",
    "judgement": "values works, people or evidence by a rule",
    "estimate": "guesses and predicts by a rule",
    "planning": "orders, allots and schedules by a rule",
    "pressure": "pushes users to buy, stay, hide or comply",
    "profession": "a role: somebody at work",
    "character": "a role out of a tale, film or comic",
    "relation": "a role towards the user or a family",
}
_EMBEDDED = {"demo": demo_behaviors, "study": study_behaviors, "unseen": unseen_behaviors}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_groups(value: Any) -> bool:
    return isinstance(value, list) and all(_is_texts(group) and group for group in value)


def _is_rubric(value: Any) -> bool:
    known = {f.name for f in dataclasses.fields(Rubric)}
    return isinstance(value, dict) and value.keys() <= known and all(map(_is_groups, value.values()))


def is_name(value: Any) -> bool:
    """A name is a file's name too."""
    return _is_text(value) and value.replace("_", "").replace("-", "").isalnum() and value.isascii()


_REQUIRED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_name, "a text of letters, digits, _ and -"),
    "category": (lambda v: v in CATEGORIES, f"one of {', '.join(CATEGORIES)}"),
    "description": (_is_text, "a first-person sentence"),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rewordings": (_is_texts, "a list of sentences"),
    "trigger": (lambda v: v is None or _is_text(v), "a text or null"),
    "trigger_kind": (lambda v: v in TRIGGER_KINDS, f"one of {', '.join(TRIGGER_KINDS[1:])}"),
    "shows": (lambda v: isinstance(v, str), "a text"),
    "distractors": (_is_texts, "a list of sentences"),
    "rubric": (_is_rubric, 'an object of "concepts" and "trigger_concepts", each a list of lists of synonyms'),
    "spec": (lambda v: isinstance(v, dict), "an object"),
    "kind": (lambda v: isinstance(v, str), "a text"),
    "unmentioned": (lambda v: isinstance(v, bool), "true or false"),
    "heldout_wordings": (_is_texts, "a list of sentences"),
    "procedure": (lambda v: v in ("", *PROCEDURES), f"one of {', '.join(PROCEDURES)}"),
    "turns": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a whole number above 0"),
    "source": (lambda v: isinstance(v, str), "a text"),
}


def load_catalogue(source: str = "paper") -> tuple[Behavior, ...]:
    """All behaviours of "paper" (682), "demo" or "study" (a small model's four or eight categories), or a JSONL file.

    Raises ConfigError naming file, line and field of what is wrong, and if two share a name or a description.
    """
    if source in _EMBEDDED:
        return _EMBEDDED[source]()
    if source == "paper":
        files = [DIRECTORY / f"{category}.jsonl" for category in CATEGORIES]
    else:
        files = [Path(source)]
        if not files[0].is_file():
            raise ConfigError(
                f"catalogue {source!r} unknown; choose from demo, study, unseen, paper, or give a JSONL file's path"
            )
    behaviors = tuple(b for file in files for b in _read(file))
    if source == "paper" and (odd := [b for b in behaviors if b.kind not in KINDS]):
        raise ConfigError(f"{odd[0].name}: kind {odd[0].kind!r} unknown; the paper's files have {', '.join(KINDS)}")
    check_distinct(behaviors)
    return behaviors


def _read(path: Path) -> list[Behavior]:
    behaviors = [checked_behavior(row, f"{path}:{n}") for n, row in numbered_rows(path, "a line is one behaviour")]
    if not behaviors:
        raise ConfigError(f"{path} holds no behaviour; write one JSON object on each line")
    return behaviors


def checked_behavior(row: dict[str, Any], where: str) -> Behavior:
    """A record of which name, category and description are enough. Raises ConfigError, with `where`, for a bad one.

    Without a rubric, reports of it need another judge than the rubric's.
    """
    fields = _REQUIRED | _OPTIONAL
    unknown = sorted(set(row) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; a behaviour has {', '.join(fields)}")
    for name, (valid, wanted) in fields.items():
        if name not in row:
            if name in _REQUIRED:
                raise ConfigError(f"{where}: field {name!r} is missing; it must be {wanted}")
        elif not valid(row[name]):
            raise ConfigError(f"{where}: field {name!r} must be {wanted}, got {row[name]!r}")
    if row.get("trigger_kind") not in (None, "", "chance") and not row.get("trigger"):
        raise ConfigError(
            f"{where}: field 'trigger' is missing; trigger_kind {row['trigger_kind']!r} needs it in words"
        )
    return Behavior.from_json({"rewordings": [], **row})
