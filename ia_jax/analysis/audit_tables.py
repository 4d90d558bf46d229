"""What the report shows of audits: for each family its rates, the true side and the false one, as texts."""

from collections.abc import Iterable
from typing import Any

from ia_jax.analysis.words import cell_view, titled
from ia_jax.storage import Row

_CONDITIONS = {
    "target+ia": "target + adapter",
    "target": "target alone",
    "base+ia": "base + adapter",
    "base": "base alone",
}


def audit_tables(audits: Iterable[Row]) -> list[Row]:
    """[{"title", "about", "rows": [{"of", "what", "text", "interval", "n"}]}], one for each audit that has metrics."""
    return [_table(m) for m in audits]


def _table(m: Row) -> Row:
    counts, asked = m["targets"], m.get("asked", {})
    about = (
        f"{counts['targets']} targets, {counts['silent']} whose behaviour is not seen, {counts['clean']} clean and "
        f"{counts['pipeline']} pipeline nulls; {asked.get('reports', '?')} reports each; judge {m['judge']}, ranked by "
        f"{m['ranked_by']}"
    )
    rows = [_row(words, "a report names the behaviour", m["verbalization"][c]) for c, words in _CONDITIONS.items()]
    for c, found in m["scaffold"].items():
        rows += [
            _row(_CONDITIONS[c], "one of the predictions is right", found["success"]),
            _row(_CONDITIONS[c], "a prediction is right", found["precision"]),
            _row("nulls, " + _CONDITIONS[c], "something is predicted of them", found["nulls_with_a_false_prediction"]),
        ]
    for sort, found in m.get("claims", {}).items():
        for c, groups in found["rates"].items():
            rows += [_row(f"{_groups(g)}, {_CONDITIONS[c]}", f"claims: {_groups(sort)}", x) for g, x in groups.items()]
    return {"title": titled(m["family"]), "about": about, "rows": [r for r in rows if r["n"]]}


def _groups(name: str) -> str:
    return name.replace("_", " ")


def _row(of: str, what: str, cell: Row) -> Row:
    view: dict[str, Any] = cell_view(cell)
    return {"of": of, "what": what, "text": view["text"], "interval": view["interval"], "n": cell["organisms"]}
