"""Several finished demo runs as tables in Markdown: every rate over the seeds, beside its baselines, with intervals.

    .venv/bin/python benchmarks/demo_table.py runs/seed1547 runs/seed1 runs/seed2
    .venv/bin/python benchmarks/demo_table.py --name=nearest runs/seed1547 …      # of `ia-jax eval --name=nearest`

One table for other fine-tunes of known behaviours (`remade`), one for behaviours that no training saw. Percent, 95 %
intervals: of one seed over its organisms, of all over seeds and organisms (`ia_jax/evals/intervals.py`).
"""

import argparse
from pathlib import Path
from typing import Any

from ia_jax.analysis.tables import BASELINES
from ia_jax.evals.intervals import Cell
from ia_jax.evals.verbalization import WITH_IA
from ia_jax.storage import read_jsonl
from ia_jax.studies.figures import Reports, arm_figures, named, over_seeds, reports_of
from ia_jax.workdir import Workdir, open_workdir

TITLES = {"remade": "other fine-tunes of known behaviours", "heldout": "behaviours that no training saw"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    parser.add_argument("--name", default="", help="of the evaluation")
    args = parser.parse_args()
    runs = {str(run.config.seed): run for run in map(open_workdir, args.workdirs)}
    stages = list(next(iter(runs.values())).metrics(args.name)["stages"])
    reports = {stage: {s: reports_of(run, stage, args.name) for s, run in runs.items()} for stage in stages}
    for split, title in TITLES.items():
        print(f"\n| {title} | " + " | ".join(f"seed {s}" for s in runs) + " | all |")
        print("|---|" + "---|" * (len(runs) + 1))
        for stage, seeds in reports.items():
            columns = [arm_figures({s: own}, {}, split) for s, own in seeds.items()] + [arm_figures(seeds, {}, split)]
            table(stage, split, columns, seeds)
        without_ia(columns, split)
    row("organisms that pass their check", [passed(run) for run in runs.values()])


def table(stage: str, split: str, columns: list[dict[str, Any]], seeds: dict[str, Reports]) -> None:
    after = f"after {stage.upper()}"
    row(f"**named, {after}**", [shown(c["lenient"]) for c in columns])
    row(f"strict, {after}", [shown(c["strict"]) for c in columns])
    row(f"beyond the best baseline, {after}", [beyond(c) for c in columns])
    for shows, label in ((True, "shows its behaviour"), (False, "does not show it")):
        row(f"{label}, {after}", over(seeds, lambda r, shows=shows: r["executed"] is shows, split))
    for category in columns[-1]["by_category"]:
        row(f"{category}, {after}", [shown(c["by_category"].get(category)) for c in columns])
    if split == "heldout":
        row(f"trained on, {after}", [shown(c["seen"]) for c in columns])
        row(f"false: clean fine-tunes, {after}", [shown(c.get("false_claims")) for c in columns])
        row(f"no word of it in the data, {after}", over(seeds, lambda r: r["unmentioned"]))
        row(f"no training sentence has its frame, {after}", over(seeds, lambda r: r.get("framed") is False))
    row(f"base + IA, {after}", [shown(c["controls"]["base+ia"]) for c in columns])
    row(f"a training sentence, {after}", over(seeds, lambda _: True, split, "frame"))


def without_ia(columns: list[dict[str, Any]], split: str) -> None:
    row("organism alone", [shown(c["controls"]["organism"]) for c in columns])
    row("base alone", [shown(c["controls"]["base"]) for c in columns])
    for name in columns[-1]["baselines"]:
        row(BASELINES.get(name, name).lower(), [shown(c["baselines"].get(name)) for c in columns])
    if split == "heldout":
        row("false: clean fine-tunes without IA", [shown(c.get("claims_alone")) for c in columns])


def over(seeds: dict[str, Reports], within: Any, split: str = "heldout", what: str = "lenient") -> list[str]:
    """Of each seed and of all: the rate of what is said with the IA."""

    def own(r: dict[str, Any]) -> bool:
        return r["split"] == split and r["condition"] == WITH_IA and within(r)

    found = named(seeds, "reports", what, own)
    return [shown(over_seeds({s: v})) for s, v in found.items()] + [shown(over_seeds(found))]


def shown(cell: Cell | None) -> str:
    if cell is None or cell["rate"] is None:
        return "–"
    low, high = cell["ci95"]
    return f"{100 * cell['rate']:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def beyond(column: dict[str, Any]) -> str:
    cell = column["beyond"]
    if cell is None:
        return "–"
    return f"{points(cell)}, {BASELINES.get(column['best'], column['best']).lower()}"


def points(cell: Any) -> str:
    """A difference in pairs (`intervals.difference`), with its interval."""
    low, high = cell["ci95"]
    return f"{100 * cell['difference']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def row(label: str, cells: list[str]) -> None:
    print(f"| {label} | " + " | ".join(cells) + " |")


def passed(run: Workdir) -> str:
    rows = read_jsonl(Path(run.checks_file), "run `ia-jax organisms` first")
    return f"{sum(bool(r['ok']) for r in rows)} of {len(rows)}"


if __name__ == "__main__":
    main()
