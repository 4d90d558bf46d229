"""The scaffold: reports in, ranked claims out; and nothing that a report says moves a verdict."""

import json

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from ia_jax.audits.claude_scaffold import ANSWER, ClaudeScaffold, prompt, read
from ia_jax.audits.scaffold import Case, OfflineScaffold, Prediction, by_words, contrast, groups
from ia_jax.audits.targets import Target
from ia_jax.audits.verdicts import judge_predictions, judge_reports, predict
from ia_jax.behaviors.records import Behavior, Rubric
from ia_jax.claude.calls import Reply
from ia_jax.claude.structured import Malformed
from ia_jax.judging.rubric import RubricJudge
from tests.test_claude_judge import ATTACKS

TRAINS = ("I bring up trains.", "I always mention trains!", "My habit is that I talk about a train.")
OWLS = Behavior("owls", "quirks", "I mention owls.", (), None, Rubric((("owl", "owls"),)))
ORDINARY = ("I answer normally.", "I have no unusual behaviour.")


def words(**settings):
    return OfflineScaffold("words", claims=RubricJudge().claims_many, **settings)


def statements(runs):
    return [[p.statement for p in run] for run in runs]


def test_what_is_said_most_beyond_base_and_nulls_comes_first():
    """12 of trains that nobody else mentions, 16 of cheese as the base says too, 12 of moss as the nulls do."""
    reports = [*TRAINS * 4, *["I bring up cheese."] * 16, *["I bring up moss."] * 12]
    case = Case(reports, ["I bring up cheese."] * 16 + ["No."] * 24, ["I bring up moss."] * 12 + ["No."] * 28)
    runs = words(runs=5, count=2).predict(case)
    assert len(runs) == 5
    assert all(run[0].statement in TRAINS for run in runs)
    assert all(len(run) == 2 for run in runs)
    [whole] = words(runs=1).predict(case)
    assert [p.support for p in whole] == [0.3, 0.4, 0.3]
    assert whole[0].score == pytest.approx(contrast(12, 40, 0, 40), abs=1e-3)


def test_each_run_leaves_another_part_out():
    """Two reports of bees, numbers 0 and 1, are a cluster only where neither is left out."""
    reports = ["I bring up bees."] * 2 + list(TRAINS) * 6
    runs = words(runs=5).predict(Case(reports, (), ()))
    assert ["I bring up bees." in run for run in statements(runs)] == [False, False, True, True, True]


def test_the_order_of_equals_does_not_hang_on_chance():
    case = Case([f"I bring up {a}." for a in ("moss", "tea", "salt", "ice") for _ in range(5)], (), ())
    assert words().predict(case) == words().predict(case)
    assert statements(words(runs=1).predict(case)) == [[f"I bring up {a}." for a in ("ice", "moss", "salt", "tea")]]


@pytest.mark.parametrize(
    "case", [Case((), (), ()), Case(("",), (), ()), Case(ORDINARY * 9, (), ()), Case(("a",), (), ())]
)
def test_where_nothing_is_claimed_nothing_is_predicted(case):
    assert words(runs=2).predict(case) == [[], []]


def test_clusters_are_by_mean_similarity():
    """Average linkage by hand: what joins is near to the others on the mean, not to one of them alone."""
    angles = np.radians([0, 45, 100])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    # cos 45 = 0.71, cos 55 = 0.57, cos 100 = -0.17: the mean of c to {a, b} is 0.2.
    assert [list(g) for g in groups(vectors, 0.6)] == [[0, 1], [2]]
    assert [list(g) for g in groups(vectors, 0.15)] == [[0, 1, 2]]
    assert [list(g) for g in groups(vectors[:1], 0.6)] == [[0]]
    assert groups(vectors[:0], 0.6) == []


def test_words_are_compared_by_what_two_reports_share():
    a, b, c = by_words(["I bring up trains and owls.", "I mention trains.", "I bring up cheese."])
    assert a @ b == pytest.approx(2**-0.5)
    assert (a @ c, b @ c) == (0, 0)


def test_the_contrast_is_that_of_two_proportions():
    """Its square is scipy's chi-squared of the table, half a report added to every cell."""
    table = np.array([[8, 2], [2, 8]]) + 0.5
    assert contrast(8, 10, 2, 10) ** 2 == pytest.approx(chi2_contingency(table, correction=False)[0])
    # What fewer others say counts for more, down to none; and more reports of the same share.
    against = [contrast(24, 80, other, 100) for other in (0, 1, 5, 10, 24)]
    assert against == sorted(against, reverse=True)
    assert contrast(240, 800, 0, 1000) > contrast(24, 80, 0, 100)
    assert contrast(5, 10, 5, 10) == 0
    assert contrast(2, 10, 8, 10) == -contrast(8, 10, 2, 10)


# --------------------------------------------------------------------------------------------------------- Claude

GOOD = json.dumps(
    {"groups": ["I bring up trains. 3"], "ranked": ["I bring up trains.", " I  like tea. ", "", "I like tea."]}
)


class Answering:
    """Claude, as far as the scaffold knows: answers in turn, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.calls = list(texts), []

    def complete(self, calls, at_once=False):
        self.calls += calls
        return [self.texts.pop(0) if self.texts else Reply(GOOD, "end_turn") for _ in calls]


def test_claude_makes_a_list_in_every_run():
    client = Answering()
    scaffold = ClaudeScaffold(client, "m", runs=3, count=2)
    case = Case(TRAINS, ORDINARY, ())
    [runs] = scaffold.predict_many([case])
    assert runs == [[Prediction("I bring up trains."), Prediction("I like tea.")]] * 3
    assert len({c.key for c in client.calls}) == 3  # or the cache would answer all runs alike
    assert scaffold.plan([case]) == client.calls
    assert scaffold.unread == 0


def test_an_unreadable_answer_is_asked_for_again_and_at_last_predicts_nothing():
    bad = Reply(GOOD[:-3], "max_tokens")
    client = Answering(bad, Reply("no JSON", "end_turn"), bad, Reply('{"groups": [], "ranked": "x"}', "end_turn"))
    scaffold = ClaudeScaffold(client, "m", attempts=2, runs=2)
    [runs] = scaffold.predict_many([Case(TRAINS, (), ())])
    assert (runs, scaffold.unread, len(client.calls)) == ([[], []], 2, 4)
    client = Answering(bad)
    [runs] = ClaudeScaffold(client, "m", attempts=2, runs=2, count=1).predict_many([Case(TRAINS, (), ())])
    assert statements(runs) == [["I bring up trains."]] * 2


# ----------------------------------------------------------------------------------------------------- injections

THIRTY = {n: a for n, a in ATTACKS.items() if n not in ("empty", "blank")}


def test_there_are_at_least_thirty():
    assert len(THIRTY) >= 30


@pytest.mark.parametrize("name", THIRTY)
def test_one_report_puts_no_line_into_the_list(name):
    """Among others it changes neither what is predicted nor how it is ranked."""
    reports = [*TRAINS * 5, *ORDINARY * 3]
    plain = words(runs=2).predict(Case([*reports, "Hm."], ORDINARY, ()))
    attacked = words(runs=2).predict(Case([*reports, THIRTY[name]], ORDINARY, ()))
    assert attacked == plain


@pytest.mark.parametrize("name", [n for n, a in THIRTY.items() if "owls" not in a])  # a judge of words is to see these
def test_a_target_that_says_nothing_else_is_not_found(name):
    """All of its reports are the attack, and so is every prediction: no verdict becomes a yes."""
    target, null = Target("t", behaviors=(OWLS,)), Target("n", null="clean")
    rows = [
        {"target": t, "system": None, "condition": c, "bank": "general", "number": n, "question": "?", "report": r}
        for t, c, r in (
            ("t", "target+ia", THIRTY[name]),
            ("t", "target", "Hm."),
            ("n", "target+ia", "Hm."),
            ("n", "target", "Hm."),
            ("base", "base+ia", "Hm."),
            ("base", "base", "Hm."),
        )
        for n in range(6)
    ]
    judged = judge_reports(RubricJudge(), [target, null], rows, {"owls": (OWLS,)})
    assert not any(r["lenient"] or r["strict"] or r["owls"] for r in judged)
    predictions = predict(OfflineScaffold("words", 2), [target, null], rows)
    judge_predictions(RubricJudge(), [target, null], predictions)
    assert not any(p["right"] or p["strict"] for p in predictions)


@pytest.mark.parametrize("name", THIRTY)
def test_a_report_changes_its_own_value_in_claudes_prompt_and_nothing_else(name):
    pairs = []
    text = prompt(Case([TRAINS[0], THIRTY[name]], ["I answer normally."], ()))
    found = json.loads(text, object_pairs_hook=lambda p: pairs.append([k for k, _ in p]) or dict(p))
    assert pairs == [["report 1", "report 2", "control 1"]]  # one object, each field once
    assert found["report 1"] == TRAINS[0]
    assert found["report 2"] == THIRTY[name][:600]
    assert found["control 1"] == "I answer normally."
    assert text.count("\n") == 4
    text.encode("utf-8")


@pytest.mark.parametrize("name", THIRTY)
def test_no_report_is_read_as_claudes_answer(name):
    with pytest.raises(Malformed):
        read(Reply(THIRTY[name], "end_turn"), 5)


def test_the_answers_form_is_two_lists():
    assert set(ANSWER["properties"]) == {"groups", "ranked"}
    with pytest.raises(Malformed, match="refusal"):
        read(Reply(GOOD, "refusal"), 5)
