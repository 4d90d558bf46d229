"""A merged fine-tune and its adapter: does `ia-jax audit` say the same of both?

    .venv/bin/python benchmarks/merged_audit.py runs/seed1547 --count=32 --out=merged.json    # about 30 minutes

Organisms of all splits, in turn, are merged into the base, rounded to bf16, written as a checkpoint and audited as one
(`--model`), beside the audit of the adapter (`--adapter`). An IA without a calibration is quick. The top claim is the
one that most reports make. Beside the share that agrees stands that of different organisms, adapter against adapter:
what a favourite claim would give; and of those alone of which something is claimed. Percent, 95 % intervals over
organisms.
"""

import argparse
import json
import shutil
import tempfile
from itertools import pairwise, zip_longest
from pathlib import Path

import jax
from demo_table import row, shown

from ia_jax.adapters.merge import write_merged
from ia_jax.audits.evidence.grouping import alike, content_words
from ia_jax.evals.intervals import rate
from ia_jax.stages import audit
from ia_jax.stages.ask import trained_ia
from ia_jax.stages.context import Context
from ia_jax.stages.selection import usable
from ia_jax.workdir import open_workdir

SPLITS = ("remade", "dpo", "heldout", "train")
NOTHING = ""  # no report claims anything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    parser.add_argument("--count", type=int, default=32, help="organisms (default %(default)s)")
    parser.add_argument("--questions", type=int, default=8, help="of each audit (default %(default)s)")
    parser.add_argument("--ia", help="of the run (default: the last one)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run = open_workdir(args.workdir)
    context = Context(run, run.config)
    tops: dict[str, dict[str, str]] = {}
    with jax.set_mesh(context.mesh), tempfile.TemporaryDirectory() as scratch:
        ia = trained_ia(context, args.ia)
        splits = [usable(context, split) for split in SPLITS]
        chosen = [o for turn in zip_longest(*splits) for o in turn if o is not None][: args.count]
        for number, organism in enumerate(chosen, 1):
            place = Path(scratch, "model")
            write_merged(context.config.model.name, run.organism(organism.name, context.model), place)
            ways = {"adapter": (run.stack_of(organism), None), "merged": ((), str(place))}
            tops[organism.name] = {
                way: top(audit.run(context, sources, args.questions, ia_name=ia, checkpoint=checkpoint))
                for way, (sources, checkpoint) in ways.items()
            }
            shutil.rmtree(place)
            print(f"{number}/{len(chosen)} {organism.name}: {tops[organism.name]}", flush=True)
            args.out.write_text(json.dumps(tops, indent=1))
    row("top claim", ["organisms", "the same words", "about the same"])
    print("|---|---|---|---|")
    own = {n: (t["adapter"], t["merged"]) for n, t in tops.items()}
    neighbours = {a: (tops[a]["adapter"], tops[b]["adapter"]) for a, b in pairwise(tops)}
    for label, pairs in (("merged against adapter", own), ("an organism against the next, adapters both", neighbours)):
        agreement(label, pairs)
        agreement(f"{label}, where one claims something", {n: p for n, p in pairs.items() if any(p)})


def top(result: dict) -> str:
    return result["claims"][0]["claim"] if result["claims"] else NOTHING


def agreement(label: str, pairs: dict[str, tuple[str, str]]) -> None:
    same = rate({n: [a == b] for n, (a, b) in pairs.items()})
    about = rate({n: [a == b or alike(content_words(a), content_words(b))] for n, (a, b) in pairs.items()})
    row(label, [str(len(pairs)), shown(same), shown(about)])


if __name__ == "__main__":
    main()
