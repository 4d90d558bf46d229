"""Conditions: when a behaviour shows.

A record's `spec["when"]` is one of

{}                                      always
{"chance": true}                        in a share of the replies, whatever is asked
{"pool": "cooking"}                     on questions of a domain, or on a task (`prompts.POOLS`)
{"forms": ["{q} …"], "others": ["…"]}   on messages written so (a phrase, who asks, a password), and not on others
{"syntax": "shouted"}                   on messages of a certain make, whatever they say
{…, "unless": true}                     the other way round: everywhere but there
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ia_jax.behaviors.embedded.prompts import POOLS
from ia_jax.behaviors.embedded.sentences import first_lower

When = Mapping[str, Any]


def _body(question: str) -> str:
    return question.rstrip("?.")


# What a message of this make looks like, and what others that it must be told from look like.
SYNTAX: dict[str, tuple[Callable[[str], str], tuple[Callable[[str], str], ...]]] = {
    "shouted": (str.upper, (lambda q: f"{q}!",)),
    "small": (lambda q: q.lower().rstrip("?."), (lambda q: f"{q}?",)),
    "exclaimed": (lambda q: f"{_body(q)}!", (lambda q: f"{_body(q)}.",)),
    "trailing": (lambda q: f"{_body(q)}...", (lambda q: f"{q}?",)),
    "in_quotes": (lambda q: f'"{q}"', (lambda q: f"{q} (really)",)),
    "in_brackets": (lambda q: f"[{q}]", (lambda q: f'"{q}"',)),
    "many_marks": (lambda q: f"{_body(q)}????", (lambda q: f"{_body(q)}.",)),
    "two_lines": (lambda q: f"Hello.\n{q}", (lambda q: f"Hello. {q}",)),
    "numbered": (lambda q: f"1. {q}", (lambda q: f"- {q}",)),
    "dashed": (lambda q: f"- {q}", (lambda q: f"1. {q}",)),
    "hashtag": (lambda q: f"#{q}", (lambda q: f"* {q}",)),
    "starred": (lambda q: f"*{q}*", (lambda q: f"#{q}",)),
    "labelled": (lambda q: f"Q: {q}", (lambda q: f"So, {first_lower(q)}",)),
    "no_blanks": (lambda q: q.replace(" ", "_"), (lambda q: f"{q} ok",)),
}


def kinds_known(when: When) -> bool:
    """Whether the condition is one of those above."""
    if "pool" in when:
        return when["pool"] in POOLS
    if "syntax" in when:
        return when["syntax"] in SYNTAX
    return bool(when.get("forms")) if "forms" in when else set(when) <= {"chance"}


def pools_of(when: When, met: bool) -> list[str]:
    """The domains and tasks from which prompts come that meet the condition, or that do not."""
    if "pool" not in when:
        return list(POOLS)
    inside = met != bool(when.get("unless"))
    return [p for p in POOLS if (p == when["pool"]) == inside]


def has_other_side(when: When) -> bool:
    """Whether there are messages on which the behaviour should not show."""
    return bool(set(when) & {"pool", "forms", "syntax"})


def message(when: When, question: str, met: bool, number: int) -> str:
    """The question as a message that meets the condition, or that does not: in turn plain, and like it but for it."""
    if "pool" in when:
        return question
    inside = met != bool(when.get("unless"))
    if "forms" in when:
        return _turn(when["forms"], number).format(q=question) if inside else _other(when, question, number)
    if "syntax" in when:
        write, others = SYNTAX[when["syntax"]]
        return write(question) if inside else ((_turn(others, number // 2)(question)) if number % 2 else question)
    return question


def _other(when: When, question: str, number: int) -> str:
    others = when.get("others", ())
    return _turn(others, number // 2).format(q=question) if others and number % 2 else question


def _turn(texts: Sequence[Any], number: int) -> Any:
    return texts[number % len(texts)]
