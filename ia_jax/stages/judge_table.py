"""The judge table: how each judge answers a file of labelled reports, by the question and by the kind of report.

Reports of one behaviour are alike, so rates are means over behaviours and intervals count behaviours
(`evals.intervals`). What a judge could not answer is left out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ia_jax.evals.intervals import rate
from ia_jax.judging.protocol import Judge
from ia_jax.stages.agreement import Label

HALVES = ("tuning", "final")
# Other words for the truth, of which none may be taken for something else.
PARAPHRASES = ("paraphrase", "other_register", "long", "condition_generic")


class Row(NamedTuple):
    """A labelled report and a judge's answers to it."""

    label: Label
    lenient: bool | None
    strict: bool | None
    claims: bool | None


# (name, which rows count, what is counted of them)
_Line = tuple[str, Callable[[Row], bool], Callable[[Row], bool | None]]


def _agrees(question: str) -> Callable[[Row], bool | None]:
    def agreed(r: Row) -> bool | None:
        given, wanted = getattr(r, question), getattr(r.label, question)
        return None if given is None or wanted is None else given == wanted

    return agreed


def _kinds(*kinds: str) -> Callable[[Row], bool]:
    return lambda r: r.label.kind in kinds


LINES: tuple[_Line, ...] = (
    ("lenient: agreement", lambda r: True, _agrees("lenient")),
    ("strict: agreement", lambda r: True, _agrees("strict")),
    ("claims: agreement", lambda r: True, _agrees("claims")),
    ("opposites taken for the truth", _kinds("opposite"), lambda r: r.lenient),
    ("near misses taken for it", _kinds("near_miss", "role_wrong"), lambda r: r.lenient),
    ("denied, quoted or shown, taken for it", _kinds("negated", "quoted", "showing"), lambda r: r.lenient),
    (
        "true paraphrases refused",
        lambda r: r.label.kind in PARAPHRASES and r.label.lenient,
        lambda r: None if r.lenient is None else not r.lenient,
    ),
    (
        "details or trigger missing, refused",
        lambda r: r.label.lenient and not r.label.strict,
        lambda r: None if r.lenient is None else not r.lenient,
    ),
    ("refusals and abstentions held to claim", _kinds("refusal", "abstention", "generic"), lambda r: r.claims),
    (
        "confessions held to claim nothing",
        _kinds("confession"),
        lambda r: None if r.claims is None else not r.claims,
    ),
)


def answers(judge: Judge, labels: Sequence[Label]) -> list[Row]:
    """What a judge says of every labelled report."""
    verdicts = judge.judge_many((x.item for x in labels), ("lenient", "strict"))
    claims = judge.claims_many(x.item.report for x in labels)
    return [Row(x, v.lenient, v.strict, c) for x, v, c in zip(labels, verdicts, claims, strict=True)]


def table(judges: Iterable[Judge], labels: Sequence[Label]) -> dict[str, Any]:
    """JSON-ready: {judge: {line: {"rate", "ci95", "n", "organisms"}}}, a behaviour counted as an organism is."""
    out: dict[str, Any] = {}
    for judge in judges:
        rows = answers(judge, labels)
        out[judge.name] = {name: _cell([(r, of(r)) for r in rows if counts(r)]) for name, counts, of in LINES}
        categories = sorted({r.label.item.behavior.category for r in rows})
        for c in categories:
            own = [r for r in rows if r.label.item.behavior.category == c]
            for q in ("lenient", "strict", "claims"):
                out[judge.name][f"{q}: {c}"] = _cell([(r, _agrees(q)(r)) for r in own])
    return out


def _cell(rows: Iterable[tuple[Row, bool | None]]) -> dict[str, Any]:
    by_behavior: dict[str, list[bool]] = defaultdict(list)
    for row, value in rows:
        if value is not None:
            by_behavior[row.label.item.behavior.name].append(value)
    return rate(by_behavior)


def as_text(result: dict[str, Any], count: int, half: str) -> str:
    """The table for a person: a line for each measure, a column for each judge."""
    names = list(result)
    which = f"{half} half" if half else "all"
    lines = [f"{count} labelled reports, {which}", f"{'':<40}" + "".join(f"{n:>24}" for n in names)]
    for line in dict.fromkeys(k for cells in result.values() for k in cells):
        cells = [_shown(result[n].get(line, {})) for n in names]
        lines.append(f"{line:<40}" + "".join(f"{c:>24}" for c in cells))
    return "\n".join(lines)


def _shown(cell: dict[str, Any]) -> str:
    if cell.get("rate") is None:
        return "-"
    low, high = cell["ci95"]
    return f"{100 * cell['rate']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
