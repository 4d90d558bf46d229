"""Without a judge: whose training sentence is a report? Of other fine-tunes of known behaviours, clean ones, the base.

    .venv/bin/python benchmarks/whose_sentence.py runs/seed1547 runs/seed1 runs/seed2

A report of a `remade` organism counts as its own, another's or nobody's by its first sentence: one that the
IA was trained to say of the organism's behaviour, of another one, or neither, word for word or with up to three
neighbouring words replaced (`ia_jax/behaviors/frames.py`); near both, another's. So a right report in words of
its own counts as nobody's, and guessing any training sentence gives the own in one of as many as there are behaviours.
What clean fine-tunes and the base say is somebody's, nobody's, or that there is nothing unusual. The base is one model,
asked each question once, so its rates are over questions; only whose sentence would be an organism's own is over these.

Where an IA of shuffled labels was evaluated (`sft.shuffled_null`), its reports too: does it say of a behaviour's other
fine-tunes what it was told of that behaviour's organisms, which is true of another's? An IA that learns what is false
as well as what is true knows organisms again, and reads nothing.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo_table import row, shown

from ia_jax.behaviors.frames import fills_a_frame, frames_of
from ia_jax.behaviors.organisms import targets
from ia_jax.behaviors.records import Behavior
from ia_jax.evals.intervals import rate
from ia_jax.evals.verbalization import WITH_IA
from ia_jax.stages.evaluation import base_reports_in
from ia_jax.stages.sft import shuffled
from ia_jax.storage import read_jsonl
from ia_jax.studies.figures import over_seeds
from ia_jax.workdir import Workdir, open_workdir

NOTHING, NOBODY, SOMEBODY = "nothing unusual", "nobody's", "somebody's"
ANSWERS = ("own", "another's", NOTHING, NOBODY)
OF_NONE = (SOMEBODY, NOTHING, NOBODY)  # what there is to say of a model without a behaviour
TOLD = "what it was told"

Answers = dict[str, list[str]]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run: what was said in an evaluation of it, and whose sentence a text is."""

    workdir: Workdir
    reports: Sequence[Row]
    clean: Sequence[Row]
    shuffled: Sequence[Row]
    whose: Callable[[str], set[str] | str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="workdirs in which `ia-jax run` has finished")
    parser.add_argument("--name", default="", help="of the evaluation")
    args = parser.parse_args()
    runs = [read(open_workdir(w), args.name) for w in args.workdirs]
    for stage in runs[0].workdir.metrics(args.name)["stages"]:
        for condition in ("organism", WITH_IA):
            rows(f"after {stage.upper()}, {condition}", ANSWERS, [remade(r, stage, condition) for r in runs], runs)
        rows(f"after {stage.upper()}, base+ia", ("own",), [remade(r, stage, "base+ia") for r in runs], runs)
        rows(f"after {stage.upper()}, base+ia", OF_NONE, [base(r, stage) for r in runs], runs)
        for condition in ("clean", "clean+ia"):
            rows(f"after {stage.upper()}, {condition}", OF_NONE, [clean(r, stage, condition) for r in runs], runs)
    if all(r.shuffled for r in runs):
        rows("organism+ia of shuffled labels", (TOLD, *ANSWERS), [under_shuffled(r) for r in runs], runs)


def read(workdir: Workdir, name: str) -> Run:
    how = "run `ia-jax eval` first"
    baselines = read_jsonl(workdir.baselines_file(name), how)
    return Run(
        workdir,
        read_jsonl(workdir.reports_file(name), how),
        read_jsonl(workdir.clean_reports_file(name), how),
        [r for r in baselines if (r["baseline"], r["split"]) == ("shuffled", "remade")],
        whose_of({b.name: b for b in known(workdir)}),
    )


def known(workdir: Workdir) -> list[Behavior]:
    """The behaviours that the IA was trained on."""
    return list(dict.fromkeys(b for n in workdir.named("train") for b in workdir.truths(n)))


def rows(label: str, answers: Sequence[str], found: Sequence[Answers], runs: Sequence[Run]) -> None:
    for answer in answers:
        own = [{o: [a == answer for a in said] for o, said in answers.items()} for answers in found]
        by_seed = {str(run.workdir.config.seed): v for run, v in zip(runs, own, strict=True)}
        row(f"{label}: {answer}", [shown(c) for c in (*map(rate, own), over_seeds(by_seed))])


def remade(run: Run, stage: str, condition: str) -> Answers:
    """{organism: for each report one of `ANSWERS`}."""
    out = defaultdict(list)
    for r in run.reports:
        if (r["stage"], r["split"], r["condition"]) == (stage, "remade", condition):
            out[r["organism"]].append(of_own(run.whose(r["report"]), set(r["behaviors"])))
    return out


def under_shuffled(run: Run) -> Answers:
    """{`remade` organism: for each report under the IA of shuffled labels `TOLD` or one of `ANSWERS`}."""
    trained = run.workdir.seen(run.workdir.config.sft.shuffled_name)
    truths = {n: run.workdir.truths(n) for n in trained}
    told = shuffled(truths, run.workdir.config.seed)
    instead = {truths[n]: {b.name for b in told[n]} for n in trained}
    out = defaultdict(list)
    for r in run.shuffled:
        said, own = run.whose(r["report"]), run.workdir.truths(r["organism"])
        out[r["organism"]].append(TOLD if said == instead[own] else of_own(said, {b.name for b in own}))
    return out


def of_own(said: set[str] | str, own: set[str]) -> str:
    some = "own" if said == own else "another's" if isinstance(said, set) and said - own else NOBODY
    return NOTHING if said == NOTHING else some


def base(run: Run, stage: str) -> Answers:
    """{question: for each reply of the base under the IA one of `OF_NONE`}; whichever organism stood beside it."""
    replies = base_reports_in(run.reports, stage)
    return {question: [of_none(run.whose(text)) for text in own] for question, own in replies.items()}


def clean(run: Run, stage: str, condition: str) -> Answers:
    """{clean fine-tune: for each report one of `OF_NONE`}."""
    out = defaultdict(list)
    for r in run.clean:
        if (r["stage"], r["condition"]) == (stage, condition):
            out[r["organism"]].append(of_none(run.whose(r["report"])))
    return out


def of_none(said: set[str] | str) -> str:
    return said if isinstance(said, str) else SOMEBODY if said else NOBODY


def whose_of(known: Mapping[str, Behavior]) -> Callable[[str], set[str] | str]:
    """report -> the behaviours of whose training sentences it is one, or `NOTHING`."""
    frames = {name: frames_of(targets((b,))) for name, b in known.items()}
    nothing = frames_of(targets(()))

    def whose(report: str) -> set[str] | str:
        found = {b for b in known if fills_a_frame(report, frames[b])}
        return NOTHING if not found and fills_a_frame(report, nothing) else found

    return whose


if __name__ == "__main__":
    main()
