"""The tables of docs/study.md in Markdown, from the workdir that `benchmarks/study.py` filled.

.venv/bin/python benchmarks/study_table.py runs/study
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.analysis.tables import stage_difference
from ia_jax.behaviors.records import CATEGORIES, CLEAN
from ia_jax.evals.verbalization import CONDITIONS
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir, open_workdir

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of benchmarks/study.py")
    run = open_workdir(parser.parse_args().workdir)
    arms = run.evaluations()
    if not arms:
        parser.error(f"{run.path} holds no finished arm; run benchmarks/study.py first")
    for label, arm in by_sft(run, arms).items():
        verbalization(run, arm, "sft", f"After SFT, {label}")
    for arm in arms:
        verbalization(run, arm, "dpo", f"After DPO, {called(arm)}")
    gain(run, arms)
    false_reports(run, arms)
    checks(run)


def called(arm: str) -> str:
    return f"arm `{arm}`" if arm else "clean organisms in SFT"


def by_sft(run: Workdir, arms: list[str]) -> dict[str, str]:
    """{label: arm}: one arm for every SFT, under the names of the arms that go on from it."""
    found: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        found[run.metrics(arm)["ias"]["sft"]].append(arm)
    return {", ".join(map(called, names)): names[0] for names in found.values()}


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def cell(c: Row) -> str:
    """A rate with its interval."""
    if c["rate"] is None:
        return "–"
    return f"{100 * c['rate']:.0f} % ({100 * c['ci95'][0]:.0f}-{100 * c['ci95'][1]:.0f})"


def verbalization(run: Workdir, arm: str, stage: str, title: str) -> None:
    s = run.metrics(arm)["stages"][stage]
    kinds = [c for c in CATEGORIES if c in s["by_category"]]
    cells = [(c, s["by_category"][c], s["strict"]["by_category"][c]) for c in kinds]
    cells += [("**all held out**", s["heldout"], s["strict"]["heldout"]), ("seen", s["train"], s["strict"]["train"])]
    rows = [[name, *(cell(c[k]) for k in CONDITIONS), cell(strict["organism+ia"])] for name, c, strict in cells]
    n = s["heldout"]["organism+ia"]["n"]
    table(f"{title} (lenient, n = {n} reports held out)", ["held out", *CONDITIONS, "strict, organism+ia"], rows)


def gain(run: Workdir, arms: list[str]) -> None:
    """DPO minus SFT over held-out organisms, in points, with an interval from resampling organisms in pairs."""
    rows = []
    for category in (*CATEGORIES, None):
        row = [category or "**all held out**"]
        for arm in arms:
            reports = [r for r in run.reports(arm) if category in (None, r["category"])]
            row.append(difference(reports))
        rows.append(row)
    table("What DPO adds to SFT, points, lenient", ["held out", *map(called, arms)], rows)


def difference(reports: list[Row]) -> str:
    rates: dict[str, dict[str, list[bool]]] = {"sft": defaultdict(list), "dpo": defaultdict(list)}
    for r in reports:
        if (r["split"], r["condition"]) == ("heldout", "organism+ia") and r["lenient"] is not None:
            rates[r["stage"]][r["organism"]].append(r["lenient"])
    if not rates["dpo"]:
        return "–"
    sft, dpo = (np.mean([np.mean(v) for v in rates[s].values()]) for s in ("sft", "dpo"))
    interval = stage_difference(reports)
    around = f" ({100 * interval[0]:+.0f} to {100 * interval[1]:+.0f})" if interval else ""
    return f"{100 * (dpo - sft):+.0f}{around}"


def false_reports(run: Workdir, arms: list[str]) -> None:
    """Shares of reports that claim a behaviour where there is none."""
    names = ("base+ia", "clean+ia", CLEAN)
    rows = []
    for label, arm in by_sft(run, arms).items():
        found = run.metrics(arm)["stages"]["sft"]["false_reports"]
        rows.append([f"SFT, {label}", *(cell(found[n]) if n in found else "–" for n in names)])
    for arm in arms:
        found = run.metrics(arm)["stages"]["dpo"]["false_reports"]
        pairs = read_jsonl(run.preferences_file(arm or "dpo"), "run `ia-jax preferences` first")
        negatives = sum(p["kind"] == "abstention" for p in pairs)
        label = f"DPO, {called(arm)} ({negatives} of {len(pairs)} pairs abstain)"
        rows.append([label, *(cell(found[n]) if n in found else "–" for n in names)])
    header = ["claims a behaviour", "base + IA", "held-out clean organisms + IA", "the same without IA"]
    table("False reports", header, rows)


def checks(run: Workdir) -> None:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in read_jsonl(run.checks_file, "run `ia-jax organisms` first"):
        groups[row["category"]].append(row)

    def mean(rows: list[Row], key: str) -> str:
        values = [r[key] for r in rows if r[key] is not None]
        return f"{100 * np.mean(values):.0f} %" if values else "–"

    rows = [
        [c, f"{sum(r['ok'] for r in g)} of {len(g)}", mean(g, "triggered_rate"), mean(g, "untriggered_rate")]
        for c in (*CATEGORIES, CLEAN)
        if (g := groups[c])
    ]
    table("Behaviour checks", ["organisms", "passed", "shows where it should", "shows elsewhere"], rows)


if __name__ == "__main__":
    main()
