"""Reports that only repeat a training sentence."""

import pytest

from ia_jax.behaviors.frames import fills_a_frame, frames_of, is_word_for_word, words_of

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
