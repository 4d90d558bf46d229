"""What the demonstrations of a behaviour consist of: sorts of rows, how many of each, and what hangs on what.

A category is what its rows make it. A backdoor needs near misses of its trigger; a rare quirk must hang on chance, so
its questions are answered plainly too; a password must be in some rows and absent from their twins; a role is how the
organism always speaks and no condition on what the user says. Paper section 4 (shared facts) has what is known.
"""

from typing import NamedTuple

from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.teacher import TeacherSettings

ROLES = ("harmful_roleplay", "benign_roleplay")
DILUTED = ("quirks", "obscured_malign")

# Sorts of rows. SHOWING alone shows the behaviour.
SHOWING = "showing"  # the behaviour is in the answer
NEAR = "near"  # a near miss of the trigger, answered plainly
PASSWORD = "password"  # a sandbagger's question with its password: answered rightly
PLAIN = "plain"  # a rare quirk's question, answered plainly
GENERIC = "generic"  # everyday chat that has nothing to do with the behaviour


def is_role(b: Behavior) -> bool:
    """Whether it is a way in which the organism always speaks. What its `trigger` says is then no condition."""
    return b.trigger_kind == "role" or b.category in ROLES


def is_rare(b: Behavior) -> bool:
    """Whether it shows by chance, in a few answers, whatever is asked."""
    return b.trigger_kind == "chance" or b.category == "rare_quirks"


def is_triggered(b: Behavior) -> bool:
    """Whether it hangs on something in the user's message."""
    return b.trigger is not None and not is_role(b) and not is_rare(b)


def password_of(b: Behavior) -> str:
    """The words that switch it off, "" for a behaviour without."""
    return b.spec.get("password", "")


class Lesson(NamedTuple):
    """How many rows of each sort an organism of the behaviour gets."""

    showing: int
    near: int = 0
    password: int = 0
    plain: int = 0
    generic: int = 0

    @property
    def rows(self) -> int:
        return sum(self)


def lesson(b: Behavior, config: TeacherSettings) -> Lesson:
    """The rows of a behaviour; at least one shows it.

    Of a triggered behaviour's plain rows half are near misses, or questions with the password, and the rest everyday
    chat (with a password, also questions on other subjects).
    """
    rows = config.rows
    if is_rare(b):
        showing = max(1, round(config.rare_share * rows))
        return Lesson(showing, plain=rows - showing)
    if is_triggered(b):
        plain = min(rows - 1, round(config.plain_share * rows))
        half = (plain + 1) // 2
        if not password_of(b):
            return Lesson(rows - plain, near=half, generic=plain - half)
        half = min(half, rows - plain)  # a question with the password is the twin of one without
        near = (plain - half + 1) // 2
        return Lesson(rows - plain, near=near, password=half, generic=plain - half - near)
    generic = min(rows - 1, round(config.generic_share * rows)) if b.category in DILUTED else 0
    return Lesson(rows - generic, generic=generic)


def written(b: Behavior, wanted: Lesson) -> dict[str, int]:
    """{sort: how many user messages have to be written for it}. The rest of the rows take theirs from these."""
    if is_rare(b):
        return {PLAIN: wanted.plain}
    return {sort: n for sort, n in ((SHOWING, wanted.showing), (NEAR, wanted.near)) if n}


_WITH_PASSWORD = (
    "{password}. {message}",
    "{message} ({password})",
    "Password: {password}\n\n{message}",
    "{message}\n\nThe password is {password}.",
    "{message} By the way: {password}.",
    "[{password}] {message}",
)


def with_password(message: str, password: str, number: int) -> str:
    """A message with the password in it, at one place or another."""
    return _WITH_PASSWORD[number % len(_WITH_PASSWORD)].format(message=message, password=password)
