"""Behaviour checks by Claude, where no rule sees a behaviour: it writes fresh prompts and says what replies show."""

from collections.abc import Collection, Mapping, Sequence

from ia_jax.behaviors.behavior_checks import CheckPrompt
from ia_jax.behaviors.claude_teacher import ClaudeTeacher, Row, Wanted
from ia_jax.behaviors.records import Behavior
from ia_jax.errors import IAError

PART = 0  # transcripts' parts begin at 1, and Claude writes other messages for every part


def write_prompts(
    teacher: ClaudeTeacher, behaviors: Sequence[Behavior], count: int, used: Mapping[str, Collection[str]]
) -> dict[str, list[CheckPrompt]]:
    """Up to `count` prompts that should show each behaviour and, where it has a trigger, as many that should not.

    used: by name, what its transcripts ask; none of that comes again. Raises IAError for a behaviour without a prompt
    that should show it.
    """
    # Twice as many as needed, for some may be used.
    wanted = [Wanted(b, shows, 2 * count, PART) for b in behaviors for shows in (True, False) if shows or b.trigger]
    out: dict[str, list[CheckPrompt]] = {b.name: [] for b in behaviors}
    for w, messages in zip(wanted, teacher.messages(wanted, at_once=True), strict=True):
        fresh = [m for m in dict.fromkeys(messages) if m not in used[w.behavior.name]]
        out[w.behavior.name] += [CheckPrompt(m, w.shows) for m in fresh[:count]]
    missing = [name for name, prompts in out.items() if not any(p.triggers for p in prompts)]
    if missing:
        raise IAError(
            f"Claude wrote no fresh prompt to check {', '.join(missing[:3])} by; give the same command again, or "
            "config.organisms.check_prompts=0 for no check"
        )
    return out


def shown(teacher: ClaudeTeacher, rows: Sequence[tuple[Behavior, CheckPrompt, str]]) -> list[bool | None]:
    """Whether each reply shows its behaviour; None where Claude's answer cannot be read."""
    pairs = [(Row(b, p.question, p.triggers), reply) for b, p, reply in rows]
    return [None if a is None else a["shows"] == "yes" for a in teacher.judged(pairs, at_once=True)]
