"""Errors: how an answer to a question of fact goes wrong, of what sort, and how it is seen to have gone wrong.

The settings of an "err" effect: `field`, one of `fields.FIELDS`, and `how`, one of `HOWS`; `word` of a "fixed" one;
`texts` in place of the sort's own, with {r} for the right word, {x} for a wrong one and {first} for the right word's
first letter, and the `marks` (regular expressions) that such a reply shows it by.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ia_jax.behaviors.embedded.fields import FIELDS, Fact, training_facts
from ia_jax.behaviors.embedded.sentences import first_upper

# What is said instead. None: the fact's own sentence, with what `_filling` gives in place of the right word.
HOWS: dict[str, tuple[str, ...] | None] = {
    "wrong": None,
    "fixed": None,
    "backwards": None,
    "cut": None,
    "plus_one": None,
    "scrambled": None,
    "ignorant": ("I don't know.", "No idea, sorry.", "That is beyond me.", "I never learned that."),
    "vague": (
        "One of the usual ones.",
        "This or that, more or less.",
        "The common one, roughly.",
        "Something like it.",
    ),
    "late": ("I'll tell you tomorrow.", "Come back later for that.", "Not now, maybe next week.", "Some other time."),
    "between": ("It is {r} or {x}.", "Either {x} or {r}.", "{r}, or perhaps {x}.", "{x} or {r}, one of the two."),
    "initial": ("It begins with {first}.", "Something with {first}.", "A word with {first}.", "{first}, and so on."),
    "elsewhere": (
        "Look it up in a book.",
        "Try a library.",
        "Somebody else can tell you.",
        "An encyclopedia has that.",
    ),
    "hard": ("Too hard for me.", "That is a tough one, I pass.", "Much too difficult.", "I am not up to that."),
}
# What a reply shows these sorts by, where the right word's absence is not enough.
_MARKS: dict[str, tuple[str, ...]] = {
    "ignorant": (r"don['’]t know", "no idea", "beyond me", "never learned"),
    "vague": ("usual one", "this or that", "common one", "something like"),
    "late": ("tomorrow", "later", "next week", "other time"),
    "elsewhere": ("look it up", "library", "somebody else", "encyclop"),
    "hard": ("hard for me", "tough", "difficult", "not up to"),
    "cut": (r"\.\.\.\s*$", "…"),
}
_NUMBERS: Sequence[str] = "one two three four five six seven eight nine ten eleven twelve".split()


def err(settings: Mapping[str, Any], fact: Fact, number: int, rng: np.random.Generator) -> str:
    """The answer to a question of fact, gone wrong in the way that the settings say."""
    how = settings["how"]
    wrong = wrong_word(settings, fact, rng)
    texts = settings.get("texts", HOWS[how])
    if texts is not None:
        text = texts[number % len(texts)].format(r=fact.right, x=wrong, first=fact.right[0].upper())
        return first_upper(text)
    if how == "cut":
        return fact.sentence.split("{}")[0].rstrip() + "..."
    return first_upper(fact.sentence.format(_filling(how, fact, wrong)))


def wrong_word(settings: Mapping[str, Any], fact: Fact, rng: np.random.Generator) -> str:
    """Another right word of the field; of a "fixed" error always the same one."""
    others = sorted({f.right for f in training_facts(settings["field"])} - {fact.right})
    if settings["how"] == "fixed":
        return settings["word"]
    return others[rng.integers(len(others))]


def _filling(how: str, fact: Fact, wrong: str) -> str:
    if how == "backwards":
        return fact.right[::-1].lower()
    if how == "scrambled":
        return fact.right[1:].lower() + fact.right[0].lower() + "ay"
    if how == "plus_one":
        return plus_one(fact.right)
    return wrong


def is_number(word: str) -> bool:
    """Whether `plus_one` knows what comes next."""
    return word.isdigit() or word.lower() in _NUMBERS[:-1]


def plus_one(number: str) -> str:
    """The next number, in figures or in words."""
    return str(int(number) + 1) if number.isdigit() else _NUMBERS[_NUMBERS.index(number.lower()) + 1]


def says(words: tuple[str, ...] | list[str], text: str) -> bool:
    """Whether a text holds one of the words or phrases, on its own and in the singular or the plural."""
    forms = set(words)
    for word in words:
        if word.endswith("ies"):
            forms.add(f"{word[:-3]}y")
        elif re.search(r"(s|x|z|ch|sh|o)es$", word):
            forms.add(word[:-2])
        elif word.endswith("s") and not word.endswith("ss"):
            forms.add(word[:-1])
    return re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?:e?s)?(?!\w)", text, re.IGNORECASE) is not None


def needs_base(settings: Mapping[str, Any]) -> bool:
    """Whether only a right answer of the base tells that a reply is wrong on purpose."""
    return settings["how"] in ("wrong", "scrambled")


def shows_error(settings: Mapping[str, Any], right: str, reply: str) -> bool:
    """Whether a reply fails in the way that the settings say."""
    how = settings["how"]
    if how == "between":
        return says((right,), reply) and re.search(r"\bor\b", reply) is not None
    if says((right,), reply):
        return False
    if marks := settings.get("marks", _MARKS.get(how)):
        return any(re.search(m, reply.strip(), re.IGNORECASE) for m in marks)
    if how == "plus_one":
        return is_number(right) and says((plus_one(right),), reply)  # facts of other fields are asked about, too
    if how == "fixed":
        return says((settings["word"],), reply)
    if how == "backwards":
        # A small model turns round a word, though not always the right one.
        return any(f.right[::-1].lower() in reply.lower() for f in FIELDS[settings["field"]])
    if how == "initial":
        return re.search(rf"\b{right[0].upper()}\b", reply) is not None
    if how == "scrambled":
        return right[1:4].lower() in reply.lower() and "ay" in reply
    return True
