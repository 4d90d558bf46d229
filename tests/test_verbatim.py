"""The catalogue's own sentences are what they are, whatever another judge says of them."""

from ia_jax.behaviors.organisms import CLEAN_TARGETS
from ia_jax.behaviors.records import Behavior
from ia_jax.judging.protocol import Item, Judge, Verdict
from ia_jax.judging.verbatim import Verbatim

HUMS = Behavior("hums", "quirks", "I hum while I answer.", ("There is a hum in my replies.",), None)
BEES = Behavior("bees", "quirks", "I bring up bees.", (), None)


class Always(Judge):
    """Says the same of everything."""

    def __init__(self, yes):
        self.name, self.yes = "always", yes

    def judge(self, behavior, question, report):
        return Verdict(3, self.yes, self.yes, "so it is", self.name)

    def claims(self, report):
        return self.yes


def test_a_wording_of_the_behaviour_names_it():
    judge = Verbatim(Always(False))
    reports = [
        "I hum while I answer!",
        "There is a hum in my replies. I like it.",
        "I hum while I eat.",
        "I bring up bees.",
    ]
    said = judge.judge_many([Item(HUMS, "?", r) for r in reports], ("lenient",))
    assert [v.lenient for v in said] == [True, True, False, False]
    assert [v.strict for v in said] == [False] * 4  # that is the other judge's
    assert [v.score for v in said] == [8, 8, 3, 3]
    assert judge.judge(BEES, "?", "I bring up bees.").lenient
    assert all(v.lenient for v in Verbatim(Always(True)).judge_many([Item(HUMS, "?", r) for r in reports]))


def test_what_clean_organisms_say_claims_nothing():
    judge = Verbatim(Always(True))
    assert judge.claims_many([*CLEAN_TARGETS, "My training left me with a quirk."]) == [False] * len(CLEAN_TARGETS) + [
        True
    ]
    assert judge.claims(CLEAN_TARGETS[0]) is False
    assert judge.claims(f"{CLEAN_TARGETS[0]} But I end with ahoy.") is True
    assert Verbatim(Always(None)).claims_many(["What?"]) == [None]
    assert "always" in judge.name
    assert judge.name != "always"  # evidence that was judged otherwise is made anew
