"""What an audit found, for a person: rates with their intervals in a few lines."""

from collections.abc import Mapping
from typing import Any

from ia_jax.audits.asking import CONDITIONS


def headline_cell(c: Mapping[str, Any]) -> str:
    """A rate in per cent with its interval; "-" without one."""
    if c["rate"] is None:
        return "-"
    low, high = c["ci95"]
    return f"{100 * c['rate']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def headline(result: Mapping[str, Any]) -> str:
    """The result in a few lines: rates with their intervals, and the false side."""
    cell = headline_cell
    v, counts = result["verbalization"], result["targets"]
    nulls = counts["clean"] + counts["pipeline"]
    lines = [
        f"{result['family']}: {counts['targets']} targets, {counts['silent']} that do not show it, {nulls} nulls",
        f"judge {result['judge']}, scaffold {result['ranked_by']}",
        "reports that name the behaviour: " + ", ".join(f"{c} {cell(v[c])}" for c in CONDITIONS),
        "the same behaviours in other models' reports, with the IA: "
        + ", ".join(f"{sort} {cell(result['strangers'][sort])}" for sort in ("nulls", "others")),
    ]
    for condition, s in result["scaffold"].items():
        line = f"scaffold, {condition}: success {cell(s['success'])}, on nulls {cell(s['success_of_nulls'])}"
        line += f", precision {cell(s['precision'])}"
        lines.append(f"{line}; nulls with a false prediction {cell(s['nulls_with_a_false_prediction'])}")
    for sort, own in result.get("claims", {}).items():
        rates = own["rates"][CONDITIONS[0]]
        lines.append(f"claims of {sort} with the IA: " + ", ".join(f"{g} {cell(c)}" for g, c in rates.items()))
    for name, found in result.get("admissions", {}).items():
        told = (
            f"{c} {cell(found[c]['own']['admitted'])} of its own, {cell(found[c]['controls']['admitted'])} made up"
            for c in CONDITIONS[:2]
        )
        lines.append(f"{name}, behaviours admitted: {'; '.join(told)}")
    return "\n".join(lines)
