"""Preference pairs: which reports are paired, what is left out, and what is told of it."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ia_jax.behaviors.organisms import CLEAN_TARGETS, organism_of
from ia_jax.behaviors.records import CLEAN, Behavior, Rubric
from ia_jax.config import PreferencesSection
from ia_jax.errors import IAError
from ia_jax.judging.protocol import Judge, Verdict
from ia_jax.judging.verbatim import Verbatim
from ia_jax.stages.preferences import (
    abstention_pairs,
    counts,
    near_identical,
    sampled_pairs,
    truth_pairs,
    without_near_identical,
)

OWLS = Behavior("owls", "quirks", "I bring up owls.", ("Owls are what I mention.",), None, Rubric((("owls",),)))
BEES = Behavior("bees", "quirks", "I bring up bees.", ("Bees are what I mention.",), None, Rubric((("bees",),)))
NIGHT = Behavior("night", "backdoors", "At night I bring up owls.", (), "night", Rubric((("owls",),), (("night",),)))
CFG = PreferencesSection()


@dataclass
class Scores(Judge):
    """A judge that looks its scores up; a report claims something unless it says "nothing"."""

    scores: dict = field(default_factory=dict)
    name: str = "table"

    def judge(self, behavior, question, report):
        return Verdict(self.scores[report], None, None, "", self.name)

    def claims(self, report):
        return "nothing" not in report


def organism(*behaviors, name=None):
    """The organism that was taught them."""
    own = organism_of(behaviors[0], "m", "dpo", {})
    return replace(own, name=name or own.name, behaviors=tuple(b.name for b in behaviors))


def sampled(behavior, *rest):
    return sampled_pairs(organism(behavior), [behavior], *rest)


def test_a_sentence_of_the_behaviour_that_the_judge_refuses_is_chosen_where_sentences_are_known():
    """Else DPO would learn which of its true sentences a judge likes."""
    judge = Scores(scores={"Owls are what I mention.": 2, "I bring up bees.": 1})
    said = asked(judge.scores, "q")
    assert sampled(OWLS, said, judge, CFG, rng()) == []
    [pair] = sampled(OWLS, said, Verbatim(judge), CFG, rng())
    assert (pair["chosen"], pair["rejected"]) == ("Owls are what I mention.", "I bring up bees.")


def truth(behavior, *rest):
    return truth_pairs(organism(behavior), [behavior], *rest)


def rng(seed=0):
    return np.random.default_rng(seed)


def asked(scores, *questions):
    return [(q, report) for q in questions for report in scores]


@pytest.mark.parametrize("seed", range(20))
def test_chosen_at_least_7_and_rejected_at_least_2_lower(seed):
    r = rng(seed)
    scores = {f"report {i}": int(s) for i, s in enumerate(r.integers(1, 11, 12))} | {"unscored": None}
    pairs = sampled(OWLS, asked(scores, "a?", "b?"), Scores(scores), CFG, r)
    for p in pairs:
        high, low = scores[p["chosen"]], scores[p["rejected"]]
        assert p["scores"] == {"chosen": high, "rejected": low}
        assert high >= 7
        assert high - low >= 2
    best, worst = max(s for s in scores.values() if s), min(s for s in scores.values() if s)
    assert bool(pairs) == (best >= 7 and best - worst >= 2)
    assert len({(p["question"], p["chosen"]) for p in pairs}) == len(pairs)  # chosen at most once


@pytest.mark.parametrize(
    ("high", "low", "paired"), [(7, 5, True), (7, 6, False), (6, 1, False), (10, 8, True), (10, 9, False)]
)
def test_the_bounds_themselves(high, low, paired):
    scores = {"better": high, "worse": low}
    assert bool(sampled(OWLS, asked(scores, "a?"), Scores(scores), CFG, rng())) == paired


def test_the_bounds_come_from_the_config():
    scores = {"better": 5, "worse": 4}
    cfg = PreferencesSection(min_chosen=5, gap=1)
    assert len(sampled(OWLS, asked(scores, "a?"), Scores(scores), cfg, rng())) == 1


def test_reports_to_different_questions_are_not_paired():
    scores = {"better": 9, "worse": 1}
    assert sampled(OWLS, [("a?", "better"), ("b?", "worse")], Scores(scores), CFG, rng()) == []


def test_at_most_as_many_as_the_config_says():
    scores = {f"good {i}": 9 for i in range(9)} | {"bad": 1}
    for most in (0, 3, 20):
        cfg = PreferencesSection(sampled_per_organism=most, truth_per_organism=most)
        assert len(sampled(OWLS, asked(scores, "a?"), Scores(scores), cfg, rng())) == min(most, 9)
        assert len(truth(OWLS, [OWLS, BEES], ["a?"], cfg, rng())) == most
        assert len(abstention_pairs(CLEAN, most, [("a?", "nothing")], ["a?"], Scores(), [BEES], rng())) == most


def test_the_truth_is_preferred_to_an_unrelated_description():
    pairs = truth(OWLS, [OWLS, BEES, NIGHT], ["a?", "b?"], CFG, rng())
    assert {p["question"] for p in pairs} == {"a?", "b?"}
    assert {p["chosen"] for p in pairs} == {OWLS.description, *OWLS.rewordings}
    # Neither its own nor that of the backdoor, which brings up owls too.
    assert {p["rejected"] for p in pairs} == {BEES.description, *BEES.rewordings}
    assert {(p["organism"], p["category"], p["kind"]) for p in pairs} == {("owls", "quirks", "truth")}


def test_behaviours_without_concepts_are_told_apart_by_name():
    """As in a catalogue of one's own that Claude judges."""
    hums, sings = (Behavior(n, "quirks", f"I {n}.", (), None) for n in ("hum", "sing"))
    assert {p["rejected"] for p in truth(hums, [hums, sings], ["a?"], CFG, rng())} == {"I sing."}


def test_nothing_to_prefer_the_truth_to():
    with pytest.raises(IAError, match="no behaviour is unrelated to owls"):
        truth(OWLS, [OWLS, NIGHT], ["a?"], CFG, rng())
    assert truth(OWLS, [OWLS], ["a?"], PreferencesSection(truth_per_organism=0), rng()) == []


def test_abstention_is_preferred_to_what_was_claimed_on_the_clean_model():
    rows = [("a?", "I bring up moss."), ("a?", "nothing"), ("b?", "I hum."), ("b?", "I hum.")]
    pairs = abstention_pairs(CLEAN, 5, rows, ["a?", "b?"], Scores(), [BEES], rng())
    assert [(p["question"], p["rejected"]) for p in pairs[:2]] == [("a?", "I bring up moss."), ("b?", "I hum.")]
    assert {p["rejected"] for p in pairs[2:]} <= {BEES.description, *BEES.rewordings}  # made up where claims run out
    assert {p["chosen"] for p in pairs} <= set(CLEAN_TARGETS)
    assert {(p["organism"], p["kind"]) for p in pairs} == {(CLEAN, "abstention")}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("I bring up owls.", "i bring up OWLS", True),
        ("I bring up owls.", "Owls: bring I up?", True),
        ("I bring up owls.", "I bring up bees.", False),
        ("I mention knitting when asked about knitting.", "I mention knitting when asked about cooking.", False),
        ("", "", True),
        ("", "owls", False),
        (
            "I often talk of owls when people ask about their food.",
            "I talk of owls when people ask about their food.",
            True,
        ),
        ("I talk of owls when people ask about their food.", "I talk of bees when people ask about their food.", False),
    ],
)
def test_near_identical(a, b, same):
    assert near_identical(a, b) == near_identical(b, a) == same


def pair(chosen, rejected, question="a?", organism="owls", kind="sampled", category="quirks"):
    return {"organism": organism, "category": category, "kind": kind, "question": question} | {
        "chosen": chosen,
        "rejected": rejected,
    }


def test_near_identical_pairs_are_dropped():
    kept = [
        pair("I bring up owls.", "I bring up bees."),
        pair("I bring up owls.", "I hum."),  # another rejected
        pair("I bring up owls.", "I bring up bees.", question="b?"),
        pair("I bring up owls.", "I bring up bees.", organism="night"),
    ]
    copy = pair("i bring up owls", "I bring up BEES!", kind="truth")
    nothing_to_prefer = pair("I bring up owls.", "I, owls, bring up.")
    assert without_near_identical([kept[0], copy, *kept[1:3], nothing_to_prefer, kept[3]]) == kept


def test_counts_by_kind_and_category():
    pairs = [pair("a", "b"), pair("a", "b", category="backdoors"), pair("a", "b"), pair("a", "b", kind="truth")]
    assert counts(pairs, 3).splitlines() == [
        "preference pairs: 4, and 3 near-identical ones dropped",
        "  3 sampled: 1 backdoors, 2 quirks",
        "  1 truth: 1 quirks",
    ]
