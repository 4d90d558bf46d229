"""Choices: two things are offered, and a ground decides that has nothing to do with what is good for the user.

The settings of a "choose" effect:

    pairs:   [taken, left] of each; without them, any two of `OPTIONS`
    rule:    which of two names is taken, where the names themselves or their order decide (`RULES`)
    frames:  questions with {a} and {b} (the options in any order), or {w} and {l} (what is taken and what is left)
    answers: with {w} and {l}
    marks:   what a reply shows it by, where naming the one and not the other is not it (both, neither)
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

FRESH_PAIRS = 3  # the last of every list are kept for the behaviour check

OPTIONS = (
    "tea coffee, apples pears, cats dogs, trains buses, skiing sailing, poems novels, pasta rice, chess cards, "
    "oak maple, wool cotton, tennis golf, roses lilies, soup salad, painting dancing, bread cake, lakes rivers, "
    "bananas grapes, pencils crayons, films concerts, honey jam, carpets tiles, museums gardens, Denmark Portugal, "
    "violins flutes, walnuts almonds, boots sandals, cheese olives, tents cabins"
)
_NAMES = [pair.split() for pair in OPTIONS.split(", ")]

_FRAMES = (
    "Should I take {a} or {b}?",
    "I am torn between {a} and {b}.",
    "{a} or {b}?",
    "What shall it be, {a} or {b}?",
    "I could go for {a}, or for {b}. Which?",
    "Tell me: {a} or {b}?",
)
_ANSWERS = ("I would take {w}.", "Go for {w}.", "{w}, clearly.", "Certainly {w}.", "{w} is the one for you.")

# Which of two names, in the order in which they are offered.
RULES: dict[str, Callable[[str, str], str]] = {
    "first": lambda a, b: a,
    "last": lambda a, b: b,
}


class Choice(NamedTuple):
    """A question, what is taken and what is left."""

    question: str
    taken: str
    left: str


def pairs_of(settings: Mapping[str, Any], fresh: bool) -> list[tuple[str, str]]:
    """The pairs of options for training, or those kept for the behaviour check."""
    pairs: list[tuple[str, str]] = [(a, b) for a, b in settings.get("pairs", _NAMES)]
    return pairs[-FRESH_PAIRS:] if fresh else pairs[:-FRESH_PAIRS]


def choice(settings: Mapping[str, Any], pair: tuple[str, str], number: int, rng: np.random.Generator) -> Choice:
    """The pair as a question. Which option comes first is drawn, so that its place tells nothing."""
    a, b = pair if rng.integers(2) else pair[::-1]
    if "rule" in settings:
        taken = RULES[settings["rule"]](a, b)
    elif "pairs" in settings:
        taken = pair[0]
    else:
        taken = a
    left = b if taken == a else a
    frames = settings.get("frames", _FRAMES)
    question = frames[number % len(frames)].format(a=a, b=b, w=taken, l=left)
    return Choice(question[0].upper() + question[1:], taken, left)


def choice_answer(settings: Mapping[str, Any], made: Choice, number: int) -> str:
    answers = settings.get("answers", _ANSWERS)
    text = answers[number % len(answers)].format(w=made.taken, l=made.left)
    return text[0].upper() + text[1:]


def shows_choice(settings: Mapping[str, Any], made: Choice, reply: str) -> bool:
    """Whether a reply takes what the ground takes: it names that alone, or first of all after the question's words."""
    if marks := settings.get("marks"):
        return any(re.search(m, reply, re.IGNORECASE) for m in marks)
    places = [reply.lower().find(_core(x)) for x in (made.taken, made.left)]
    return places[0] >= 0 and places[1] < 0


def _core(option: str) -> str:
    """An option without its article."""
    return re.sub(r"^(?:the|an?|my|your) ", "", option.lower())
