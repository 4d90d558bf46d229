"""Finished calibrations as tables in Markdown: a column for each workdir, its figures beside trivial rules.

    .venv/bin/python benchmarks/calibration_table.py --ia=sft runs/demo runs/seed1

From `ia/<name>/calibration.json` and the claims in `evidence.jsonl` (`ia-jax calibrate`). Percent, but for AUROC and
calibration error; 95 % intervals over models. Two rules without any evidence stand beside it: a claim is believed if it
is one of the IA's training sentences word for word, and by the share of reports that make it (support) alone.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from demo_table import row, shown

from ia_jax.evals.calibration import auroc, measured
from ia_jax.evals.intervals import rate
from ia_jax.storage import read_appended, read_json
from ia_jax.workdir import Workdir, open_workdir

Cell = Mapping[str, Any]
PARTS = {
    "in_distribution": "unseen models, 5 folds",
    "left_out": "unseen categories and sorts, one at a time",
    "test": "the test: unseen splits and sorts",
}
NUMBERS = {"auroc": "AUROC", "expected_calibration_error": "expected calibration error", "brier": "Brier score"}
RATES = {
    "false_reports": "**clean fine-tunes with a report**",
    "wrong_reports": "organisms with a wrong one",
    "kept": "**right reports kept**",
    "found": "of all organisms, found",
    "unsure": "organisms with a claim of which it can't tell",
    "unsure_nulls": "clean fine-tunes with one",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax calibrate` has finished")
    parser.add_argument("--ia", default="sft", help="whose calibration (default: %(default)s)")
    args = parser.parse_args()
    runs = {str(run.config.seed): run for run in map(open_workdir, args.workdirs)}
    own = {s: read_json(r.ia_dir(args.ia) / "calibration.json", "run `ia-jax calibrate`") for s, r in runs.items()}
    figures = {s: c["figures"] for s, c in own.items()}
    head("of what", runs)
    row("organisms; clean fine-tunes; claims", [_made_of(c["made_of"]) for c in own.values()])
    row(
        "threshold; clean ones that it rests on",
        [f"{c['threshold']:.2f}; {len(c['null_scores'])}" for c in own.values()],
    )
    audits = {f"audits/{a}": f"the audit {a}" for f in figures.values() for a in f.get("audits", {})}
    for part, title in {**PARTS, **audits}.items():
        found = [_part(f, part) for f in figures.values()]
        if any(found):
            head(title, runs)
            quality(found)
    head("the share of each piece of evidence: AUROC, a category or sort left out, alone; without it", runs)
    for kind in dict.fromkeys(k for f in figures.values() for k in f["ablation"]):
        cells = [f["ablation"].get(kind, {}) for f in figures.values()]
        row(kind, [f"{plain(c.get('alone'))}; {plain(c.get('without'))}" for c in cells])
    head("risk of the most certain share of claims (unseen models, 5 folds)", runs)
    curves = [f["in_distribution"]["risk_coverage"]["curve"] for f in figures.values()]
    for points in zip(*curves, strict=True):
        row(f"{100 * points[0]['coverage']:.0f} % of claims", [shown(p["risk"]) for p in points])
    head("rules without evidence, over all models of the calibration and the test", runs)
    rules([claims(run, args.ia) for run in runs.values()], [trained(run, args.ia) for run in runs.values()])


def head(title: str, runs: Mapping[str, Workdir]) -> None:
    print(f"\n| {title} | " + " | ".join(f"seed {s}" for s in runs) + " |")
    print("|---|" + "---|" * len(runs))


def _made_of(made: Mapping[str, Any]) -> str:
    clean = f"{len(made['nulls'])} and {len(made['bank'])} that are compared with"
    return f"{len(made['organisms'])}; {clean}; {made['claims']}"


def _part(figures: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return figures.get("audits", {}).get(part.removeprefix("audits/"), {}) if "/" in part else figures.get(part, {})


def quality(found: Sequence[Mapping[str, Any]]) -> None:
    for name, title in NUMBERS.items():
        row(title, [plain(f.get(name)) for f in found])
    for name, title in RATES.items():
        if any(name in f for f in found):
            row(title, [shown(f.get(name)) for f in found])
    for within, title in (("by_sort", "clean: {}"), ("kept_by_split", "kept: {}")):
        for key in dict.fromkeys(k for f in found for k in f.get(within, {})):
            row(title.format(key), [shown(f.get(within, {}).get(key)) for f in found])
    if any(f.get("too_few") for f in found):
        row("left out of this: too few nulls without them", [", ".join(f.get("too_few", ())) or "–" for f in found])


def plain(cell: Cell | None) -> str:
    if not cell or cell["rate"] is None:
        return "–"
    low, high = cell["ci95"]
    return f"{cell['rate']:.2f} ({low:.2f}-{high:.2f})"


# ---------------------------------------------------------------------------------------------------------------------
# Trivial rules
# ---------------------------------------------------------------------------------------------------------------------


def claims(run: Workdir, ia: str) -> list[dict[str, Any]]:
    """{"model", "rows"} of every model whose claims were weighed, the last of each; not of audits' targets."""
    there = {r["model"]: r for r in read_appended(run.ia_dir(ia) / "evidence.jsonl", "")}
    found = read_json(run.ia_dir(ia) / "calibration.json", "")
    tested = found["figures"].get("test", {"organisms": {}, "nulls": {}})
    names = [n for part in (found["made_of"], tested) for kind in ("organisms", "nulls") for n in part[kind]]
    nulls = {*found["made_of"]["nulls"], *tested["nulls"]}
    return [{**there[n], "null": n in nulls} for n in names]


def trained(run: Workdir, ia: str) -> set[str]:
    return {w for n in run.seen(ia) if n in run.organisms for b in run.truths(n) for w in b.wordings}


def rules(models: Sequence[Sequence[Mapping[str, Any]]], sentences: Sequence[set[str]]) -> None:
    def verbatim(r: Mapping[str, Any], known: set[str]) -> float:
        return float(r["claim"] in known)

    def support(r: Mapping[str, Any], known: set[str]) -> float:
        return r["values"]["support"]

    scores: dict[str, Callable[[Mapping[str, Any], set[str]], float]] = {
        "is a training sentence": verbatim,
        "support": support,
    }
    for name, score in scores.items():
        cells = []
        for own, known in zip(models, sentences, strict=True):
            flat = [(m["model"], score(r, known), r["right"]) for m in own for r in m["rows"]]
            names, p, right = zip(*flat, strict=True)
            cells.append(plain(measured(auroc, np.array(p), np.array(right), list(names))))
        row(f"AUROC: {name}", cells)

    def any_verbatim(m: Mapping[str, Any], known: set[str], right: bool | None = None) -> bool:
        return any(r["claim"] in known and right in (None, r["right"]) for r in m["rows"])

    both = list(zip(models, sentences, strict=True))
    row(
        "clean fine-tunes with a training sentence",
        [shown(rate({m["model"]: [any_verbatim(m, k)] for m in own if m["null"]})) for own, k in both],
    )
    row(
        "right reports that are one",
        [
            shown(
                rate(
                    {
                        m["model"]: [any_verbatim(m, k, True)]
                        for m in own
                        if not m["null"] and any(r["right"] for r in m["rows"])
                    }
                )
            )
            for own, k in both
        ],
    )


if __name__ == "__main__":
    main()
