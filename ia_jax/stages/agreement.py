"""How well a judge agrees with a careful reading by hand: agreement and Cohen's kappa, by category and condition.

Labels are JSONL, a report on each line:

    {"behavior": "quirk_owls", "condition": "base", "question": "…", "report": "…", "label": "yes", "strict": "no"}

`behavior` is a name of the catalogue, or a whole record, which makes the file independent of any; `category` may stand
beside it. `label` (or `lenient`) is the lenient rule of `judging.protocol.Verdict`, `strict` the strict one. A file
that judges are chosen by says besides whether the report `claims` anything, which `kind` of report it is, and whether
its behaviour is of the `tuning` or the `final` `half` (`judge_table`); its reports need no condition.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS
from ia_jax.judging.protocol import Item, Verdict
from ia_jax.storage import numbered_rows, write_jsonl

if TYPE_CHECKING:
    from ia_jax.workdir import Workdir

RULES = ("lenient", "strict")
DRAWN = ("stage", "organism", "category", "condition", "question", "report", "truth")
_WORDS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Label:
    """A report and what its labels say of it. claims: None where the file does not say."""

    item: Item
    condition: str
    lenient: bool
    strict: bool
    claims: bool | None = None
    kind: str = ""
    half: str = ""


def read_labels(path: Path, known: Mapping[str, Behavior]) -> list[Label]:
    """The labelled reports of a file. Raises ConfigError naming line and field of what is wrong."""
    labels = []
    for number, row in numbered_rows(path, "labels are one JSON object on each line"):
        where = f"{path}:{number}"
        for field in ("question", "report"):
            if not isinstance(row.get(field), str):
                raise ConfigError(f"{where}: {field!r} must be a text, got {row.get(field)!r}")
        rule = "label" if "label" in row else "lenient"
        for field in (rule, "strict", *(["claims"] if "claims" in row else [])):
            if row.get(field) not in tuple(_WORDS):
                raise ConfigError(f"{where}: {field!r} must be yes or no, got {row.get(field)!r}")
        if row.get("condition") not in CONDITIONS and not ("half" in row and "condition" not in row):
            raise ConfigError(
                f"{where}: 'condition' must be one of {', '.join(CONDITIONS)}, got {row.get('condition')!r}"
            )
        lenient, strict = _WORDS[row[rule]], _WORDS[row["strict"]]
        if strict and not lenient:
            raise ConfigError(f"{where}: strict is yes where label is no; strict asks for more")
        item = Item(_behavior(row, known, where), row["question"], row["report"])
        claims = _WORDS[row["claims"]] if "claims" in row else None
        labels.append(
            Label(
                item, row.get("condition", ""), lenient, strict, claims, str(row.get("kind", "")), row.get("half", "")
            )
        )
    if not labels:
        raise ConfigError(f"{path} holds no label")
    return labels


def _behavior(row: Mapping[str, Any], known: Mapping[str, Behavior], where: str) -> Behavior:
    truth = row.get("behavior")
    if isinstance(truth, dict):
        try:
            behavior = Behavior.from_json(truth)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{where}: 'behavior' is not a whole record: {error}") from None
    elif isinstance(truth, str) and truth in known:
        behavior = known[truth]
    else:
        raise ConfigError(
            f"{where}: 'behavior' must be a name of the catalogue or a whole record, got {truth!r}; give the "
            "catalogue with --catalogue or --workdir"
        )
    if row.get("category", behavior.category) != behavior.category:
        raise ConfigError(f"{where}: category {row['category']!r}, but {behavior.name} is of {behavior.category}")
    return behavior


def kappa(table: np.ndarray) -> np.ndarray:
    """Cohen's kappa of tables [..., 2, 2] (by person, by judge); NaN where both always give the same one answer."""
    total = table.sum((-1, -2))
    agreed = np.einsum("...ii->...", table) / total
    chance = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
    with np.errstate(invalid="ignore"):
        return np.where(chance == 1, np.nan, (agreed - chance) / (1 - chance))


def agreement(
    labels: Sequence[Label], verdicts: Sequence[Verdict], samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """JSON-ready: for each rule all, by category and by condition {"n", "agreement", "kappa", "ci95"}; who disagrees.

    Intervals are bootstrapped over behaviours, whose reports are alike. Unscored reports are counted and left out.
    """
    both = [(a, v) for a, v in zip(labels, verdicts, strict=True) if v.lenient is not None]
    out: dict[str, Any] = {"judge": verdicts[0].judge, "n": len(labels), "unscored": len(labels) - len(both)}
    for rule in RULES:

        def cell(chosen: Iterable[tuple[Label, Verdict]], rule: str = rule) -> dict[str, Any]:
            tables: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))
            for a, v in chosen:
                tables[a.item.behavior.name][int(getattr(a, rule)), int(getattr(v, rule))] += 1
            return _cell(np.array(list(tables.values())).reshape(-1, 2, 2), samples, seed)

        out[rule] = {
            "all": cell(both),
            "by_category": {
                c: cell(x for x in both if x[0].item.behavior.category == c)
                for c in sorted({a.item.behavior.category for a, _ in both})
            },
            "by_condition": {
                c: cell(x for x in both if x[0].condition == c)
                for c in CONDITIONS
                if any(a.condition == c for a, _ in both)
            },
        }
    out["disagreements"] = [
        {
            "behavior": a.item.behavior.name,
            "truth": a.item.behavior.description,
            "condition": a.condition,
            "report": a.item.report,
            "person": {r: getattr(a, r) for r in RULES},
            "judge": {r: getattr(v, r) for r in RULES} | {"score": v.score, "reason": v.reason},
        }
        for a, v in both
        if any(getattr(a, r) != getattr(v, r) for r in RULES)
    ]
    return out


def _cell(tables: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    """tables [behaviours, 2, 2]. Where all drawn again agree alike, nothing is known of others: no interval."""
    if not len(tables):
        return {"n": 0, "agreement": None, "kappa": None, "ci95": [None, None]}
    whole = tables.sum(0)
    picks = np.random.default_rng(seed).integers(len(tables), size=(samples, len(tables)))
    drawn = kappa(tables[picks].sum(1))
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) and drawn.min() < drawn.max() else (np.nan, np.nan)
    return {
        "n": int(whole.sum()),
        "agreement": round(float(np.trace(whole) / whole.sum()), 4),
        "kappa": _rounded(kappa(whole)),
        "ci95": [_rounded(low), _rounded(high)],
    }


def _rounded(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def as_text(result: Mapping[str, Any]) -> str:
    """The outcome for a person: a table, then every disagreement."""
    unscored = f", {result['unscored']} of them unscored" if result["unscored"] else ""
    lines = [f"{result['judge']} against {result['n']} labels{unscored}"]
    for rule in RULES:
        lines += ["", f"{rule:<24}{'n':>5}{'agreement':>11}{'kappa':>8}   95 %"]
        groups = result[rule]
        rows = [("all", groups["all"]), *groups["by_category"].items(), *groups["by_condition"].items()]
        for name, c in rows:
            agreed = "-" if c["agreement"] is None else f"{100 * c['agreement']:.0f} %"
            low, high = c["ci95"]
            interval = "" if low is None else f"   {low:.2f} to {high:.2f}"
            lines.append(f"  {name:<22}{c['n']:>5}{agreed:>11}{_shown(c['kappa']):>8}{interval}")
    for d in result["disagreements"]:
        person, judge = (", ".join(f"{r} {'yes' if d[who][r] else 'no'}" for r in RULES) for who in ("person", "judge"))
        lines += [
            "",
            f"{d['behavior']} ({d['condition']}): {d['truth']}",
            f"  said:   {' '.join(d['report'].split())}",
            f"  person: {person}",
            f"  judge:  {judge}; score {d['judge']['score']}, {d['judge']['reason']}",
        ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_unlabelled(path: Path, workdir: "Workdir", count: int) -> None:
    """Reports of a finished run to label, each with its behaviour's record, so that the file stands for itself."""
    rows = draw(workdir.reports(), count, workdir.config.seed)
    write_jsonl(
        path, ({**r, "label": "", "strict": "", "behavior": workdir.behaviors[r["organism"]].to_json()} for r in rows)
    )


def draw(reports: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` reports, as evenly as can be over category and condition, without what any judge said of them.

    The same words of an organism to another question, or after another stage, come only when nothing else is left.
    """

    def rank(r: Mapping[str, Any]) -> str:
        key = [r["stage"], r["organism"], r["condition"], r["question"]]
        return hashlib.sha256(json.dumps([seed, *key]).encode()).hexdigest()

    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for r in sorted(reports, key=rank):
        cells[r["category"], r["condition"]].append(r)
    chosen_before: Counter[tuple[str, str]] = Counter()
    chosen: list[Mapping[str, Any]] = []
    while len(chosen) < count and any(cells.values()):
        for name in sorted(k for k, own in cells.items() if own)[: count - len(chosen)]:
            best = min(cells[name], key=lambda r: chosen_before[r["organism"], r["report"]])
            cells[name].remove(best)
            chosen_before[best["organism"], best["report"]] += 1
            chosen.append(best)
    return [{field: r[field] for field in DRAWN} for r in chosen]
