"""The baseline `nearest_organism` of finished runs, without asking anything again: what a look-up by weights would say.

    .venv/bin/python benchmarks/nearest_organism.py runs/seed1547 runs/seed1 runs/seed2

For each held-out organism the description of the one that the IA was trained on whose adapter is most alike
(`ia_jax/adapters/likeness.py`), judged like a report. An evaluation that is made now has it beside its other baselines.
"""

import argparse
from typing import Any

from demo_table import row, shown

from ia_jax.cli.workdirs import on_mesh
from ia_jax.evals.intervals import rate
from ia_jax.judging.protocol import Item
from ia_jax.stages.baselines import nearest_organisms
from ia_jax.stages.context import open_organisms
from ia_jax.stages.selection import present
from ia_jax.stages.services import judge_of
from ia_jax.studies.figures import over_seeds
from ia_jax.workdir import open_workdir

SPLITS = ("remade", "heldout")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    found: dict[str, dict[str, dict[str, list[bool]]]] = {split: {} for split in SPLITS}
    for directory in parser.parse_args().workdirs:
        run = open_workdir(directory)
        for split, named in of_run(run).items():
            found[split][str(run.config.seed)] = named
    for split, by_seed in found.items():
        row(f"{split}, the nearest organism", [shown(c) for c in (*map(rate, by_seed.values()), over_seeds(by_seed))])


def of_run(run: Any) -> dict[str, dict[str, list[bool]]]:
    """{split: {organism: [whether the nearest one's description names its behaviour]}}."""
    with on_mesh(run) as context:
        organisms = [o for o in present(context, *SPLITS) if not o.clean]
        said = nearest_organisms(context, open_organisms(context, organisms), organisms)
        items = [Item(run.truths(o.name)[0], "", text or "") for o, text in zip(organisms, said, strict=True)]
        verdicts = judge_of(context).judge_many(items, ("lenient",))
        pairs = [(o, bool(v.lenient)) for o, v in zip(organisms, verdicts, strict=True)]
        return {split: {o.name: [named] for o, named in pairs if o.split == split} for split in SPLITS}


if __name__ == "__main__":
    main()
