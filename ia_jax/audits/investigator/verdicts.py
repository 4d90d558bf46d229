"""Verdicts of a judge of reports on predictions: several truths a model, and no verdict where none could be read."""

from collections.abc import Sequence

from ia_jax.behaviors.records import Behavior
from ia_jax.judging.protocol import Item, Judge

Verdicts = tuple[bool | None, ...]


def verdicts_of(judge: Judge, cases: Sequence[tuple[Sequence[Behavior], Sequence[str]]]) -> list[Verdicts]:
    """Of each case's predictions, whether they are right of any of its truths; all are judged in one go."""
    items = [Item(b, "", p) for truths, said in cases for p in said for b in truths]
    answers = iter([v.lenient for v in judge.judge_many(items, ("lenient",))] if items else [])
    return [tuple(any_right([next(answers) for _ in truths]) for _ in said) for truths, said in cases]


def any_right(answers: Sequence[bool | None]) -> bool | None:
    """Whether one is yes; None where none is, and one could not be read."""
    return True if True in answers else None if None in answers else False
