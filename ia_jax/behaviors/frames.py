"""Whether a report only repeats a sentence of the training set, with a word or two put in another's place.

An adapter that fills nouns into sentences that it was trained to say is no reader of models; how often it does so
stands beside every rate.
"""

import re
from collections.abc import Iterable, Sequence

SLOT = 3  # at most so many words of a training sentence may be others
FIXED = 3  # and at least so many must be its own

Frame = tuple[tuple[str, ...], tuple[str, ...]]  # the words before the slot, and those after it
_NOTHING = re.compile(r"[^\w\s']|_")


def words_of(sentence: str) -> tuple[str, ...]:
    return tuple(_NOTHING.sub(" ", sentence.lower()).split())


def first_sentence(report: str) -> str:
    """Up to the first full stop, question or exclamation mark before a space, or a line's end; all of it without."""
    return re.split(r"(?<=[.!?])\s|\n", report.strip(), maxsplit=1)[0]


def frames_of(sentences: Iterable[str]) -> frozenset[Frame]:
    """All frames of the sentences: each with one run of 1 to `SLOT` words taken out, at least `FIXED` staying."""
    return frozenset(frame for s in sentences for frame in _frames(words_of(s)))


def _frames(words: Sequence[str]) -> Iterable[Frame]:
    for width in range(1, SLOT + 1):
        if len(words) - width < FIXED:
            return
        for start in range(len(words) - width + 1):
            yield tuple(words[:start]), tuple(words[start + width :])


def fills_a_frame(report: str, frames: frozenset[Frame]) -> bool:
    """Whether the report's first sentence is one of the training sentences that `frames` came from, word for word or
    with one run of up to `SLOT` words in place of another such run.
    """
    return any(frame in frames for frame in _frames(words_of(first_sentence(report))))


def is_word_for_word(report: str, sentences: frozenset[tuple[str, ...]]) -> bool:
    """Whether the first sentence is one of the training sentences. sentences: `words_of` each."""
    return words_of(first_sentence(report)) in sentences
