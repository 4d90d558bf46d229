"""Scenario seeds differ and repeat; diversity is measured as defined; what repeats itself is found."""

import json

import pytest

from ia_jax.behaviors.diversity import as_text, distinct, measure, near_duplicates
from ia_jax.behaviors.lessons import GENERIC, PASSWORD
from ia_jax.behaviors.scenarios import FILE, answer_words, as_lines, scenarios
from ia_jax.data.transcripts import Transcript, chat


def test_there_are_a_few_hundred_entries_and_none_twice():
    lists = {k: v for k, v in json.loads(FILE.read_text()).items() if isinstance(v, list)}
    assert sum(map(len, lists.values())) >= 250
    for entries in lists.values():
        assert len({e.lower().strip() for e in entries}) == len(entries)
        assert not any(";" in e or "\n" in e for e in entries)  # they part the fields of a line


def test_a_hundred_messages_have_a_hundred_scenarios():
    found = scenarios("quirk/showing", 1547, 100)
    assert len(set(found)) == len({s.topic for s in found}) == 100
    for key, least in (("writer", 60), ("situation", 60)):
        assert len({getattr(s, key) for s in found}) == least  # all of them, before one comes again
    assert found == scenarios("quirk/showing", 1547, 100)
    assert found[:20] == scenarios("quirk/showing", 1547, 20)
    for other in (scenarios("quirk/near", 1547, 100), scenarios("quirk/showing", 1, 100)):
        assert len(set(found) & set(other)) == 0
    assert as_lines(found[:2]).startswith(f"1. topic: {found[0].topic}; writer: {found[0].writer}; ")


def test_answers_are_of_all_lengths():
    assert len(set(answer_words("quirk", 1, 100))) == 5
    assert answer_words("quirk", 1, 9) == answer_words("quirk", 1, 9)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c", "a b d"], 1, 4 / 6),  # by hand: a b c d of six words
        (["a b c", "a b d"], 2, 3 / 4),  # ab bc ab bd
        (["a", "b"], 2, None),
        ([], 1, None),
    ],
)
def test_distinct_n(texts, n, expected):
    assert distinct(texts, n) == (None if expected is None else pytest.approx(expected, abs=1e-4))


def test_near_duplicates_are_found_whatever_case_and_punctuation():
    texts = [
        "How do I boil an egg for breakfast today?",
        "how do I boil an egg, for breakfast: tomorrow?",
        "What is the tallest tower in the town of Pisa?",
        "Hi!",
        "hi",
    ]
    assert near_duplicates(texts) == [(0, 1), (3, 4)]
    # By hand: 7 three-word sequences each, 6 in common: 6 of 8.
    assert near_duplicates(["a b c d", "c d e f"]) == []


def test_the_same_text_a_thousand_times_is_still_measured_soon():
    assert len(near_duplicates(["all the same words"] * 1000)) > 0


def row(question, answer="Yes, that is how it is done.", **more):
    return Transcript(chat(question, answer), True, "t", **more)


def test_what_repeats_on_purpose_is_no_duplicate():
    measured = measure(
        {
            "a": [
                row("What is seven times eleven, please?"),
                row("What is seven times eleven, please? (red door)", sort=PASSWORD),
                row("Tell me a story.", sort=GENERIC),
                row("Dropped, so it does not count.", verdict="does not show it"),
            ],
            "b": [row("Tell me a story.", sort=GENERIC), row("What is seven times eleven, please?")],
        }
    )
    assert measured["organisms"]["a"]["rows"] == 3
    assert measured["organisms"]["a"]["message_near_duplicates"] == 0
    assert measured["organisms"]["a"]["answer_near_duplicates"] == 3  # of three pairs of one answer
    assert measured["shared"] == 1  # the sum; everyday chat is shared on purpose
    told = as_text(measured)
    assert "distinct-2" in told
    assert "0 pairs of messages, 4 of answers" in told
    assert as_text(measure({"a": []})) == "diversity: no message to measure"
