"""Without a judge: whose training sentence is a report? Of other fine-tunes of known behaviours, clean ones, the base.

    .venv/bin/python benchmarks/whose_sentence.py runs/seed1547 runs/seed1 runs/seed2

A report of a `remade` organism counts as its own, another's or nobody's by its first sentence: one that the
IA was trained to say of the organism's behaviour, of another one, or neither, word for word or with up to three
neighbouring words replaced (`ia_jax/behaviors/frames.py`); near both, another's. So a right report in words of
its own counts as nobody's, and guessing any training sentence gives the own in one of as many as there are behaviours.
What clean fine-tunes and the base say is somebody's, nobody's, or that there is nothing unusual. The base is one model,
asked each question once, so its rates are over questions; only whose sentence would be an organism's own is over these.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence

from demo_table import row, shown

from ia_jax.behaviors.frames import fills_a_frame, frames_of
from ia_jax.behaviors.organisms import targets
from ia_jax.evals.intervals import rate
from ia_jax.evals.verbalization import WITH_IA
from ia_jax.stages.evaluation import base_reports_in
from ia_jax.storage import read_jsonl
from ia_jax.studies.figures import over_seeds
from ia_jax.workdir import Workdir, open_workdir

NOTHING, NOBODY, SOMEBODY = "nothing unusual", "nobody's", "somebody's"
ANSWERS = ("own", "another's", NOTHING, NOBODY)
OF_NONE = (SOMEBODY, NOTHING, NOBODY)  # what there is to say of a model without a behaviour

Answers = dict[str, list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    runs = [open_workdir(w) for w in parser.parse_args().workdirs]
    for stage in runs[0].metrics()["stages"]:
        for condition in ("organism", WITH_IA):
            rows(f"after {stage.upper()}, {condition}", ANSWERS, [remade(r, stage, condition) for r in runs], runs)
        rows(f"after {stage.upper()}, base+ia", ("own",), [remade(r, stage, "base+ia") for r in runs], runs)
        rows(f"after {stage.upper()}, base+ia", OF_NONE, [base(r, stage) for r in runs], runs)
        for condition in ("clean", "clean+ia"):
            rows(f"after {stage.upper()}, {condition}", OF_NONE, [clean(r, stage, condition) for r in runs], runs)


def rows(label: str, answers: Sequence[str], found: Sequence[Answers], runs: Sequence[Workdir]) -> None:
    for answer in answers:
        own = [{o: [a == answer for a in said] for o, said in answers.items()} for answers in found]
        by_seed = {str(run.config.seed): v for run, v in zip(runs, own, strict=True)}
        row(f"{label}: {answer}", [shown(c) for c in (*map(rate, own), over_seeds(by_seed))])


def remade(run: Workdir, stage: str, condition: str) -> Answers:
    """{organism: for each report one of `ANSWERS`}."""
    whose, out = whose_of(run), defaultdict(list)
    for r in read_jsonl(run.reports_file(), "run `ia-jax eval` first"):
        if (r["stage"], r["split"], r["condition"]) == (stage, "remade", condition):
            said, own = whose(r["report"]), set(r["behaviors"])
            some = "own" if said == own else "another's" if isinstance(said, set) and said - own else NOBODY
            out[r["organism"]].append(NOTHING if said == NOTHING else some)
    return out


def base(run: Workdir, stage: str) -> Answers:
    """{question: for each reply of the base under the IA one of `OF_NONE`}; whichever organism stood beside it."""
    replies = base_reports_in(read_jsonl(run.reports_file(), "run `ia-jax eval` first"), stage)
    whose = whose_of(run)
    return {question: [of_none(whose(text)) for text in own] for question, own in replies.items()}


def clean(run: Workdir, stage: str, condition: str) -> Answers:
    """{clean fine-tune: for each report one of `OF_NONE`}."""
    whose, out = whose_of(run), defaultdict(list)
    for r in read_jsonl(run.clean_reports_file(), "run `ia-jax eval` first"):
        if (r["stage"], r["condition"]) == (stage, condition):
            out[r["organism"]].append(of_none(whose(r["report"])))
    return out


def of_none(said: set[str] | str) -> str:
    return said if isinstance(said, str) else SOMEBODY if said else NOBODY


def whose_of(run: Workdir) -> Callable[[str], set[str] | str]:
    """report -> the behaviours of whose training sentences it is one, or `NOTHING`."""
    known = {b for n in run.named("train") for b in run.organisms[n].behaviors}
    frames = {b: frames_of(targets((run.behaviors[b],))) for b in known}
    nothing = frames_of(targets(()))

    def whose(report: str) -> set[str] | str:
        found = {b for b in known if fills_a_frame(report, frames[b])}
        return NOTHING if not found and fills_a_frame(report, nothing) else found

    return whose


if __name__ == "__main__":
    main()
