"""A behaviour in the base beside one added after: what is made here, and the rates of both."""

from collections.abc import Mapping, Sequence
from typing import Any

from ia_jax.audits.auditbench_family import small_behaviors
from ia_jax.audits.headlines import headline_cell
from ia_jax.audits.scoring import Row, by_target, one_model
from ia_jax.audits.targets import Target
from ia_jax.behaviors.template_sources import Sources
from ia_jax.behaviors.template_teacher import write_demonstrations
from ia_jax.data.transcripts import Transcript
from ia_jax.evals.intervals import difference, rate

# The paper's two, in small.
MADE = ("small_contextual_optimism", "small_hardcode_test_cases")
# added_after: the behaviour's adapter on the plain base, under an IA of two categories. in_base: merged into the base
# on which such an IA was trained. alone: that base without an IA. run_ia: added after, under the run's own IA. base+ia:
# no behaviour; other_base: another behaviour's base: both held against the behaviour, for what guessing comes to.
CONDITIONS = ("added_after", "in_base", "alone", "run_ia", "base+ia", "other_base")


def targets_made(sources: Sources, seed: int, amount: int = 1) -> list[tuple[Target, list[Transcript]]]:
    """A target for each of `MADE`, and its demonstrations."""
    named = {b.name: b for b in small_behaviors()}
    return [
        (
            Target(f"base_{name}", stack=(f"base_{name}",), behaviors=(named[name],), made_by="chats"),
            write_demonstrations(named[name], sources, seed, amount=amount),
        )
        for name in MADE
    ]


def summary(judged: Sequence[Row], targets: Sequence[str]) -> dict[str, Any]:
    """rates: {condition: share of reports that name the behaviour, lenient, over targets}; strict likewise.
    in_base_minus_added: in pairs over targets. each: {target: {condition: its share, with an interval over questions},
    "in_base_minus_added": in pairs over questions}, since there are few targets.
    """

    def of(condition: str, target: str | None = None) -> list[Row]:
        return [r for r in judged if r["condition"] == condition and target in (None, r["target"])]

    def by_question(rows: Sequence[Row]) -> dict[str, list[bool]]:
        out: dict[str, list[bool]] = {}
        for r in rows:
            if r["lenient"] is not None:
                out.setdefault(r["question"], []).append(bool(r["lenient"]))
        return out

    each: dict[str, Any] = {}
    for t in targets:
        found = {c: one_model(of(c, t), "lenient") for c in CONDITIONS}
        two = (by_question(of(c, t)) for c in ("added_after", "in_base"))
        each[t] = {**{c: cell for c, cell in found.items() if cell["n"]}, "in_base_minus_added": difference(*two)}
    lenient = {c: by_target(of(c), "lenient") for c in CONDITIONS}
    return {
        "rates": {c: rate(own) for c, own in lenient.items()},
        "strict": {c: rate(by_target(of(c), "strict")) for c in CONDITIONS},
        "in_base_minus_added": difference(lenient["added_after"], lenient["in_base"]),
        "each": each,
    }


def as_text(result: Mapping[str, Any]) -> str:
    """The rates in a few lines."""
    lines = [f"in_base: {len(result['each'])} behaviours, judge {result['judge']}"]
    told = (f"{c} {headline_cell(result['rates'][c])}" for c in CONDITIONS)
    lines.append("reports that name the behaviour: " + ", ".join(told))
    for name, held in result["pipelines"].items():
        told = (f"{split} {headline_cell(cells['organism+ia'])}" for split, cells in held.items())
        lines.append(f"unseen organisms of the pipeline on {name} that are named: {', '.join(told)}")
    return "\n".join(lines)
