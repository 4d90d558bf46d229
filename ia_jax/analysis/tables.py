"""A run's files to the numbers, texts and rows that the page shows."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ia_jax.analysis.run_files import RunFiles
from ia_jax.analysis.words import STAGES, cell_view, finite, nice, percent, signed_points, titled
from ia_jax.behaviors.records import CATEGORIES
from ia_jax.evals.intervals import difference
from ia_jax.storage import Row

CONDITIONS = {
    "organism+ia": "Organism + adapter",
    "organism": "Organism alone",
    "base+ia": "Base + adapter",
    "base": "Base alone",
}
SPLITS = {
    "heldout": "held out",
    "unseen": "of another catalogue",
    "remade": "others of behaviours seen in SFT",
    "dpo": "kept for DPO",
    "train": "seen in SFT",
}
MAX_REPORTS = 50_000  # more would make the page too heavy to open; it then shows an evenly spaced choice and says so


def final_stage(metrics: Row) -> str:
    return "dpo" if "dpo" in metrics["stages"] else "sft"


def condition_groups(metrics: Row, split: str) -> list[Row]:
    """Bars of the chart condition x stage: one group per condition, one bar per stage, with strict for the table."""
    stages = [s for s in STAGES if s in metrics["stages"]]
    groups = []
    for condition, label in CONDITIONS.items():
        bars = []
        for stage in stages:
            values = metrics["stages"][stage]
            cell = values.get(split, {}).get(condition)
            strict = values.get("strict", {}).get(split, {}).get(condition)
            if cell:
                bars.append({"series": stage, "label": STAGES[stage]} | cell_view(cell) | {"strict": cell_view(strict)})
        if bars:
            groups.append({"label": label, "control": condition != "organism+ia", "organisms": 0, "bars": bars})
    return groups


def category_groups(metrics: Row, reports: Iterable[Row], stage: str) -> list[Row]:
    """Bars by category over held-out organisms with the adapter: lenient above strict, in the catalogue's order."""
    asked: dict[str, set[str]] = defaultdict(set)
    for r in reports:
        if (r["stage"], r["split"], r["condition"]) == (stage, "heldout", "organism+ia"):
            asked[r["category"]].add(r["organism"])
    values = metrics["stages"].get(stage, {})
    lenient, strict = values.get("by_category", {}), values.get("strict", {}).get("by_category", {})
    names = [c for c in CATEGORIES if c in lenient] + sorted(set(lenient) - set(CATEGORIES))
    groups = []
    for name in names:
        pairs = (("lenient", lenient.get(name, {})), ("strict", strict.get(name, {})))
        bars = [{"series": s, "label": s} | cell_view(c["organism+ia"]) for s, c in pairs if "organism+ia" in c]
        if bars:
            groups.append({"label": titled(name), "control": False, "organisms": len(asked[name]), "bars": bars})
    return groups


BASELINES = {
    "words": "The word said most",
    "words_of_three": "Best of three words",
    "retrieval": "Nearest training sentence",
    "nearest_organism": "Nearest training adapter",
    "few_shot": "Organism, with examples",
    "lens": "Logit lens",
    "shuffled": "Adapter, shuffled labels",
    "organism": "Organism alone",
    "base+ia": "Base + adapter",
}
GROUPS = {
    "all": "All held-out organisms",
    "unmentioned": "Whose demonstrations hold no word of it",
    "unseen": "Of another catalogue",
    "remade": "Others of behaviours seen in SFT",
}


def baseline_groups(metrics: Row, stage: str) -> list[tuple[str, str, list[Row], str]]:
    """(key, title, bars, how far the adapter goes beyond the best of them) for all held-out organisms and for those
    whose behaviour no demonstration names. The adapter's own bar comes first.
    """
    values = metrics["stages"].get(stage, {})
    with_ia = {
        "all": values.get("heldout", {}),
        "unmentioned": values.get("by_mention", {}).get("unmentioned", {}),
        "unseen": values.get("unseen", {}),
        "remade": values.get("remade", {}),
    }
    out = []
    for key, found in values.get("baselines", {}).items():
        rates = {name: found["rates"][name] for name in BASELINES if name in found["rates"]}
        bars = [("With the adapter", False, with_ia[key].get("organism+ia"))]
        bars += [(BASELINES[name], True, cell["lenient"]) for name, cell in rates.items()]
        groups = [
            {"label": label, "control": control, "organisms": cell.get("organisms", 0), "bars": [bar]}
            for label, control, cell in bars
            if cell
            for bar in [{"series": "lenient", "label": ""} | cell_view(cell)]
        ]
        out.append((key, GROUPS[key], groups, _beyond(found)))
    return out


def _beyond(found: Row) -> str:
    beyond = found.get("beyond")
    if not beyond:
        return ""
    low, high = map(signed_points, beyond["ci95"])
    best = BASELINES[found["best"]].lower()
    return f"{signed_points(beyond['difference'])} points ({low} to {high}) beyond the best of them, “{best}”"


PARTS = {
    "by_mention": "Demonstrations",
    "by_frame": "Sentence",
    "by_executed": "Behaviour check",
    "by_denial": "Denial",
    "by_kind": "Kind",
    "by_making": "Made by",
}


def part_rows(metrics: Row, stage: str) -> list[Row]:
    """Rates of held-out organisms with the adapter by what they may depend on; nothing for one part alone."""
    values = metrics["stages"].get(stage, {})
    rows = []
    for name, label in PARTS.items():
        parts, strict = values.get(name, {}), values.get("strict", {}).get(name, {})
        if len(parts) < 2:
            continue
        for part, cells in parts.items():
            cell = cells["organism+ia"]
            rows.append(
                {
                    "of": label,
                    "part": titled(part),
                    "organisms": cell.get("organisms", 0),
                    "named": cell_view(cell),
                    "strict": cell_view(strict.get(part, {}).get("organism+ia")),
                }
            )
    return rows


def clean_rows(metrics: Row, stage: str) -> list[Row]:
    """How often clean fine-tunes of each sort are said to have a behaviour."""
    sorts = metrics["stages"].get(stage, {}).get("false_reports", {}).get("by_sort", {})
    return [{"sort": titled(s), "organisms": c["organisms"], "claims": cell_view(c)} for s, c in sorts.items()]


def stage_difference(reports: Iterable[Row]) -> tuple[float, float] | None:
    """95 % interval of DPO minus SFT for held-out organisms with the adapter; None with fewer than two organisms.

    Over the organisms asked in both stages, in pairs, so that easy and hard organisms cancel.
    """
    answers: dict[str, dict[str, list[bool]]] = {stage: defaultdict(list) for stage in STAGES}
    for row in reports:
        judged = row["lenient"] is not None
        if judged and row["split"] == "heldout" and row["condition"] == "organism+ia" and row["stage"] in STAGES:
            answers[row["stage"]][row["organism"]].append(bool(row["lenient"]))
    found = difference(*answers.values())
    return None if found is None else (found["ci95"][0], found["ci95"][1])


def headline(metrics: Row, reports: Sequence[Row]) -> Row:
    """The numbers at the head of the page, for the last stage there is."""
    stage = final_stage(metrics)
    values = metrics["stages"][stage]
    held, strict = values.get("heldout", {}), values.get("strict", {}).get("heldout", {})
    main = [r for r in reports if (r["stage"], r["split"], r["condition"]) == (stage, "heldout", "organism+ia")]
    rates = [finite(metrics["stages"].get(s, {}).get("heldout", {}).get("organism+ia", {}).get("rate")) for s in STAGES]
    difference = None
    if rates[0] is not None and rates[1] is not None:
        interval = stage_difference(reports)
        difference = {
            "text": signed_points(rates[1] - rates[0]),
            "interval": " to ".join(map(signed_points, interval)) if interval else "",
            "sft": percent(rates[0]),
            "dpo": percent(rates[1]),
        }
    known = values.get("remade", {})
    return {
        "stage": STAGES[stage],
        "known": cell_view(known.get("organism+ia")),
        "known_alone": cell_view(known.get("organism")),
        "main": cell_view(held.get("organism+ia")),
        "organisms": len({r["organism"] for r in main}),
        "answers": len(main),
        "strict": cell_view(strict.get("organism+ia")),
        "organism": cell_view(held.get("organism")),
        "base_ia": cell_view(held.get("base+ia")),
        "base": cell_view(held.get("base")),
        "false": cell_view(values.get("false_reports", {}).get("base+ia")),
        "frame": cell_view(values.get("verbatim", {}).get("frame")),
        "false_clean": cell_view(values.get("false_reports", {}).get("clean+ia")),
        "difference": difference,
    }


def check_rows(checks: Iterable[Row]) -> list[Row]:
    """Behaviour checks, the flagged ones first."""
    rows = [
        {
            "organism": c["organism"],
            "category": titled(c.get("category") or ""),
            "with": cell_view({"rate": c.get("triggered_rate")}),
            "without": cell_view({"rate": c.get("untriggered_rate")}),
            "ok": bool(c.get("ok")),
        }
        for c in checks
    ]
    return sorted(rows, key=lambda r: (r["ok"], r["category"], r["organism"]))


def kept_out(run: RunFiles) -> str:
    """What became of the flagged organisms of the splits that are trained on; "" if there are none, or no config."""
    flagged = {c["organism"] for c in run.checks if not c.get("ok") and not c.get("left_out")}  # those had no adapter
    count = sum(b.get("split") in ("train", "dpo") and b["name"] in flagged for b in run.organisms)
    keep = run.config.get("config", {}).get("organisms", {}).get("keep_failed")
    if not count or keep is None:
        return ""
    saw = "was trained on" if keep else "never saw"
    return f"the adapter {saw} the {count:,} of them outside the held-out split"


def _pair_scores(scores: Any) -> tuple[float | None, float | None]:
    if isinstance(scores, dict):
        return finite(scores.get("chosen")), finite(scores.get("rejected"))
    if isinstance(scores, list | tuple) and len(scores) == 2:
        return finite(scores[0]), finite(scores[1])
    return None, None


def preference_kinds(preferences: Iterable[Row], examples: int = 2) -> list[Row]:
    """Pairs by kind, the most frequent first, each with a few examples of different organisms."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in preferences:
        kinds[str(row.get("kind"))].append(row)
    out = []
    for kind, rows in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        scores = [_pair_scores(r.get("scores")) for r in rows]
        means = [[v for s in scores if (v := s[i]) is not None] for i in (0, 1)]
        first = {r.get("organism"): i for i, r in reversed(list(enumerate(rows)))}
        picked = [rows[i] for i in sorted(first.values())[:examples]]
        out.append(
            {
                "kind": titled(kind),
                "count": len(rows),
                "organisms": len(first),
                "means": [nice(sum(m) / len(m)) if m else "–" for m in means],
                "examples": [
                    {k: str(r.get(k, "")) for k in ("organism", "question", "chosen", "rejected")}
                    | {"scores": [nice(s) if s is not None else None for s in _pair_scores(r.get("scores"))]}
                    for r in picked
                ],
            }
        )
    return out


def pack_reports(reports: Sequence[Row], behaviors: Iterable[Row]) -> Row:
    """The reports for the page's table: every text that repeats is stored once and named by its index."""
    triggers = {b["name"]: b.get("trigger") or "" for b in behaviors}
    chosen = reports
    if len(reports) > MAX_REPORTS:
        chosen = [reports[i] for i in np.linspace(0, len(reports) - 1, MAX_REPORTS).astype(int)]
    index: dict[str, int] = {}

    def text(value: Any) -> int:
        return index.setdefault("" if value is None else str(value), len(index))

    columns = ("stage", "split", "category", "condition", "organism", "question", "truth")
    rows = [
        [
            *(text(r.get(c)) for c in columns),
            text(triggers.get(r.get("organism", ""), "")),
            "" if r.get("report") is None else str(r["report"]),
            finite(r.get("score")),
            int(bool(r.get("lenient"))) + int(bool(r.get("strict"))),
        ]
        for r in chosen
    ]
    present = {c: {str(r.get(c)) for r in chosen} for c in ("stage", "split", "category", "condition")}
    words = {"stage": STAGES, "split": SPLITS, "condition": CONDITIONS, "category": {c: titled(c) for c in CATEGORIES}}
    options = {
        c: [[v, label] for v, label in known.items() if v in present[c]]
        + [[v, titled(v)] for v in sorted(present[c] - set(known))]
        for c, known in words.items()
    }
    return {"strings": list(index), "rows": rows, "options": options, "total": len(reports)}


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested configuration -> {"a.b": "text"}."""
    if isinstance(value, dict) and value:
        return {
            k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


def provenance(config: Row) -> Row:
    """config.json -> what the head and the footer show of it."""
    body = config.get("config", config)
    rest = {k: v for k, v in config.items() if k not in ("config", "versions")} if "config" in config else {}
    flat, about = flatten(body) if body else {}, flatten(rest) if rest else {}
    return {
        "base": flat.get("model.name", ""),
        "k": flat.get("organisms.parallel", ""),
        "commit": str(config.get("git_commit") or ""),
        "config": flat,
        "about": about,
        "versions": flatten(config["versions"]) if config.get("versions") else {},
    }
