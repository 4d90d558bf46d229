"""IAs that were trained without some categories, beside the one that was trained with all: what is still named?

    ia-jax sft  --config=RECIPE --workdir=runs/without_roles '--config.sft.categories=(…)'     # in a copy without ia/
    ia-jax eval --config=RECIPE --workdir=runs/without_roles
    .venv/bin/python benchmarks/left_out.py runs/demo runs/without_roles runs/without_…

The first workdir is the run with all categories. Which ones a later one lacks is read off the organisms that its SFT
read. After SFT, with the IA: `remade` organisms (of behaviours that the full training has) and held-out ones (of none),
of left-out categories and of those that stayed, under the IA without and under the full one; differences are in pairs
over the same organisms. Percent, 95 % intervals over organisms; an organism that stayed in several trainings counts
once, with all its reports.
"""

import argparse
from collections import defaultdict

from demo_table import TITLES, points, row, shown

from ia_jax.evals.intervals import difference, rate
from ia_jax.evals.verbalization import WITH_IA
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir, open_workdir

Named = dict[str, list[bool]]  # {organism: for each report whether it names the behaviour}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", help="workdir in which `ia-jax run` has finished, with all categories")
    parser.add_argument("without", nargs="+", help="copies of it whose IA was trained without some")
    args = parser.parse_args()
    full = open_workdir(args.full)
    runs = {run: left_out(run) for run in map(open_workdir, args.without)}
    for run, categories in runs.items():
        print(f"{run.path.name}: without {', '.join(sorted(categories))}")
    print("\n| of 100 answers, named | organisms | without the category | with all | difference, in pairs | alone |")
    print("|---|---|---|---|---|---|")
    for split, title in TITLES.items():
        for left in (True, False):
            mine: Named = defaultdict(list)
            for run, categories in runs.items():
                for organism, said in named(run, split, WITH_IA, categories, left).items():
                    mine[organism] += said
            theirs = {o: v for o, v in named(full, split, WITH_IA).items() if o in mine}
            alone = {o: v for o, v in named(full, split, "organism").items() if o in mine}
            cells = [shown(rate(mine)), shown(rate(theirs)), points(difference(theirs, mine)), shown(rate(alone))]
            row(f"{title}, {'left out' if left else 'others'}", [str(len(mine)), *cells])


def left_out(run: Workdir) -> set[str]:
    """The categories of the train split that the IA of `run` has not read."""
    every = {run.organisms[n].category for n in run.named("train")}
    return every - {run.organisms[n].category for n in run.seen("sft")}


def named(
    run: Workdir, split: str, condition: str, categories: frozenset[str] | set[str] = frozenset(), inside: bool = False
) -> Named:
    """What is named after SFT by organisms of these categories (inside) or of all others."""
    out: Named = defaultdict(list)
    for r in read_jsonl(run.reports_file(), "run `ia-jax eval` first"):
        own = (r["stage"], r["split"], r["condition"]) == ("sft", split, condition)
        if own and (r["category"] in categories) is inside:
            out[r["organism"]].append(r["lenient"])
    return out


if __name__ == "__main__":
    main()
