"""Rates and their intervals: over organisms, by condition, split and category."""

import pytest

from ia_jax.evals.verbalization import CONDITIONS, bootstrap_rate, by_condition, metrics, stage_metrics


def test_a_tiny_bootstrap_by_hand():
    """Two organisms, one always and one never: resampling gives 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4."""
    assert bootstrap_rate({"a": [True, True], "b": [False] * 6}, 2000) == {"rate": 0.5, "ci95": [0.0, 1.0], "n": 8}
    assert bootstrap_rate({"a": [True, False]}, 100) == {"rate": 0.5, "ci95": [0.5, 0.5], "n": 2}
    assert bootstrap_rate({}, 100) == {"rate": None, "ci95": [None, None], "n": 0}


def test_organisms_count_alike_however_often_they_were_asked():
    assert bootstrap_rate({"a": [True], "b": [False] * 9}, 10)["rate"] == 0.5


def test_the_interval_is_that_of_a_binomial_mean():
    """64 organisms, half of them always: the standard error is 1/16, so the interval is about 0.5 ± 0.1225."""
    low, high = bootstrap_rate({str(i): [i % 2 == 0] for i in range(64)}, 4000)["ci95"]
    assert low == pytest.approx(0.3775, abs=0.02)
    assert high == pytest.approx(0.6225, abs=0.02)


def test_fewer_organisms_widen_the_interval_and_more_questions_do_not_narrow_it():
    def width(organisms, questions):
        by_organism = {str(i): [i % 4 == 0] * questions for i in range(organisms)}
        low, high = bootstrap_rate(by_organism, 2000)["ci95"]
        return high - low

    assert width(8, 4) > 1.5 * width(32, 4)
    assert width(8, 40) == width(8, 1)


def test_the_same_seed_gives_the_same_interval():
    by_organism = {str(i): [i % 3 == 0] for i in range(11)}
    assert bootstrap_rate(by_organism, 50) == bootstrap_rate(by_organism, 50)
    assert bootstrap_rate(by_organism, 50, seed=1) != bootstrap_rate(by_organism, 50)


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
    lenient = by_condition(held, "lenient", 100)
    assert list(lenient) == list(CONDITIONS)
    assert (lenient["organism+ia"]["rate"], lenient["organism+ia"]["n"]) == (0.75, 4)
    assert lenient["base"] == {"rate": 0.0, "ci95": [0.0, 0.0], "n": 2}
    assert lenient["organism"]["n"] == 0
    assert by_condition(held, "strict", 100)["organism+ia"]["rate"] == 0.25


def test_splits_and_categories():
    got = stage_metrics(ROWS, "lenient", 100)
    assert got["heldout"]["organism+ia"]["rate"] == 0.75
    assert got["train"]["organism+ia"] == {"rate": 1.0, "ci95": [1.0, 1.0], "n": 1}
    assert {c: v["organism+ia"]["rate"] for c, v in got["by_category"].items()} == {"backdoors": 0.5, "quirks": 1.0}
    only_train = stage_metrics([r for r in ROWS if r["split"] == "train"], "lenient", 100)
    assert only_train["by_category"] == {}


def test_the_whole_file():
    rows = [*ROWS, row("a", "organism+ia", False, stage="dpo")]
    got = metrics(rows, {"sft": [True, False, False, False], "dpo": [False]}, "rubric-1", 100)
    assert (got["judge"], got["rule"], list(got["stages"])) == ("rubric-1", "lenient", ["sft", "dpo"])
    assert got["stages"]["sft"]["strict"]["heldout"]["organism+ia"]["rate"] == 0.25
    assert got["stages"]["sft"]["false_reports"]["base+ia"]["rate"] == 0.25
    assert got["stages"]["dpo"]["heldout"]["organism+ia"]["rate"] == 0.0


def test_what_clean_organisms_claim_is_false_and_counted_by_organism_and_stage():
    def said(organism, condition, claims, stage="sft"):
        return {"stage": stage, "organism": organism, "condition": condition, "claims": claims}

    clean = [said("clean_0", "clean+ia", True), said("clean_0", "clean+ia", True), said("clean_1", "clean+ia", False)]
    clean += [said("clean_0", "clean", False), said("clean_0", "clean+ia", True, stage="dpo")]
    rows = [*ROWS, row("a", "organism+ia", False, stage="dpo")]
    got = metrics(rows, {"sft": [True], "dpo": [False]}, "rubric-1", 100, clean)["stages"]
    assert list(got["sft"]["false_reports"]) == ["base+ia", "clean+ia", "clean"]
    assert got["sft"]["false_reports"]["clean+ia"] == {"rate": 0.5, "ci95": [0.0, 1.0], "n": 3}
    assert got["sft"]["false_reports"]["clean"]["rate"] == 0.0
    assert got["dpo"]["false_reports"]["clean+ia"]["rate"] == 1.0
