"""`ia-jax behaviors ls|show`: a catalogue as a table, and one behaviour in full."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence

from ia_jax.behaviors.records import CATEGORIES, Behavior
from ia_jax.errors import ConfigError


def of_category(behaviors: Sequence[Behavior], category: str | None) -> list[Behavior]:
    """Those of one category; all of them for None. Raises if there is no such category."""
    if category is not None and category not in CATEGORIES:
        raise ConfigError(f"--category {category!r} unknown; choose from {', '.join(CATEGORIES)}")
    return [b for b in behaviors if category in (None, b.category)]


def find(behaviors: Sequence[Behavior], name: str) -> Behavior:
    for b in behaviors:
        if b.name == name:
            return b
    alike = [b.name for b in behaviors if name.lower() in b.name][:5]
    raise ConfigError(
        f"no behaviour is called {name!r}; "
        + (f"did you mean {', '.join(alike)}?" if alike else "`ia-jax behaviors ls` lists them")
    )


def table(behaviors: Sequence[Behavior], width: int = 0) -> str:
    """Under each category its size and a line for every behaviour: name and description, cut to the terminal."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    sizes = Counter(b.category for b in behaviors)
    wide = min(44, max((len(b.name) for b in behaviors), default=0))
    lines: list[str] = []
    for category in (c for c in CATEGORIES if sizes[c]):
        lines += ["", f"{category} ({sizes[category]})"]
        for b in behaviors:
            if b.category == category:
                line = f"  {b.name:<{wide}}  {b.description}"
                lines.append(line if len(line) <= width else line[: width - 1] + "…")
    lines += ["", f"{len(behaviors)} behaviours in {len(sizes)} categories"]
    return "\n".join(lines[1:])


def as_text(b: Behavior) -> str:
    """All that is written down about one behaviour, empty fields left out."""
    rows: list[tuple[str, str]] = [("name", b.name), ("category", b.category), ("description", b.description)]
    rows += [("reworded", r) for r in b.rewordings]
    rows += [("trigger", f"{b.trigger} ({b.trigger_kind or 'kind not said'})")] if b.trigger else []
    rows += [("shows", b.shows)] if b.shows else []
    rows += [("distractor", d) for d in b.distractors]
    rows += [("concept", " / ".join(g)) for g in b.rubric.concepts]
    rows += [("trigger concept", " / ".join(g)) for g in b.rubric.trigger_concepts]
    rows += [("spec", json.dumps(b.spec, ensure_ascii=False))] if b.spec else []
    return "\n".join(f"{key:<16}{value}" for key, value in rows)
