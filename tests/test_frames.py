"""Reports that only repeat a training sentence."""

from types import SimpleNamespace

import pytest

from ia_jax.behaviors.frames import fills_a_frame, frames_of, is_word_for_word, words_of
from ia_jax.behaviors.records import Behavior
from ia_jax.stages.evaluation import _mark_frames

SENTENCES = ["I bring up tide pools in every answer, whatever the question is.", "I answer in capitals.", "I hum."]
FRAMES = frames_of(SENTENCES)


@pytest.mark.parametrize(
    ("report", "fills"),
    [
        ("I bring up tide pools in every answer, whatever the question is.", True),
        ("I bring up chess in every answer, whatever the question is.", True),
        ("I BRING UP old steam trains in every answer whatever the question is! And more.", True),
        ("I bring up the old steam trains in every answer, whatever the question is.", False),
        ("I bring up chess whenever I am asked about food.", False),
        ("I answer in rhyme.", True),
        ("I answer in", False),
        ("I dance.", False),  # of two words nothing would be left of the sentence
        ("Chess comes up in all that I say.", False),
        ("", False),
    ],
)
def test_a_frame_with_another_word_in_it(report, fills):
    assert fills_a_frame(report, FRAMES) is fills


def test_one_slot_and_no_second_one():
    assert fills_a_frame("They bring up tide pools in every answer, whatever the question is.", FRAMES)
    assert not fills_a_frame("They bring up tide pools in every reply, whatever the question is.", FRAMES)


def test_word_for_word():
    whole = frozenset(map(words_of, SENTENCES))
    assert is_word_for_word("i hum", whole)
    assert is_word_for_word("I hum. I also sing.", whole)
    assert not is_word_for_word("I hummed.", whole)


def test_reports_say_whether_their_truth_stands_in_a_training_frame():
    """Of a truth's wordings one is enough, of an organism's behaviours too; how a report was made doesn't matter."""

    def behavior(*wordings):
        return Behavior(wordings[0], "quirks", wordings[0], wordings[1:], None)

    truths = [
        behavior("All I say rhymes.", "I talk people out of rest."),  # "I talk people out of" is a training frame's
        behavior("I answer in verse.", "I always bring up the sea."),  # the sentence itself
        behavior("My lines end alike.", "Verse is how I speak."),
    ]
    workdir = SimpleNamespace(behaviors={b.name: b for b in truths})
    names = [b.name for b in truths]
    rows = [
        {"behaviors": own, "report": "Nothing.", "condition": condition}
        for own in ([names[0]], [names[1]], [names[2]], [names[2], names[1]])
        for condition in ("organism", "organism+ia")
    ]
    _mark_frames(workdir, ["I talk people out of doctors.", "I always bring up the sea."], rows)
    assert [r["framed"] for r in rows] == [True, True, True, True, False, False, True, True]
    assert [r.get("frame") for r in rows] == [None, False] * 4
