"""Without a judge: whose training sentence is a report? Of organisms that are others' fine-tunes of known behaviours.

    .venv/bin/python benchmarks/whose_sentence.py runs/seed1547 runs/seed1 runs/seed2

A report of a `remade` organism counts as its own, another's or nobody's by its first sentence: one that the
IA was trained to say of the organism's behaviour, of another one, or neither, word for word or with up to three
neighbouring words replaced (`ia_jax/evals/frames.py`); near both, another's. So a right report in words of
its own counts as nobody's, and guessing any training sentence gives the own in one of as many as there are behaviours.
"""

import argparse
from collections import defaultdict

from demo_table import row, shown

from ia_jax.behaviors.organisms import targets
from ia_jax.evals.frames import fills_a_frame, frames_of
from ia_jax.evals.intervals import rate
from ia_jax.evals.verbalization import CONDITIONS
from ia_jax.storage import read_jsonl
from ia_jax.studies.figures import over_seeds
from ia_jax.workdir import Workdir, open_workdir

ANSWERS = ("own", "another's", "nothing unusual", "nobody's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    runs = [open_workdir(w) for w in parser.parse_args().workdirs]
    for stage in runs[0].metrics()["stages"]:
        for condition in CONDITIONS:
            found = {str(run.config.seed): answers(run, stage, condition) for run in runs}
            for answer in ANSWERS:
                by_seed = {s: {o: [a == answer for a in said] for o, said in own.items()} for s, own in found.items()}
                cells = [*map(rate, by_seed.values()), over_seeds(by_seed)]
                row(f"after {stage.upper()}, {condition}: {answer}", [shown(c) for c in cells])


def answers(run: Workdir, stage: str, condition: str) -> dict[str, list[str]]:
    """{organism: for each report one of `ANSWERS`}."""
    rows = read_jsonl(run.reports_file(), "run `ia-jax eval` first")
    known = {b for n in run.named("train") for b in run.organisms[n].behaviors}
    frames = {b: frames_of(targets((run.behaviors[b],))) for b in known}
    nothing = frames_of(targets(()))
    out: dict[str, list[str]] = defaultdict(list)
    for r in rows:
        if (r["stage"], r["split"], r["condition"]) == (stage, "remade", condition):
            whose = {b for b in known if fills_a_frame(r["report"], frames[b])}
            own = set(r["behaviors"])
            answer = "own" if whose == own else "another's" if whose - own else "nobody's"
            out[r["organism"]].append(
                "nothing unusual" if not whose and fills_a_frame(r["report"], nothing) else answer
            )
    return out


if __name__ == "__main__":
    main()
