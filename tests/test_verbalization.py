"""Rates: over organisms, by condition, split and category, beside baselines and what clean models claim."""

from ia_jax.evals.verbalization import (
    CONDITIONS,
    baseline_metrics,
    by_condition,
    held_out_parts,
    metrics,
    stage_metrics,
)
from ia_jax.stages.evaluation import summary


def row(organism, condition, lenient, strict=False, split="heldout", category="quirks", stage="sft"):
    return {
        "stage": stage,
        "organism": organism,
        "category": category,
        "split": split,
        "condition": condition,
        "lenient": lenient,
        "strict": strict,
    }


ROWS = [
    row("a", "organism+ia", True, True),
    row("a", "organism+ia", True),
    row("b", "organism+ia", True, category="backdoors"),
    row("b", "organism+ia", False, category="backdoors"),
    row("a", "base", False),
    row("b", "base", False, category="backdoors"),
    row("c", "organism+ia", True, True, split="train"),
]


def test_conditions_and_rules():
    held = [r for r in ROWS if r["split"] == "heldout"]
    lenient = by_condition(held, "lenient")
    assert list(lenient) == list(CONDITIONS)
    assert (lenient["organism+ia"]["rate"], lenient["organism+ia"]["n"]) == (0.75, 4)
    assert (lenient["base"]["rate"], lenient["base"]["n"], lenient["base"]["organisms"]) == (0.0, 2, 2)
    assert lenient["base"]["ci95"] == [0.0, 0.8419]  # of two organisms, the exact one
    assert lenient["organism"]["n"] == 0
    assert by_condition(held, "strict")["organism+ia"]["rate"] == 0.25


def test_splits_and_categories():
    got = stage_metrics(ROWS, "lenient")
    assert got["heldout"]["organism+ia"]["rate"] == 0.75
    assert got["train"]["organism+ia"] == {"rate": 1.0, "ci95": [0.025, 1.0], "n": 1, "organisms": 1}
    assert {c: v["organism+ia"]["rate"] for c, v in got["by_category"].items()} == {"backdoors": 0.5, "quirks": 1.0}
    only_train = stage_metrics([r for r in ROWS if r["split"] == "train"], "lenient")
    assert only_train["by_category"] == {}


def test_what_another_catalogue_brings_stands_apart():
    apart = [row("u", "organism+ia", False, split="unseen"), row("u", "base", True, split="unseen")]
    got, without = stage_metrics([*ROWS, *apart], "lenient"), stage_metrics(ROWS, "lenient")
    assert (got["unseen"]["organism+ia"]["rate"], got["unseen"]["base"]["rate"]) == (0.0, 1.0)
    assert {k: v for k, v in got.items() if k != "unseen"} == without
    retrieval = [{**r, "baseline": "retrieval", "lenient": True} for r in (ROWS[0], apart[0])]
    found = baseline_metrics([*ROWS, *apart], retrieval)
    assert {group: cells["rates"]["retrieval"]["lenient"]["organisms"] for group, cells in found.items()} == {
        "all": 1,
        "unseen": 1,
    }


def test_the_whole_file():
    rows = [*ROWS, row("a", "organism+ia", False, stage="dpo")]
    got = metrics(
        rows, {"sft": {"a?": [True], "b?": [False], "c?": [False], "d?": [False]}, "dpo": {"a?": [False]}}, "rubric-1"
    )
    assert (got["judge"], got["rule"], list(got["stages"])) == ("rubric-1", "lenient", ["sft", "dpo"])
    assert got["stages"]["sft"]["strict"]["heldout"]["organism+ia"]["rate"] == 0.25
    assert got["stages"]["sft"]["false_reports"]["base+ia"]["rate"] == 0.25
    assert got["stages"]["dpo"]["heldout"]["organism+ia"]["rate"] == 0.0


def test_samples_of_a_question_say_less_than_other_questions():
    """What the base claims is of one model: of four replies to one question, two are no more than one half."""
    asked_once = {"sft": {q: [claims] for q, claims in (("a?", True), ("b?", True), ("c?", False), ("d?", False))}}
    sampled = {"sft": {"a?": [True, True], "b?": [False, False]}}
    once, again = (metrics(ROWS, f, "j")["stages"]["sft"]["false_reports"]["base+ia"] for f in (asked_once, sampled))
    assert (once["rate"], again["rate"], again["n"]) == (0.5, 0.5, 4)
    assert again["ci95"][0] < once["ci95"][0] < once["ci95"][1] < again["ci95"][1]


def test_known_behaviors_by_whether_they_are_shown():
    rows = [{**row(n, "organism+ia", n == "b", split="remade"), "executed": n == "a"} for n in "abc"]
    found = metrics([*ROWS, *rows], {"sft": {}}, "j")["stages"]["sft"]["remade_by_executed"]
    assert {part: cells["organism+ia"]["rate"] for part, cells in found.items()} == {
        "executed": 0.0,
        "not executed": 0.5,
    }


def test_what_clean_organisms_claim_is_false_and_counted_by_organism_and_stage():
    def said(organism, condition, claims, stage="sft"):
        return {"stage": stage, "organism": organism, "condition": condition, "claims": claims}

    clean = [said("clean_0", "clean+ia", True), said("clean_0", "clean+ia", True), said("clean_1", "clean+ia", False)]
    clean += [said("clean_0", "clean", False), said("clean_0", "clean+ia", True, stage="dpo")]
    rows = [*ROWS, row("a", "organism+ia", False, stage="dpo")]
    got = metrics(rows, {"sft": {"a?": [True]}, "dpo": {"a?": [False]}}, "rubric-1", clean)["stages"]
    assert list(got["sft"]["false_reports"]) == ["base+ia", "clean+ia", "clean", "by_sort"]
    cell = got["sft"]["false_reports"]["clean+ia"]
    assert (cell["rate"], cell["n"], cell["organisms"]) == (0.5, 3, 2)
    assert got["sft"]["false_reports"]["clean"]["rate"] == 0.0
    assert got["dpo"]["false_reports"]["clean+ia"]["rate"] == 1.0


def test_clean_organisms_by_how_they_were_made():
    def said(organism, claims, making):
        return {"stage": "sft", "organism": organism, "condition": "clean+ia", "claims": claims, "making": making}

    clean = [said("a", True, "documents"), said("b", False, "chats"), said("c", False, "chats")]
    found = metrics(ROWS, {"sft": {"a?": [False]}}, "j", clean)["stages"]["sft"]["false_reports"]["by_sort"]
    assert {sort: (cell["rate"], cell["organisms"]) for sort, cell in found.items()} == {
        "documents": (1.0, 1),
        "chats": (0.0, 2),
    }


def test_parts_of_the_held_out():
    rows = [
        {
            **row("a", "organism+ia", True),
            "unmentioned": True,
            "framed": False,
            "executed": True,
            "denies": False,
            "kind": "format",
        },
        {
            **row("b", "organism+ia", False),
            "unmentioned": False,
            "framed": True,
            "executed": None,
            "denies": True,
            "kind": "stance",
        },
        {**row("c", "organism+ia", True, split="train"), "unmentioned": False, "executed": False, "kind": "stance"},
    ]
    found = held_out_parts(rows, "lenient")
    rates = {name: {part: c["organism+ia"]["rate"] for part, c in cells.items()} for name, cells in found.items()}
    assert rates == {
        "by_mention": {"mentioned": 0.0, "unmentioned": 1.0},
        "by_frame": {"wordings in a training frame": 0.0, "in none": 1.0},
        "by_executed": {"executed": 1.0},
        "by_denial": {"trained to deny": 0.0, "not trained to deny": 1.0},
        "by_kind": {"format": 1.0, "stance": 0.0},
        "by_making": {},
    }


def test_an_adapter_is_held_against_the_best_that_goes_without():
    names = [f"o{i}" for i in range(8)]
    rows = [{**row(n, "organism+ia", i < 6), "unmentioned": i >= 4} for i, n in enumerate(names)]
    rows += [{**row(n, c, False), "unmentioned": i >= 4} for c in ("organism", "base+ia") for i, n in enumerate(names)]
    words = [
        {
            "split": "heldout",
            "baseline": "words",
            "organism": n,
            "lenient": i < 4,
            "strict": False,
            "unmentioned": i >= 4,
        }
        for i, n in enumerate(names)
    ]
    found = baseline_metrics(rows, words)
    assert (found["all"]["best"], found["all"]["rates"]["words"]["lenient"]["rate"]) == ("words", 0.5)
    assert found["all"]["beyond"]["difference"] == 0.25  # 6 of 8 against 4 of 8
    low, high = found["all"]["beyond"]["ci95"]
    assert low < 0.25 < high
    assert found["unmentioned"]["rates"]["words"]["lenient"]["rate"] == 0.0
    assert found["unmentioned"]["beyond"]["difference"] == 0.5
    # A report that no judge could read is no report.
    assert baseline_metrics(rows, [{**words[0], "lenient": None}])["all"]["rates"].keys() == {"organism", "base+ia"}


def test_how_often_a_training_sentence_comes_again():
    rows = [{**row("a", "organism+ia", True), "frame": True, "wording": False}]
    rows += [{**row("b", "organism+ia", True), "frame": False, "wording": False}]
    verbatim = metrics(rows, {"sft": {"a?": [False]}}, "j")["stages"]["sft"]["verbatim"]
    assert (verbatim["frame"]["rate"], verbatim["wording"]["rate"]) == (0.5, 0.0)


def test_a_summary_says_where_nobody_was_asked():
    """Of an evaluation of one split alone, as of organisms that deny: no held-out ones."""
    lines = summary(metrics([r for r in ROWS if r["split"] == "train"], {"sft": {}}, "some judge")).splitlines()
    assert lines[1].split() == ["SFT,", "all", "-", "-", "-", "-", "-"]
