"""Behaviour checks by Claude, where no rule sees a behaviour: it writes fresh prompts and says what replies show."""

from collections.abc import Collection, Mapping, Sequence

from ia_jax.behaviors.behavior_checks import CheckPrompt
from ia_jax.behaviors.claude_prompts import Row, Wanted
from ia_jax.behaviors.claude_teacher import ClaudeTeacher
from ia_jax.behaviors.lessons import NEAR, SHOWING, is_triggered, password_of, with_password
from ia_jax.behaviors.records import Behavior
from ia_jax.claude.calls import Call
from ia_jax.errors import IAError

PART = 0  # transcripts' parts begin at 1, and Claude writes other messages for every part


def wanted(teacher: ClaudeTeacher, behaviors: Sequence[Behavior], count: int) -> list[Wanted]:
    """Requests for prompts that should show each behaviour and, where it hangs on the message, for near misses.

    Twice as many as needed, for some may be used.
    """
    sorts = [(b, sort) for b in behaviors for sort in (SHOWING, NEAR) if sort == SHOWING or is_triggered(b)]
    return [w for b, sort in sorts for w in teacher.wanted(b, sort, 2 * count, PART)]


def write_prompts(
    teacher: ClaudeTeacher,
    behaviors: Sequence[Behavior],
    count: int,
    used: Mapping[str, Collection[str]],
    at_once: bool = True,
) -> dict[str, list[CheckPrompt]]:
    """Up to `count` prompts that should show each behaviour and as many that should not, where it hangs on the message:
    near misses of its trigger and, of a sandbagger with a password, the same questions with it.

    used: by name, what its transcripts ask; none of that comes again. at_once: by Messages, where accelerators wait.
    Raises IAError for a behaviour without a prompt that should show it.
    """
    asked = wanted(teacher, behaviors, count)
    fresh: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for w, messages in zip(asked, teacher.messages(asked, at_once), strict=True):
        assert w.behavior is not None
        new = [turns for turns in messages if turns[-1] not in used[w.behavior.name]]
        fresh.setdefault((w.behavior.name, w.sort), []).extend(new)
    out: dict[str, list[CheckPrompt]] = {}
    for b in behaviors:
        shows, near = (list(dict.fromkeys(fresh.get((b.name, sort), ())))[:count] for sort in (SHOWING, NEAR))
        password = password_of(b)
        twins = [(*t[:-1], with_password(t[-1], password, n)) for n, t in enumerate(shows)] if password else []
        out[b.name] = [_prompt(turns, True) for turns in shows] + [_prompt(turns, False) for turns in (*near, *twins)]
    missing = [name for name, prompts in out.items() if not any(p.triggers for p in prompts)]
    if missing:
        raise IAError(
            f"Claude wrote no fresh prompt to check {', '.join(missing[:3])} by; give the same command again, or "
            "config.organisms.check_prompts=0 for no check"
        )
    return out


def _prompt(turns: tuple[str, ...], triggers: bool) -> CheckPrompt:
    return CheckPrompt(turns[-1], triggers, before=turns[:-1])


def verdict_call(teacher: ClaudeTeacher, b: Behavior, prompt: CheckPrompt, replies: Sequence[str]) -> Call:
    """What Claude is asked of an organism's replies to a prompt, turn by turn; the last one counts."""
    return teacher.filter_call(_row(b, prompt), replies[-1], replies[:-1])


def _row(b: Behavior, prompt: CheckPrompt) -> Row:
    return Row(b, (*prompt.before, prompt.question), SHOWING if prompt.triggers else NEAR)


def shown(teacher: ClaudeTeacher, rows: Sequence[tuple[Behavior, CheckPrompt, Sequence[str]]]) -> list[bool | None]:
    """Whether the last reply of each shows its behaviour; None where Claude's answer cannot be read."""
    said = [(_row(b, p), replies) for b, p, replies in rows]
    return [None if a is None else a["shows"] == "yes" for a in teacher.judged(said)]
