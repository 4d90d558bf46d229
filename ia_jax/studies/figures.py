"""The figures of a study: every arm's rates over its seeds, beside its own baselines, and against the reference arm."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ia_jax.behaviors.frames import first_sentence, words_of
from ia_jax.behaviors.records import CATEGORIES, Behavior
from ia_jax.evals.intervals import Cell, difference_over_seeds, rate, rate_over_seeds
from ia_jax.evals.verbalization import WITH_IA, as_one, by_organism
from ia_jax.judging.verbatim import CLEAN_WORDS
from ia_jax.stages.settings import differences
from ia_jax.storage import Row, read_jsonl
from ia_jax.studies.layout import Run
from ia_jax.studies.study import Arm, Study
from ia_jax.workdir import Workdir

CONTROLS = ("organism", "base+ia", "base")
Answers = dict[str, list[bool]]  # of each behaviour
BySeed = dict[str, Answers]
Reports = dict[str, list[Row]]  # {"reports", "baselines", "clean"} of a finished run


def figures(study: Study, runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """The contents of study.json, of the runs that are finished. out: the directory that it goes to.

    {"study", "title", "question", "reference", "axis", "log", "judge", "arms": [one of `arm_figures`, with what it was
    run with]}.
    """
    finished = [r for r in runs if is_finished(r)]
    done = {arm.name: [r for r in finished if r.arm.name == arm.name] for arm in study.arms}
    read = {name: {str(r.seed): read_reports(r) for r in own} for name, own in done.items()}
    reference = study.section.reference
    arms = []
    for arm in study.arms:
        against = read[reference] if reference not in ("", arm.name) else {}
        own = with_baselines(read[arm.name], against, _alike(done[arm.name], done.get(reference, [])))
        of = arm_figures(own, against, study.section.split, arm.config.sft.categories)
        arms.append(about(arm, done[arm.name], out) | of)
    judges = {row["judge"] for seeds in read.values() for found in seeds.values() for row in found["reports"]}
    section = study.section
    return {
        "study": study.name,
        "title": section.title or study.name,
        "question": section.question,
        "reference": reference,
        "split": section.split,
        "axis": section.axis,
        "log": section.log,
        "judge": ", ".join(sorted(judges)) + (", training sentences verbatim" if judges else ""),
        "base": section.base,
        "overrides": list(section.overrides),
        "arms": arms,
    }


def is_finished(run: Run) -> bool:
    """Whether an arm was evaluated as its settings say, with the IA that its figure is of."""
    workdir, config = Workdir(run.place.path), run.place.begun
    if config is None or not workdir.metrics_file(config.eval.name).exists():
        return False
    asked = workdir.metrics(config.eval.name).get("ias", {})
    return last_stage(run) in asked and differences(workdir, config, "eval") is None


def last_stage(run: Run) -> str:
    return "dpo" if run.arm.section.dpo else "sft"


def read_reports(run: Run) -> Reports:
    """The judged reports of the last stage, and those made without an IA; sentences of training count as what they
    say.
    """
    workdir = Workdir(run.place.path)
    found = reports_of(workdir, last_stage(run), run.config.eval.name)
    count_sentences(found, workdir.behaviors)
    return found


def count_sentences(found: Reports, behaviors: Mapping[str, Behavior]) -> None:
    """Marks reports by what is known of training's sentences, whatever the judge made of them (`judging.verbatim`): the
    behaviour's own name it ("sentence" says so; of a clean one whether it is any behaviour's), and those that clean
    organisms are to say claim nothing. "judged" keeps the judge's own verdict.
    """
    whose = sentences_of(behaviors)
    for row in (*found["reports"], *found["clean"]):
        said = whose.get(words_of(first_sentence(row["report"])), set())
        row["sentence"] = bool(said & set(row["behaviors"]) if row["behaviors"] else said)
    for row in found["reports"]:
        row |= {"judged": row["lenient"], "lenient": row["lenient"] or row["sentence"]}
    for row in found["clean"]:
        row["claims"] = row["claims"] and words_of(row["report"]) not in CLEAN_WORDS


def sentences_of(behaviors: Mapping[str, Behavior]) -> dict[tuple[str, ...], set[str]]:
    """{a sentence that an IA is trained to say, as its words: the behaviours that it is true of}."""
    out: dict[tuple[str, ...], set[str]] = {}
    for name, b in behaviors.items():
        for wording in b.wordings:
            out.setdefault(words_of(wording), set()).add(name)
    return out


def reports_of(workdir: Workdir, stage: str, name: str = "") -> Reports:
    """The judged reports of an evaluation with the IA of one stage, and those made without one."""
    files = {
        "reports": workdir.reports_file(name),
        "baselines": workdir.baselines_file(name),
        "clean": workdir.clean_reports_file(name),
    }
    rows = {
        what: read_jsonl(file, "remove it and run the study again") if file.exists() else []
        for what, file in files.items()
    }
    return {what: [r for r in own if r["stage"] in ("", stage)] for what, own in rows.items()}


def about(arm: Arm, done: Sequence[Run], out: Path) -> dict[str, Any]:
    """What an arm is, and where the runs of it lie that are finished: paths from the figure's directory."""

    def relative(run: Run, page: bool) -> str:
        workdir = Workdir(run.place.path)
        path = workdir.report_file(run.config.eval.name) if page else workdir.path
        return os.path.relpath(path, out)

    return {
        "name": arm.name,
        "label": arm.label,
        "x": arm.section.x,
        "series": arm.section.series,
        "stage": "dpo" if arm.section.dpo else "sft",
        "overrides": list(arm.section.overrides),
        "seeds": list(arm.seeds),
        "own_organisms": arm.section.own_organisms,
        "finished": [r.seed for r in done],
        "workdirs": [relative(r, page=False) for r in done],
        "reports": [relative(r, page=True) for r in done],
    }


ASKED_ALONE = ("words", "words_of_three", "lens")  # baselines that know nothing of what SFT reads


def with_baselines(
    seeds: Mapping[str, Reports], reference: Mapping[str, Reports], alike: Mapping[str, bool]
) -> dict[str, Reports]:
    """Each seed with the reference arm's baselines where it asked for none (`eval.plain_prompts=0`) and has the same
    organisms: of those that both hold out, under the same seed. alike: of each such seed, whether SFT read the same
    ones; if not, only baselines that know nothing of these.
    """
    out = {}
    for seed, own in seeds.items():
        held = {r["organism"] for r in own["reports"]}
        theirs = reference[seed]["baselines"] if seed in alike and seed in reference else []
        theirs = [r for r in theirs if r["organism"] in held and (alike[seed] or r["baseline"] in ASKED_ALONE)]
        out[seed] = own if own["baselines"] else own | {"baselines": theirs}
    return out


def _alike(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, bool]:
    """{seed under which both have the same organisms: whether their SFT read the same of them}."""
    theirs = {r.seed: r for r in reference}
    same = [r for r in runs if r.seed in theirs and r.config.organisms.source == theirs[r.seed].config.organisms.source]

    def seen(run: Run) -> set[str]:
        return set(Workdir(run.place.path).seen(run.config.sft.name))

    return {str(r.seed): seen(r) == seen(theirs[r.seed]) for r in same}


# ---------------------------------------------------------------------------------------------------------------------
# Rates
# ---------------------------------------------------------------------------------------------------------------------


def arm_figures(
    seeds: Mapping[str, Reports],
    reference: Mapping[str, Reports],
    split: str = "heldout",
    trained: Sequence[str] = (),
) -> dict[str, Any]:
    """An arm's rates over its seeds: of held-out organisms (or of another split's) unless the name says otherwise,
    lenient unless strict. trained: the categories that its SFT read (none: all).

    {"lenient", "judged", "strict": both by the judge alone, "sentence": word for word one that SFT has of the
    behaviour, "seen", "new"?: behaviours that no training read, where `split` has known ones, "unseen"?, "inside"?,
    "outside"?: of the categories that SFT read and of the others, "controls": {condition: cell}, "baselines": {name:
    cell}, "best": the highest of both, "beyond": the IA's rate minus that one's, "false_claims"?, "claims_alone"?: of
    clean organisms with and without the IA, "false_sentences"?: of these with it, any behaviour's, "by_category":
    {category: cell}, "against", "against_by_category": minus the reference arm's}.
    Differences are in pairs, under the same seed (None where there are no two pairs).
    """

    def cells(what: str, rule: str, within: Callable[[Row], bool]) -> Cell:
        return over_seeds(named(seeds, what, rule, within))

    def held(condition: str) -> Callable[[Row], bool]:
        return lambda r: r["split"] == split and r["condition"] == condition

    def difference_in(category: str) -> Cell | None:
        def own(r: Row) -> bool:
            return held(WITH_IA)(r) and r["category"] == category

        return difference_over_seeds(*(named(of, "reports", "lenient", own) for of in (reference, seeds)))

    with_ia = named(seeds, "reports", "lenient", held(WITH_IA))
    controls = {c: named(seeds, "reports", "lenient", held(c)) for c in CONTROLS}
    names = dict.fromkeys(r["baseline"] for found in seeds.values() for r in found["baselines"])
    baselines = {
        n: named(seeds, "baselines", "lenient", lambda r, n=n: r["split"] == split and r["baseline"] == n)
        for n in names
    }
    others = {n: v for n, v in {**controls, **baselines}.items() if any(v.values()) and n != "base"}
    rates = {n: over_seeds(v) for n, v in others.items()}
    best = max(rates, key=lambda n: (rates[n]["rate"], n), default="")
    out: dict[str, Any] = {
        "lenient": over_seeds(with_ia),
        "judged": cells("reports", "judged", held(WITH_IA)),
        "strict": cells("reports", "strict", held(WITH_IA)),
        "sentence": cells("reports", "sentence", held(WITH_IA)),
        "seen": cells("reports", "lenient", lambda r: r["split"] in ("train", "dpo") and r["condition"] == WITH_IA),
        "controls": {c: over_seeds(v) for c, v in controls.items()},
        "baselines": {n: over_seeds(v) for n, v in baselines.items()},
        "best": best,
        "beyond": difference_over_seeds(others[best], with_ia) if best else None,
        "by_category": {
            c: cells("reports", "lenient", lambda r, c=c: held(WITH_IA)(r) and r["category"] == c)
            for c in _categories(seeds, split)
        },
        "against": difference_over_seeds(named(reference, "reports", "lenient", held(WITH_IA)), with_ia)
        if reference
        else None,
        "against_by_category": {c: difference_in(c) for c in _categories(seeds, split)} if reference else {},
    }
    if trained:
        out["inside"] = cells("reports", "lenient", lambda r: held(WITH_IA)(r) and r["category"] in trained)
        out["outside"] = cells("reports", "lenient", lambda r: held(WITH_IA)(r) and r["category"] not in trained)
    if split != "heldout":
        new = cells("reports", "lenient", lambda r: r["split"] == "heldout" and r["condition"] == WITH_IA)
        out |= {"new": new} if new["n"] else {}
    unseen = cells("reports", "lenient", lambda r: r["split"] == "unseen" and r["condition"] == WITH_IA)
    false, alone = (cells("clean", "claims", lambda r, c=c: r["condition"] == c) for c in ("clean+ia", "clean"))
    out |= {"unseen": unseen} if unseen["n"] else {}
    if not false["n"]:
        return out
    somebody = cells("clean", "sentence", lambda r: r["condition"] == "clean+ia")
    return out | {"false_claims": false, "claims_alone": alone, "false_sentences": somebody}


def _categories(seeds: Mapping[str, Reports], split: str) -> list[str]:
    found = {r["category"] for own in seeds.values() for r in own["reports"] if r["split"] == split}
    return [c for c in CATEGORIES if c in found] + sorted(found - set(CATEGORIES))


def named(seeds: Mapping[str, Reports], what: str, rule: str, within: Callable[[Row], bool]) -> BySeed:
    """{seed: {behaviour: whether each report of its organisms is so}} of the rows within; of clean ones each organism.

    Fine-tunes of one behaviour are named or not together, so they count as one.
    """
    return {seed: by_organism(as_one(filter(within, found[what])), rule) for seed, found in seeds.items()}


def over_seeds(answers: BySeed) -> Cell:
    """The rate of one seed, or over several."""
    known = {seed: own for seed, own in answers.items() if own}
    return rate_over_seeds(known) if len(known) > 1 else rate(next(iter(known.values()), {}))
