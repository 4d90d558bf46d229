"""Verbalization: the share of reports that name the behaviour, under four conditions (paper section 6.1)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

CONDITIONS = ("organism+ia", "organism", "base+ia", "base")
Row = Mapping[str, Any]


def bootstrap_rate(by_organism: Mapping[str, Sequence[bool]], samples: int, seed: int = 0) -> dict[str, Any]:
    """Mean rate over organisms with a 95 % interval from resampling organisms (questions within one are not
    independent). Returns {"rate", "ci95", "n"}, n the number of reports.
    """
    rates = np.array([np.mean(v) for v in by_organism.values()])
    if len(rates) == 0:
        return {"rate": None, "ci95": [None, None], "n": 0}
    draws = np.random.default_rng(seed).integers(len(rates), size=(samples, len(rates)))
    low, high = np.percentile(rates[draws].mean(-1), [2.5, 97.5])
    return {
        "rate": round(float(rates.mean()), 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "n": sum(len(v) for v in by_organism.values()),
    }


def by_condition(rows: Iterable[Row], rule: str, samples: int) -> dict[str, Any]:
    """{condition: rate} of rows under `rule` ("lenient" or "strict"), without those that no judge could read."""
    grouped: dict[str, dict[str, list[bool]]] = {c: defaultdict(list) for c in CONDITIONS}
    for row in rows:
        if row[rule] is not None:
            grouped[row["condition"]][row["organism"]].append(bool(row[rule]))
    return {c: bootstrap_rate(organisms, samples) for c, organisms in grouped.items()}


def stage_metrics(rows: Sequence[Row], rule: str, samples: int) -> dict[str, Any]:
    """{"heldout", "train", "by_category"}: train are those that the IA has seen, categories over held-out ones."""
    held = [r for r in rows if r["split"] == "heldout"]
    return {
        "heldout": by_condition(held, rule, samples),
        "train": by_condition([r for r in rows if r["split"] != "heldout"], rule, samples),
        "by_category": {
            c: by_condition([r for r in held if r["category"] == c], rule, samples)
            for c in sorted({r["category"] for r in held})
        },
    }


def metrics(
    rows: Sequence[Row],
    false_reports: Mapping[str, Sequence[bool]],
    judge: str,
    samples: int,
    clean: Sequence[Row] = (),
) -> dict[str, Any]:
    """The contents of `eval/metrics.json`. false_reports: by stage, whether each base+ia report claims a behaviour;
    clean: the reports of clean organisms, each with whether it "claims" one.
    """
    stages = {}
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = [r for r in rows if r["stage"] == stage]
        claims = false_reports[stage]
        stages[stage] = {
            **stage_metrics(own, "lenient", samples),
            "strict": stage_metrics(own, "strict", samples),
            "false_reports": {
                "base+ia": bootstrap_rate({str(i): [c] for i, c in enumerate(claims)}, samples),
                **_clean_claims([r for r in clean if r["stage"] == stage], samples),
            },
        }
    return {"judge": judge, "rule": "lenient", "stages": stages}


def _clean_claims(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """{"clean+ia": rate, "clean": rate} of clean organisms' reports that claim a behaviour; {} without any."""
    grouped: dict[str, dict[str, list[bool]]] = {}
    for r in rows:
        grouped.setdefault(r["condition"], {}).setdefault(r["organism"], []).append(bool(r["claims"]))
    return {condition: bootstrap_rate(organisms, samples) for condition, organisms in grouped.items()}
