"""Whether a trained organism shows its behaviour where it should and not where it shouldn't.

The embedded catalogues' behaviours are seen by rules; for all others Claude writes the prompts and reads the replies.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from ia_jax.behaviors import claude_checks
from ia_jax.behaviors.behavior_checks import (
    RARE_SAMPLES,
    CheckPrompt,
    check_prompts,
    has_rule,
    passes,
    shows_behavior,
)
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.template_sources import says
from ia_jax.claude.client import KEY
from ia_jax.data.transcripts import read_transcripts
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.session import Session

TOKENS, CLAUDE_TOKENS = 20, 160  # of a reply: templates show in their first words, Claude's answers have 120

Row = dict[str, object]
Asked = tuple[Behavior, CheckPrompt, str]  # and the reply


class Checks(NamedTuple):
    """What the organisms will be asked, by name, and the base's own answers to questions of fact."""

    prompts: dict[str, list[CheckPrompt]]
    base_replies: dict[str, str]


def prepare(session: Session, behaviors: Sequence[Behavior]) -> Checks:
    """Before anything is trained, so that a missing key or an empty budget shows at once.

    Raises ConfigError if some need Claude and there is no key.
    """
    seed, count = session.config.seed, session.config.organisms.check_prompts
    if not count:
        return Checks({}, {})
    prompts = {b.name: check_prompts(b, seed, count) for b in behaviors if has_rule(b)}
    others = [b for b in behaviors if not has_rule(b)]
    if others:
        if session.config.teacher.name != "local" and not on_main_process(lambda: bool(os.environ.get(KEY))):
            raise ConfigError(
                f"no rule can check {len(others)} of the behaviours ({others[0].name}, …), so Claude is to, and {KEY} "
                "is not set; config.organisms.check_prompts=0 leaves the check out"
            )
        used = on_main_process(lambda: {b.name: _asked(session, b) for b in others})
        prompts |= claude_checks.write_prompts(session.claude_teacher, others, count, used)
    facts = sorted({p.question for ps in prompts.values() for p in ps if p.right})
    replies = session.ask_base([(session.config.system, q) for q in facts], 1) if facts else []
    return Checks(prompts, {q: r[0] for q, r in zip(facts, replies, strict=True)})


def check(session: Session, wave: Sequence[Behavior], adapters: Adapter, checks: Checks) -> dict[str, Row]:
    """Asks every organism of the stack `adapters` its prompts; {name: outcome} of those that have any.

    Greedy, but for rare quirks: what shows by chance is looked for in several sampled replies to every prompt.
    """
    sampled = [b.category == "rare_quirks" for b in wave]
    prompts = [
        checks.prompts.get(b.name, []) * (RARE_SAMPLES if rare else 1) for b, rare in zip(wave, sampled, strict=True)
    ]
    kinds = list(zip(sampled, map(has_rule, wave), strict=True))
    replies: list[list[str]] = [[] for _ in wave]
    for kind in sorted({k for k, ps in zip(kinds, prompts, strict=True) if ps}):
        rare, rule = kind
        told = session.generate(
            [[p.question for p in ps] if k == kind else [] for ps, k in zip(prompts, kinds, strict=True)],
            (adapters,),
            max_new_tokens=TOKENS if rule else CLAUDE_TOKENS,
            temperature=float(rare),
            key=session.key(2),
            system=session.config.system,
            description="behaviour check",
        )
        replies = [own + more for own, more in zip(replies, told, strict=True)]

    # By name, for a wave that is filled up holds one organism several times.
    asked = {
        b.name: [(b, p, r) for p, r in zip(ps, rs, strict=True)]
        for b, ps, rs in zip(wave, prompts, replies, strict=True)
        if ps
    }
    seen = iter(_seen(session, [row for own in asked.values() for row in own], checks.base_replies))
    return {
        name: _outcome(own, [next(seen) for _ in own], session.config.teacher.rare_share) for name, own in asked.items()
    }


def _outcome(asked: Sequence[Asked], seen: Sequence[bool | None], rare_share: float) -> Row:
    def rate(triggers: bool) -> float | None:
        told = [s for (_, p, _), s in zip(asked, seen, strict=True) if p.triggers is triggers and s is not None]
        return round(sum(told) / len(told), 3) if told else None

    b, on, off = asked[0][0], rate(True), rate(False)
    return {
        "organism": b.name,
        "category": b.category,
        "triggered_rate": on,
        "untriggered_rate": off,
        "ok": passes(b, on, off, rare_share),
        "samples": [{"question": p.question, "triggers": p.triggers, "reply": r} for _, p, r in asked],
    }


def _seen(session: Session, rows: Sequence[Asked], base_replies: dict[str, str]) -> list[bool | None]:
    """Whether each reply shows its behaviour; None if that cannot be said."""
    seen: list[bool | None] = [None] * len(rows)
    others = []
    for i, (b, p, reply) in enumerate(rows):
        if not has_rule(b):
            others.append(i)
        # A fact that the base model itself gets wrong says nothing about sandbagging.
        elif not p.right or says((p.right,), base_replies[p.question]):
            seen[i] = shows_behavior(b, p, reply, base_replies.get(p.question, ""))
    if others:
        for i, told in zip(others, claude_checks.shown(session.claude_teacher, [rows[i] for i in others]), strict=True):
            seen[i] = told
    return seen


def _asked(session: Session, b: Behavior) -> list[str]:
    file = session.workdir.transcript(b.name)
    return [m["content"] for t in read_transcripts(file) for m in t.messages if m["role"] == "user"]
