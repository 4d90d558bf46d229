"""Several finished demo runs as one table in Markdown: how well the IA does, and how much of it is luck.

.venv/bin/python benchmarks/demo_table.py runs/seed1547 runs/seed1 runs/seed2
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ia_jax.evals.verbalization import CONDITIONS
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir, open_workdir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    runs = [open_workdir(w) for w in parser.parse_args().workdirs]
    names = [f"seed {run.config.seed}" for run in runs]
    print("| held out | " + " | ".join([*names, "mean"]) + " |")
    print("|---|" + "---|" * (len(runs) + 1))
    metrics = [run.metrics()["stages"] for run in runs]
    for stage in metrics[0]:
        for category in metrics[0][stage]["by_category"]:
            cells = [m[stage]["by_category"][category]["organism+ia"]["rate"] for m in metrics]
            row(f"{category}, after {stage.upper()}", cells)
        row(f"**all, after {stage.upper()}**", [m[stage]["heldout"]["organism+ia"]["rate"] for m in metrics])
        row("strict (trigger too)", [m[stage]["strict"]["heldout"]["organism+ia"]["rate"] for m in metrics])
        for control in CONDITIONS[1:]:
            row(f"control: {control}", [m[stage]["heldout"][control]["rate"] for m in metrics])
        row("base+ia claims something", [m[stage]["false_reports"]["base+ia"]["rate"] for m in metrics])
    row("organisms that pass their behaviour check", [passed(run) for run in runs])
    print(json.dumps({n: {s: m[s]["heldout"]["organism+ia"] for s in m} for n, m in zip(names, metrics, strict=True)}))


def row(label: str, cells: list[Any]) -> None:
    mean = sum(cells) / len(cells)
    print(f"| {label} | " + " | ".join(f"{100 * c:.0f} %" for c in [*cells, mean]) + " |")


def passed(run: Workdir) -> float:
    rows = read_jsonl(Path(run.checks_file), "run `ia-jax organisms` first")
    return sum(bool(r["ok"]) for r in rows) / len(rows)


if __name__ == "__main__":
    main()
