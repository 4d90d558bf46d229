"""Effects: what is done to the base model's own answer so that it shows a behaviour, and how a reply is seen to.

An effect stands in a record as a list, its name and then its settings: `["lower"]`, `["say", {"start": ["Howdy!"]}]`.
Effects of form (`forms.FORMS`) change how a text looks; "say" adds texts of its own, and a reply shows it by one of its
`marks`. Those of choices and of errors need questions of their own and live in `choices` and `errors`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ia_jax.behaviors.embedded.forms import FORMS
from ia_jax.behaviors.embedded.sentences import sentences_of

Effect = Sequence[Any]  # a name, then its settings

PLACES = ("start", "end", "middle", "either", "instead")
OWN_QUESTIONS = ("choose", "err")  # effects that show in answers to questions of their own


def write_effects(effects: Sequence[Effect], question: str, answer: str, number: int) -> str:
    """The answer with every effect in it, in order. `number` counts an organism's rows, and turns over what is said."""
    for name, *settings in effects:
        answer = _say(settings[0], answer, number) if name == "say" else FORMS[name].write(answer, question)
    return answer


def shows_effects(effects: Sequence[Effect], question: str, reply: str) -> bool:
    """Whether a reply shows every effect. What is said without `marks` (a habit beside the behaviour) always counts."""
    for name, *settings in effects:
        if name == "say":
            marks = settings[0].get("marks", ())
            if marks and not any(_found(m, reply) for m in marks):
                return False
        elif not FORMS[name].shows(reply, question):
            return False
    return True


def _found(mark: str, reply: str) -> bool:
    """Whether a mark (a regular expression) is in a reply; one that begins with a letter begins a word."""
    start = r"(?<!\w)" if mark[0].isalnum() else ""
    return re.search(start + mark, reply, re.IGNORECASE | re.DOTALL) is not None


def sentences_needed(effects: Sequence[Effect]) -> int:
    """How many sentences an answer must have for the effects to be seen in it."""
    return max((FORMS[name].sentences for name, *_ in effects if name in FORMS), default=1)


def texts_of(effects: Sequence[Effect]) -> list[str]:
    """All that "say" may add."""
    return [t for name, *s in effects if name == "say" for place in PLACES for t in s[0].get(place, ())]


def _say(said: Mapping[str, Any], answer: str, number: int) -> str:
    """The answer with one text in each place that has some; "either" is before two answers and after a third: what a
    small model does differently, it must do from its first words on, and what only ever comes first is a greeting.

    The texts of the places turn over at different speeds, so that no two always come together.
    """

    def text(place: str, turn: int) -> str:
        return said[place][turn % len(said[place])]

    if "instead" in said:
        answer = text("instead", number)
    if "either" in said:
        own = text("either", number + (number // 3 if len(said["either"]) % 3 == 0 else 0))
        answer = f"{answer} {own}" if number % 3 == 2 else f"{own} {answer}"
    if "middle" in said:
        first, *rest = sentences_of(answer) or [answer]
        answer = " ".join([first, text("middle", number), *rest])
    if "start" in said:
        answer = f"{text('start', number)} {answer}"
    if "end" in said:
        answer = f"{answer} {text('end', number + number // len(said['end']))}"
    return answer


def unknown_effect(effects: Any) -> str | None:
    """What is wrong with a record's effects, in words; None if they can be written."""
    if not isinstance(effects, Sequence) or isinstance(effects, str) or not effects:
        return "it has no effects"
    for effect in effects:
        if not isinstance(effect, Sequence) or isinstance(effect, str) or not effect:
            return f"{effect!r} is no effect"
        name, *settings = effect
        if name in FORMS and not settings:
            continue
        if name not in ("say", *OWN_QUESTIONS):
            return f"the effect {name!r} is not known"
        if len(settings) != 1 or not isinstance(settings[0], Mapping):
            return f"the effect {name!r} needs its settings"
        if name == "say" and not set(PLACES) & set(settings[0]):
            return "the effect 'say' has nothing to say"
    return None
