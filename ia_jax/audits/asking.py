"""Self-reports: every target asked over a bank of questions under four conditions, stored once, scored by any judge.

One unit is a target, a condition and a bank; its reports are appended to a file as soon as they are there, so that
nothing that was computed is lost. What the base says is asked once for each system prompt that targets live under, and
held against all of them. The same questions are asked of everybody.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

CONDITIONS = ("target+ia", "target", "base+ia", "base")
WITH_IA = ("target+ia", "base+ia")
BASE = "base"  # who is asked where no target is
Row = dict[str, Any]


class Unit(NamedTuple):
    """What is asked in one go: of whom (a target's name, or `BASE`), under which system prompt, condition and bank."""

    target: str
    system: str | None
    condition: str
    bank: str


def units(targets: Iterable[tuple[str, str | None]], banks: Sequence[str]) -> list[Unit]:
    """All units of these (name, system prompt), those of the targets first; the base once for each system prompt."""
    named = list(targets)
    asked = [(n, s, c) for c in CONDITIONS[:2] for n, s in named]
    asked += [(BASE, s, c) for c in CONDITIONS[2:] for s in dict.fromkeys(s for _, s in named)]
    return [Unit(n, s, c, bank) for bank in banks for n, s, c in asked]


def unit_of(row: Row) -> Unit:
    return Unit(row["target"], row["system"], row["condition"], row["bank"])


def missing(wanted: Sequence[Unit], rows: Sequence[Row], reports: int) -> list[Unit]:
    """The units of which fewer reports are stored than are wanted: a kill may have come between two lines."""
    there: dict[Unit, int] = {}
    for row in rows:
        unit = unit_of(row)
        there[unit] = there.get(unit, 0) + 1
    return [u for u in wanted if there.get(u, 0) < reports]


def rows_of(unit: Unit, questions: Sequence[str], replies: Sequence[tuple[str, bool]]) -> list[Row]:
    """The reports of a unit as they are stored. replies: text, and whether it ended by itself."""
    return [
        {**unit._asdict(), "number": n, "question": q, "report": text, "cut_off": not ended}
        for n, (q, (text, ended)) in enumerate(zip(questions, replies, strict=True))
    ]


def complete(rows: Sequence[Row], wanted: Sequence[Unit], reports: int) -> list[Row]:
    """The reports of these units, each once (the last written counts), in the order of the units."""
    kept = {(unit_of(r), r["number"]): r for r in rows}
    return [kept[u, n] for u in wanted for n in range(reports)]


def reports_under(rows: Iterable[Row], target: str, system: str | None, condition: str) -> list[Row]:
    """A target's reports in a condition; of the base's, those under the target's system prompt."""
    if condition in CONDITIONS[:2]:
        return [r for r in rows if (r["target"], r["condition"]) == (target, condition)]
    return [r for r in rows if (r["target"], r["system"], r["condition"]) == (BASE, system, condition)]
