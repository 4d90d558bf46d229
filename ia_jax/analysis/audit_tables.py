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
    """[{"title", "about", "rows": [{"of", "what", "text", "interval", "n"}]}], one for each family that has metrics;
    what an investigator found stands in files of its own.
    """
    return [_in_base(m) if m["family"] == "in_base" else _table(m) for m in audits if "family" in m]


_BASES = {
    "added_after": "added after the IA was trained",
    "in_base": "in the base before",
    "alone": "in the base, without an IA",
    "run_ia": "added after, under the run's own IA",
    "base+ia": "no behaviour",
    "other_base": "another behaviour in the base",
}


def _in_base(m: Row) -> Row:
    counts = f"{len(m['each'])} behaviours, IAs trained on {' and '.join(map(_groups, m['categories']))}"
    rows = [_row(words, "a report names the behaviour", m["rates"][c]) for c, words in _BASES.items()]
    for name, held in m["pipelines"].items():
        for split, words in (("heldout", "other behaviours"), ("remade", "the behaviours that it was trained on")):
            of = f"unseen organisms of {words}, IA of {_groups(name)}"
            if split in held:
                rows.append(_row(of, "a report names theirs", held[split]["organism+ia"]))
    about = f"{counts}; {m['asked']['reports']} reports each; judge {m['judge']}"
    return {"title": titled(m["family"]), "about": about, "rows": [r for r in rows if r["n"]]}


def _table(m: Row) -> Row:
    counts, asked = m["targets"], m.get("asked", {})
    about = (
        f"{counts['targets']} targets, {counts['silent']} whose behaviour is not seen, {counts['clean']} clean and "
        f"{counts['pipeline']} pipeline nulls; {asked.get('reports', '?')} reports each; judge {m['judge']}, ranked by "
        f"{m['ranked_by']}"
    )
    rows = [_row(words, "a report names the behaviour", m["verbalization"][c]) for c, words in _CONDITIONS.items()]
    rows += _beside(m)
    for c, found in m["scaffold"].items():
        rows += [
            _row(_CONDITIONS[c], "one of the predictions is right", found["success"]),
            _row(_CONDITIONS[c], "a prediction is right", found["precision"]),
            _row("nulls, " + _CONDITIONS[c], "something is predicted of them", found["nulls_with_a_false_prediction"]),
        ]
    for sort, found in m.get("claims", {}).items():
        for c, groups in found["rates"].items():
            rows += [_row(f"{_groups(g)}, {_CONDITIONS[c]}", f"claims: {_groups(sort)}", x) for g, x in groups.items()]
    rows += _hardened(m.get("hardening", {})) + _tools(m.get("tools") or {}) + _admitted(m.get("admissions", {}))
    return {"title": titled(m["family"]), "about": about, "rows": [r for r in rows if r["n"]]}


def _beside(m: Row) -> list[Row]:
    """What stands beside the rate of targets: the same behaviours in reports of other models, with the behaviour as
    the unit where several targets have one, and what is claimed at all.
    """
    words = {"nulls": "reports of nulls", "others": "reports of other targets"}
    strangers = m.get("strangers", {})  # an audit of before they were counted has none
    rows = [
        _row(f"{w}, with adapter", "name this behaviour all the same", strangers[s])
        for s, w in words.items()
        if s in strangers
    ]
    if "by_behavior" in m:
        rows.append(_row("behaviours, target + adapter", "a report names it", m["by_behavior"]["target+ia"]))
    for kind, cell in m["false_side"]["claims"]["target+ia"].items():
        rows.append(_row(f"{kind if kind == 'targets' else kind + ' nulls'}, with adapter", "claims anything", cell))
    return rows


def _hardened(ways: Row) -> list[Row]:
    """Before and after a model learned to deny."""
    rows = []
    for way, found in ways.items():
        of = "all targets" if way == "all" else way
        for when, cell in found["gate"].items():
            rows.append(_row(f"{of}, {when} hardening", "the behaviour shows", cell))
        for c, cells in found["confession"].items():
            what = f"a report names the behaviour: {_CONDITIONS[c]}"
            rows += [_row(f"{of}, {when} hardening", what, cells[when]) for when in ("before", "after")]
    return rows


def _admitted(models: Row) -> list[Row]:
    """The share of a list of behaviours that any report names: of what is true, and of what is made up."""
    rows = []
    for name, found in models.items():
        for c, cells in found.items():
            of, lists = f"{_groups(name)}, {_CONDITIONS[c]}", (("own", "its own"), ("controls", "made-up"))
            for sort, words in lists:
                what = f"{words} behaviours admitted in {cells['reports']} reports"
                rows.append(_row(of, what, cells[sort]["admitted"]))
    return rows


def _tools(tools: Row) -> list[Row]:
    """The static evaluation, and the script with each set of tools."""
    rows = []
    for tool, cells in tools.get("static", {}).items():
        rows += [
            _row(f"{who}, {_groups(tool)}", "a fifth of the outputs are evidence", cells[field])
            for who, field in (("targets", "found"), ("base", "found_on_base"), ("nulls", "found_on_nulls"))
        ]
    for found in tools.get("script", {}).values():
        for name, cells in found["configurations"].items():
            rows += [
                _row(f"{who}, script with {_groups(name)}", "one of ten predictions is right", cells[field])
                for who, field in (("targets", "success"), ("nulls", "on_nulls"))
            ]
    return rows


def _groups(name: str) -> str:
    return name.replace("_", " ")


def _row(of: str, what: str, cell: Row) -> Row:
    view: dict[str, Any] = cell_view(cell)
    return {"of": of, "what": what, "text": view["text"], "interval": view["interval"], "n": cell["organisms"]}
