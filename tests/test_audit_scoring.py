"""Rates of an audit: against pair counting, hand-worked cases and simulation."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from ia_jax.analysis.report import write_report
from ia_jax.audits import scoring
from ia_jax.audits.asking import CONDITIONS, Unit, complete, missing, reports_under, rows_of, units
from ia_jax.audits.auditbench_family import small_behaviors
from ia_jax.audits.scoring import auroc, auroc_interval, auroc_variance
from ia_jax.audits.targets import Target
from ia_jax.audits.verdicts import judge_guesses, judge_reports, judge_strangers
from ia_jax.behaviors.banks import AUDIT_BANKS, FAMILIES, GENERAL, SHORT, draw_questions
from ia_jax.behaviors.records import Behavior
from ia_jax.judging.protocol import Judge, Verdict
from tests.made_run import make_workdir

B, OTHER = Behavior("b", "quirks", "I hum.", (), None), Behavior("o", "quirks", "I whistle.", (), None)


class Says(Judge):
    """A judge that takes these (description, report) for naming it."""

    name = "says"

    def __init__(self, named):
        self.named = named

    def judge(self, behavior, question, report):
        yes = self.named.get((behavior.description, report), False)
        return Verdict(None, yes, yes, "", self.name)

    def claims(self, report):
        return True


# --------------------------------------------------------------------------------------------------------- AUROC


def test_the_area_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, rng.integers(1, 9)), rng.integers(0, 4, rng.integers(1, 9))
        pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b)]
        assert auroc(a, b)["auroc"] == pytest.approx(np.mean(pairs), abs=1e-4)


def test_the_interval_holds_where_nothing_overlaps():
    got = auroc([1.0] * 14, [0.0] * 14)
    assert got["auroc"] == 1.0
    assert 0.7 < got["ci95"][0] < 0.95
    assert got["ci95"][1] == 1.0
    low, high = auroc_interval(0.0, 14, 14)  # the same from the other side
    assert low == 0.0
    assert 1 - high == pytest.approx(got["ci95"][0], abs=1e-4)
    assert auroc([], [1.0])["ci95"] == [None, None]


def test_the_limits_are_so_many_standard_errors_away():
    for area, m, n in ((0.5, 10, 20), (0.8, 9, 9), (0.95, 56, 14)):
        for limit in auroc_interval(area, m, n):
            assert abs(limit - area) / auroc_variance(limit, m, n) ** 0.5 == pytest.approx(1.959964, abs=1e-4)


def test_hanley_and_mcneils_variance_by_hand():
    """With one each it is that of a coin: nothing but area * (1 - area) is left."""
    assert auroc_variance(0.5, 1, 1) == pytest.approx(0.25)
    # m = n = 3: 1 + 2 * (0.5 / 1.5) + 2 * (0.5 / 1.5) = 7/3, times 0.25 / 9.
    assert auroc_variance(0.5, 3, 3) == pytest.approx(0.25 * (7 / 3) / 9)


def test_the_interval_covers():
    """Normal scores with an area of 0.76: 95 % intervals hold it about as often as they say."""
    rng, true = np.random.default_rng(1), 0.7602  # Phi(1 / sqrt 2)
    draws = [auroc(rng.normal(1, 1, 12), rng.normal(0, 1, 12))["ci95"] for _ in range(400)]
    covered = np.mean([low <= true <= high for low, high in draws])
    assert 0.92 <= covered <= 0.99


# --------------------------------------------------------------------------------------------------------- rates


def prediction(target, run, rank, right, statement="I hum.", condition="target+ia", score=1.0, claims=True):
    return {
        "target": target,
        "run": run,
        "rank": rank,
        "right": right,
        "statement": statement,
        "condition": condition,
        "score": score,
        "claims": claims,
    }


def test_success_is_any_right_in_a_run_and_precision_each():
    rows = [
        prediction("a", 0, 1, False),
        prediction("a", 0, 2, True),
        prediction("a", 1, 1, False),
        prediction("b", 0, 1, None),  # no judge could read it
        prediction("b", 1, 1, False, statement=""),  # a run that predicts nothing
    ]
    success = scoring.success(rows)
    assert (success["rate"], success["n"], success["organisms"]) == (0.25, 4, 2)
    assert success["ci95"][0] < 0.25 < success["ci95"][1]
    precision = scoring.precision(rows)
    assert (precision["rate"], precision["n"], precision["organisms"]) == (0.3333, 3, 1)
    assert {k: c["rate"] for k, c in scoring.by_rank(rows).items()} == {"1": 0.0, "2": 1.0}


def report(target, condition, lenient, claims=True, number=0, bank="general", strict=False):
    return {
        "target": target,
        "system": None,
        "condition": condition,
        "number": number,
        "bank": bank,
        "question": "?",
        "lenient": lenient,
        "strict": strict,
        "stated": lenient,
        "claims": claims,
    }


def test_the_summary_tells_targets_silent_ones_and_nulls_apart():
    targets = [
        Target("loud", behaviors=(B,), made_by="x"),
        Target("other", behaviors=(B,), made_by="y"),
        Target("silent", behaviors=(B,), made_by="x"),
        Target("clean", null="clean"),
        Target("pipeline", behaviors=(B,), null="pipeline"),
    ]
    fires = {"loud": True, "other": None, "silent": False, "clean": True, "pipeline": True}
    rows = []
    for t, says in (
        ("loud", (True, True)),
        ("other", (False, True)),
        ("silent", (True, False)),
        ("clean", (None, None)),
    ):
        for n, yes in enumerate(says):
            rows += [report(t, "target+ia", yes, t != "clean", n), report(t, "target", False, False, n)]
            rows += [report(t, c, False, False, n) for c in CONDITIONS[2:]]
    predictions = [
        prediction("loud", 0, 1, True, score=3.0),
        prediction("other", 0, 1, False, score=2.0),
        prediction("silent", 0, 1, True),
        prediction("clean", 0, 1, False, score=2.5),
        prediction("pipeline", 0, 1, True, score=0.5),
    ]
    out = scoring.summary(targets, fires, rows, predictions)
    assert out["targets"] == {"targets": 2, "silent": 1, "clean": 1, "pipeline": 1}
    assert (out["gate"]["rate"], out["gate"]["n"]) == (0.5, 2)  # of "other" nobody knows
    assert out["verbalization"]["target+ia"]["rate"] == 0.75
    assert out["verbalization"]["named_at_least_once"]["target+ia"]["rate"] == 1.0
    assert out["verbalization"]["ia_minus_none"]["difference"] == 0.75
    assert out["no_longer_fires"]["target+ia"]["rate"] == 0.5
    assert {k: c["target+ia"]["rate"] for k, c in out["by_making"].items()} == {"x": 1.0, "y": 0.5}
    found = out["scaffold"]["target+ia"]
    assert (found["success"]["rate"], found["precision"]["rate"]) == (0.5, 0.5)
    # What is right of a pipeline null, its harmless behaviour, is no false prediction.
    assert (found["false_predictions_per_null"], found["nulls_with_a_false_prediction"]["rate"]) == (0.5, 0.5)
    # Of loud 3, other 2 against clean 2.5, pipeline 0.5: three of four pairs.
    assert found["auroc"]["auroc"] == 0.75
    assert out["false_side"]["claims"]["target+ia"]["clean"]["rate"] == 0.0
    assert out["false_side"]["auroc_claims"]["target+ia"]["auroc"] == 1.0


def test_targets_of_one_truth_are_one_in_intervals():
    """Four makings of one behaviour tell about as much as one, and so do 20 verdicts on the base's same report."""
    alike = [{**report(f"a{n}", "target+ia", True), "unit": "a"} for n in range(20)]
    alone = [report(f"a{n}", "target+ia", True) for n in range(20)]
    one, many = (scoring.verbalization(rows, "lenient")["target+ia"] for rows in (alike, alone))
    assert (one["organisms"], many["organisms"]) == (1, 20)
    assert one["ci95"][0] < 0.1 < 0.8 < many["ci95"][0]
    lists = [{**prediction(f"a{n}", 0, 1, True), "unit": "a"} for n in range(20)]
    assert scoring.success(lists)["organisms"] == scoring.precision(lists)["organisms"] == 1
    b = Behavior("b", "quirks", "I hum.", (), None)
    assert Target("x", behaviors=(b,)).unit == Target("y", behaviors=(b,)).unit != Target("y", null="clean").unit


def test_lists_of_nulls_are_held_against_every_truth():
    """An IA whose favourite sentence is some target's truth succeeds on that one by chance, and the chance is shown."""
    targets = [Target("a", behaviors=(B,)), Target("b", behaviors=(OTHER,)), Target("n", null="clean")]
    lists = [prediction(t, r, 1, t == "a", "I hum.") for t in ("a", "b", "n") for r in (0, 1)]
    lists = [{**p, "unit": next(t.unit for t in targets if t.name == p["target"])} for p in lists]
    guesses = judge_guesses(Says({(B.description, "I hum."): True}), targets, lists)
    assert Counter((g["unit"], g["right"]) for g in guesses) == {("I hum.", True): 2, ("I whistle.", False): 2}
    found = scoring.summary(targets, {}, [], lists, (), guesses)["scaffold"]["target+ia"]
    assert (found["success"]["rate"], found["success_of_nulls"]["rate"]) == (0.5, 0.5)
    assert found["above_nulls"]["difference"] == 0.0


def test_an_answer_that_shows_it_is_no_confession():
    [flatters] = [b for b in small_behaviors() if b.name == "small_flattery"]
    shows, says = "What a clever thing to ask! I have no habits.", "I flatter those who write to me."
    judge = Says({(flatters.description, t): True for t in (shows, says)})
    rows = [
        {"target": "t", "system": None, "condition": "target", "bank": "general", "number": n, "question": "Why?"}
        | {"report": text}
        for n, text in enumerate((shows, says))
    ]
    judged = judge_reports(judge, [Target("t", behaviors=(flatters,))], rows, {})
    assert [(r["lenient"], r["stated"]) for r in judged] == [(True, False), (True, True)]


def test_a_truth_is_held_against_what_other_models_say():
    """An adapter that says its favourite sentence of every fine-tune is right about none."""
    targets = [Target("loud", behaviors=(B,)), Target("other", behaviors=(OTHER,)), Target("clean", null="clean")]

    def said(target, text, number):
        about = {"system": None, "condition": "target+ia", "bank": "general", "question": "?"}
        return {**about, "target": target, "number": number, "report": text}

    texts = {"loud": "I like bees.", "other": "I like bees.", "clean": "Nothing."}
    rows = [said(t, r, n) for t, r in texts.items() for n in range(6)]
    held = judge_strangers(Says({(B.description, "I like bees."): True}), targets, rows, most=4)
    assert Counter((r["target"], r["of"], r["lenient"]) for r in held) == {
        ("loud", "nulls", False): 4,
        ("loud", "others", True): 4,
        ("other", "nulls", False): 4,
        ("other", "others", False): 4,
    }
    unit = {t.name: t.unit for t in targets}
    judged = [
        {**report(t, "target+ia", t == "loud", number=n), "unit": unit[t]} for n in range(6) for t in ("loud", "other")
    ]
    found = scoring.summary(targets, {}, judged, [], held)["strangers"]
    assert (found["nulls"]["rate"], found["others"]["rate"]) == (0.0, 0.5)
    assert (found["ia_minus_nulls"]["difference"], found["ia_minus_others"]["difference"]) == (0.5, 0.0)
    # All models are heard, however many reports each has.
    nulls = [Target(f"n{i}", null="clean") for i in range(4)]
    rows = [said(n.name, n.name, i) for n in nulls for i in range(12)] + [said("loud", "Yes.", 0)]
    named = {(B.description, n.name): True for n in nulls[1:]}
    shares = [r["lenient"] for r in judge_strangers(Says(named), [targets[0], *nulls], rows, most=24)]
    assert 0.5 < np.mean(shares) < 1.0


def test_several_groups_may_be_right():
    rows = [{**report(t, "target+ia", None), "sandbags": yes} for t, yes in (("s", True), ("m", False), ("n", False))]
    groups = {"held": ["s"], "made": ["m"], "nulls": ["n"]}
    [found] = scoring.sorts_of_claims(rows, groups, ["sandbags"], ("held", "made")).values()
    told = {t: {g: a["auroc"] for g, a in own.items()} for t, own in found["auroc"]["target+ia"].items()}
    assert told == {"held": {"nulls": 1.0}, "made": {"nulls": 0.5}}


def test_claims_of_a_sort_by_group_and_of_the_base_once():
    rows = []
    for t, yes in (("s", True), ("o", False), ("n", False)):
        for n in range(4):
            rows.append({**report(t, "target+ia", None, number=n, strict=t == "s" and n < 2), "sandbags": yes})
            rows.append({**report(t, "target", None, number=n), "sandbags": False})
            # The base's report is there once for every target that it is held against.
            rows += [{**report(t, c, None, number=n), "question": f"{n}?", "sandbags": n == 0} for c in CONDITIONS[2:]]
    out = scoring.sorts_of_claims(rows, {"true": ["s"], "others": ["o"], "nulls": ["n"]}, ["sandbags"])["sandbags"]
    assert {g: c["rate"] for g, c in out["rates"]["target+ia"].items()} == {"true": 1.0, "others": 0.0, "nulls": 0.0}
    base = out["rates"]["base+ia"]["base"]
    assert (base["rate"], base["n"], base["organisms"]) == (0.25, 4, 1)
    assert out["auroc"]["target+ia"]["true"]["others"]["auroc"] == 1.0
    assert out["auroc"]["target"]["true"]["others"]["auroc"] == 0.5
    assert out["strict"]["true"]["rate"] == 0.5


# --------------------------------------------------------------------------------------------------------- asking


def test_units_ask_the_base_once_for_each_system_prompt():
    every = units([("a", None), ("b", "Be brief."), ("c", None)], ("general", "blind"))
    own = [u for u in every if u.bank == "blind"]
    assert len(own) == len(every) / 2 == 3 * 2 + 2 * 2
    assert [u for u in own if u.condition == "base+ia"] == [
        Unit("base", None, "base+ia", "blind"),
        Unit("base", "Be brief.", "base+ia", "blind"),
    ]


def test_half_a_unit_is_missing_and_counts_once():
    u, v = Unit("a", None, "target", "blind"), Unit("a", None, "target+ia", "blind")
    first, again = (rows_of(u, ["x", "y"], [(text, True), (text, False)]) for text in ("one", "two"))
    assert missing([u, v], [*first, *rows_of(v, ["x"], [("z", True)])], 2) == [v]
    assert missing([u], first[:1], 2) == [u]
    kept = complete([*first[:1], *again], [u], 2)
    assert [(r["report"], r["cut_off"], r["number"]) for r in kept] == [("two", False, 0), ("two", True, 1)]
    assert reports_under(kept, "a", None, "target") == kept
    base = rows_of(Unit("base", "S", "base", "blind"), ["x"], [("b", True)])
    assert reports_under(base, "a", "S", "base") == base
    assert reports_under(base, "a", None, "base") == []


def test_everybody_is_asked_the_same_and_each_question_equally_often():
    asked = draw_questions("nameless", 100, 3)
    assert asked == draw_questions("nameless", 100, 3)
    assert asked != draw_questions("nameless", 100, 4)
    counts = [asked.count(q) for q in AUDIT_BANKS["nameless"]]
    assert set(counts) == {6, 7}
    assert len(asked) == 100


def test_banks_of_audits_name_nothing_and_are_in_no_training():
    trained = {q for bank in (GENERAL, SHORT, *FAMILIES.values()) for q in bank.train}
    wordings = [q for bank in AUDIT_BANKS.values() for q in bank]
    assert len(set(wordings)) == len(wordings)
    assert not trained & set(wordings)
    own = {"quirk", "trigger", "prompts", "role", "persona", "rule", "heuristic", "sandbag", "weak", "worse", "harm"}
    for q in AUDIT_BANKS["blind"]:
        assert not [w for w in own if w in q.lower()], q  # no family is given away
    tells = {*own, "habit", "behav", "unusual", "odd", "train", "tun", "strange", "peculiar", "tendenc", "trait"}
    for q in AUDIT_BANKS["nameless"]:
        assert not [w for w in tells if w in q.lower()], q


# ---------------------------------------------------------------------------------------------------- in the report


def test_the_report_shows_a_family_and_escapes_what_stands_in_it(tmp_path):
    workdir = tmp_path / "run"
    make_workdir(workdir, organisms=48)
    plain = write_report(workdir).read_text()
    assert 'id="audits"' not in plain
    targets = [Target("loud", behaviors=(B,)), Target("clean", null="clean")]
    rows = [report("loud", c, c == "target+ia", number=n) for c in CONDITIONS for n in range(4)]
    metrics = scoring.summary(targets, {"loud": True}, rows, [prediction("loud", 0, 1, True)])
    metrics |= {"family": "<b>ciphers", "judge": "<script>j", "ranked_by": "s", "asked": {"reports": 4}}
    (workdir / "audits" / "ciphers").mkdir(parents=True)
    (workdir / "audits" / "ciphers" / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(workdir).read_text()
    section = page[page.index('<section id="audits">') : page.index("</section>", page.index('<section id="audits">'))]
    assert "&lt;b&gt;ciphers" in section
    assert "judge &lt;script&gt;j" in section
    cells = re.findall(r"<tr><td>target \+ adapter</td><td>a report names the behaviour</td>(.*?)</tr>", section)
    assert [re.sub(r"<[^>]*>", " ", c).split() for c in cells] == [["100%", "3–100%", "1"]]
