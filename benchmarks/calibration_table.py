"""Finished calibrations as tables in Markdown: a column for each workdir, its figures beside trivial rules.

    .venv/bin/python benchmarks/calibration_table.py --ia=sft runs/demo runs/seed1

From `ia/<name>/calibration.json` and the claims in `evidence.jsonl` (`ia-jax calibrate`). Percent, but for AUROC and
calibration error; 95 % intervals over behaviours and clean fine-tunes. Two rules stand beside it, over the same models:
a claim is believed if it is one of the IA's training sentences, and by the share of reports that make it alone, with a
threshold made in the same way.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from demo_table import row, shown

from ia_jax.audits.evidence.calibrating import calibrate
from ia_jax.audits.evidence.calibration import Calibration, Row
from ia_jax.behaviors.frames import words_of
from ia_jax.evals.calibration import auroc, measured
from ia_jax.evals.intervals import rate
from ia_jax.stages.calibrate import descriptions
from ia_jax.stages.context import Context
from ia_jax.storage import read_appended, read_json
from ia_jax.workdir import Workdir, open_workdir

Cell = Mapping[str, Any]
PARTS = {
    "in_distribution": "unseen models, 5 folds",
    "left_out": "unseen categories and sorts, one at a time",
    "test": "the test: unseen splits and sorts, and clean ones of these splits",
}
NUMBERS = {
    "auroc": "AUROC",
    "auroc_organisms": "AUROC among organisms' claims",
    "expected_calibration_error": "expected calibration error",
    "brier": "Brier score",
}
RATES = {
    "right": "claims that are right",
    "false_reports": "**clean fine-tunes with a report**",
    "false_reports_other_sorts": "those of sorts that it never saw",
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
    runs = {run.path.name: run for run in map(open_workdir, args.workdirs)}
    if len(runs) < len(args.workdirs):
        parser.error("two workdirs have one name; columns go by it")
    own = {s: Calibration.load(r.ia_dir(args.ia) / "calibration.json") for s, r in runs.items()}
    figures = {s: c.figures for s, c in own.items()}
    head("of what", runs)
    row("organisms; clean fine-tunes; claims", [_made_of(c.made_of) for c in own.values()])
    row(
        "threshold; clean ones that it rests on",
        [f"{c.threshold:.2f}; {len(c.null_scores)}" for c in own.values()],
    )
    audits = {f"audits/{a}": f"the audit {a}" for f in figures.values() for a in f.get("audits", {})}
    for part, title in {**PARTS, **audits}.items():
        found = [_part(f, part) for f in figures.values()]
        if any(found):
            head(title, runs)
            quality(found)
    head("each piece of evidence: AUROC, a category or sort left out, alone; without it", runs)
    for kind in dict.fromkeys(k for f in figures.values() for k in f["ablation"]):
        cells = [f["ablation"].get(kind, {}) for f in figures.values()]
        row(kind, [f"{plain(c.get('alone'))}; {plain(c.get('without'))}" for c in cells])
    head("risk of the most certain share of claims (unseen models, 5 folds)", runs)
    curves = [f["in_distribution"]["risk_coverage"]["curve"] for f in figures.values()]
    for points in zip(*curves, strict=True):
        row(f"{100 * points[0]['coverage']:.0f} % of claims", [shown(p["risk"]) for p in points])
    head("rules, over the models of the calibration", runs)
    rules([read_rows(run, own[name]) for name, run in runs.items()], list(own.values()), list(runs.values()))


def head(title: str, runs: Mapping[str, Workdir]) -> None:
    print(f"\n| {title} | " + " | ".join(runs) + " |")
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
    for within, title in (("by_sort", "clean: {}"), ("kept_by", "kept: {}")):
        for key in dict.fromkeys(k for f in found for k in f.get(within, {})):
            row(title.format(key), [shown(f.get(within, {}).get(key)) for f in found])
    if any(f.get("too_few") for f in found):
        # Folds have numbers for names.
        cells = [[n if not n.isdigit() else f"fold {int(n) + 1} of 5" for n in f.get("too_few", ())] for f in found]
        row("left out of reports, since too few clean ones would be left", [", ".join(c) or "–" for c in cells])


def plain(cell: Cell | None) -> str:
    if not cell or cell["rate"] is None:
        return "–"
    low, high = cell["ci95"]
    return f"{cell['rate']:.2f} ({low:.2f}-{high:.2f})"


def read_rows(run: Workdir, calibration: Calibration) -> list[Row]:
    """The claims that a calibration was made of. Raises SystemExit where `evidence.jsonl` is of another by now."""
    home, made = run.ia_dir(calibration.ia), calibration.made_of
    if read_json(home / "evidence.json", "run `ia-jax calibrate`")["bank_hashes"] != made["bank_hashes"]:
        raise SystemExit(f"{home}: evidence.jsonl is of another calibration by now; run `ia-jax calibrate` again")
    there = {r["model"]: r["rows"] for r in read_appended(home / "evidence.jsonl", "")}
    groups = {**made["organisms"], **made["nulls"]}
    return [Row(**{**row, "group": g, "null": n in made["nulls"]}) for n, g in groups.items() for row in there[n]]


def made_anew(rows: Sequence[Row], calibration: Calibration, category: str = "", **options: Any) -> Calibration:
    """The calibration from its own claims (`read_rows`) without a category's organisms. options: of `calibrate`."""
    organisms = calibration.made_of["organisms"]
    return calibrate(
        [r for r in rows if r.null or r.group != category],
        {n: c for n, c in organisms.items() if c != category},
        calibration.made_of["nulls"],
        alpha=calibration.alpha,
        identity={k: getattr(calibration, k) for k in ("ia", "ia_hash", "base", "base_fingerprint")},
        made_of={},
        alike=calibration.made_of["alike"],
        **options,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Trivial rules
# ---------------------------------------------------------------------------------------------------------------------


def rules(rows: Sequence[list[Row]], calibrations: Sequence[Calibration], runs: Sequence[Workdir]) -> None:
    """What a training sentence and the support alone come to."""
    alike = [c.made_of["alike"] for c in calibrations]
    names = [[a.get(r.model, r.model) for r in own] for own, a in zip(rows, alike, strict=True)]
    right = [np.array([r.right for r in own]) for own in rows]
    said = [
        np.array([float(words_of(r.claim) in told) for r in own])
        for own, told in zip(rows, map(sentences, runs, (c.ia for c in calibrations)), strict=True)
    ]
    row(
        "AUROC: it is a training sentence",
        [plain(measured(auroc, *x)) for x in zip(said, right, names, strict=True)],
    )
    for title, null, wanted in (
        ("clean fine-tunes with one, of those with a claim", True, (True, False)),
        ("right reports that are one", False, (True,)),
    ):
        cells = []
        for own, verbatim, a in zip(rows, said, alike, strict=True):
            of = {r.model for r in own if r.null is null and r.right in wanted}
            told = {r.model for r, v in zip(own, verbatim, strict=True) if v and r.right in wanted}
            by: dict[str, list[bool]] = {}
            for m in of:
                by.setdefault(a.get(m, m), []).append(m in told)
            cells.append(shown(rate(by)))
        row(title, cells)
    alone = [
        made_anew(own, c, kinds=("support",)).figures["in_distribution"]
        for own, c in zip(rows, calibrations, strict=True)
    ]
    row("AUROC: support alone, 5 folds", [plain(f["auroc"]) for f in alone])
    for name in ("false_reports", "wrong_reports", "kept"):
        row(f"support alone: {RATES[name].strip('*')}", [shown(f[name]) for f in alone])


def sentences(run: Workdir, ia: str) -> set[tuple[str, ...]]:
    """What the IA was trained to say of organisms, as `ia_jax.judging.verbatim` compares it."""
    return {words_of(w) for w in descriptions(Context(run, run.config), ia)}


if __name__ == "__main__":
    main()
