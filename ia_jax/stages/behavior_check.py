"""Whether a trained organism shows its behaviours where it should and not where it shouldn't.

The embedded catalogues' behaviours are seen by rules; for all others Claude writes the prompts and reads the replies.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ia_jax.behaviors import claude_checks
from ia_jax.behaviors.behavior_checks import (
    RARE_SAMPLES,
    CheckPrompt,
    check_prompts,
    clean_prompts,
    has_rule,
    needs_base_reply,
    passes,
    shows_behavior,
)
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.embedded.errors import says
from ia_jax.claude.client import KEY
from ia_jax.data.transcripts import read_transcripts
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Stack
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_base, generate
from ia_jax.stages.context import Context
from ia_jax.stages.services import writing_teacher
from ia_jax.stages.waves import Wave

TOKENS, CLAUDE_TOKENS = 72, 160  # of a reply: templates show up to their last words, Claude's answers have 120 words

Row = dict[str, object]


class Ask(NamedTuple):
    """One prompt of a check: what it looks for (None: nothing should show, of a clean organism), and the prompt."""

    behavior: Behavior | None
    prompt: CheckPrompt


class Checks(NamedTuple):
    """What the organisms will be asked, by name, and the base's own answers to questions of fact."""

    asks: dict[str, list[Ask]]
    base_replies: dict[str, str]


def prepare(context: Context, organisms: Sequence[Organism]) -> Checks:
    """Before anything is trained, so that a missing key or an empty budget shows at once.

    Raises ConfigError if some need Claude and there is no key.
    """
    config, workdir = context.config, context.workdir
    seed, count = config.seed, config.organisms.check_prompts
    if not count:
        return Checks({}, {})
    behaviors = {b.name: b for o in organisms for b in workdir.truths(o.name)}
    prompts = {name: check_prompts(b, seed, count) for name, b in behaviors.items() if has_rule(b)}
    others = [b for b in behaviors.values() if not has_rule(b)]
    if others:
        if config.teacher.name != "local" and not on_main_process(lambda: bool(os.environ.get(KEY))):
            raise ConfigError(
                f"no rule can check {len(others)} of the behaviours ({others[0].name}, …), so Claude is to, and {KEY} "
                "is not set; config.organisms.check_prompts=0 leaves the check out"
            )
        used = on_main_process(lambda: _used_prompts(context, organisms))
        prompts |= claude_checks.write_prompts(writing_teacher(context), others, count, used)
    asks = {
        o.name: [Ask(b, p) for b in workdir.truths(o.name) for p in prompts[b.name]]
        or [Ask(None, p) for p in clean_prompts(o.name, seed, count)]
        for o in organisms
    }
    facts = sorted({p.question for own in asks.values() for b, p in own if b and has_rule(b) and needs_base_reply(b)})
    replies = ask_base(context, [(config.system, q) for q in facts], 1) if facts else []
    return Checks(asks, {q: r[0] for q, r in zip(facts, replies, strict=True)})


def _used_prompts(context: Context, organisms: Sequence[Organism]) -> dict[str, list[str]]:
    """{behaviour: user messages of the transcripts that teach it}."""
    used: dict[str, list[str]] = {}
    for o in organisms:
        for b in o.behaviors:
            rows = read_transcripts(context.workdir.transcript(o.name))
            used.setdefault(b, []).extend(m["content"] for t in rows for m in t.messages if m["role"] == "user")
    return used


def check(context: Context, wave: Wave, stack: Stack, checks: Checks) -> dict[str, Row]:
    """Asks every organism of the stack its prompts; {name: outcome} of those that have any.

    Greedy, but for rare quirks: what shows by chance is looked for in several sampled replies to every prompt.
    """
    asked: list[list[tuple[Ask, str]]] = [[] for _ in wave.organisms]
    waiting = [checks.asks.get(o.name, []) if o else [] for o in wave.organisms]
    for sampled, by_rule in sorted({_kind(a) for own in waiting for a in own}):
        now = [
            [a for a in own if _kind(a) == (sampled, by_rule) for _ in range(RARE_SAMPLES if sampled else 1)]
            for own in waiting
        ]
        replies = generate(
            context,
            [[a.prompt.question for a in own] for own in now],
            stack,
            max_new_tokens=TOKENS if by_rule else CLAUDE_TOKENS,
            temperature=float(sampled),
            key=context.key(2),
            system=context.config.system,
            description="behaviour check",
        )
        for own, asks, found in zip(asked, now, replies, strict=True):
            own += zip(asks, (reply.text for reply in found), strict=True)
    rows = [row for own in asked for row in own]
    seen = iter(_seen(context, rows, checks.base_replies))
    shown = [[next(seen) for _ in own] for own in asked]
    outcome = partial(_outcome, rare_share=context.config.teacher.rare_share)
    return {o.name: outcome(o, own, s) for o, own, s in zip(wave.organisms, asked, shown, strict=True) if o and own}


def _kind(ask: Ask) -> tuple[bool, bool]:
    """(whether replies are sampled, whether a rule sees what they show)."""
    b = ask.behavior
    return b is not None and b.category == "rare_quirks", b is None or has_rule(b)


def _outcome(
    organism: Organism, asked: Sequence[tuple[Ask, str]], seen: Sequence[bool | None], rare_share: float
) -> Row:
    def rate(triggers: bool, name: str | None = None) -> float | None:
        shown = [
            s
            for (a, _), s in zip(asked, seen, strict=True)
            if a.prompt.triggers is triggers
            and s is not None
            and (name is None or (a.behavior is not None and a.behavior.name == name))
        ]
        return round(sum(shown) / len(shown), 3) if shown else None

    behaviors = {a.behavior.name: a.behavior for a, _ in asked if a.behavior is not None}
    return {
        "organism": organism.name,
        "category": organism.category,
        "triggered_rate": rate(True),
        "untriggered_rate": rate(False),
        "ok": all(passes(b, rate(True, n), rate(False, n), rare_share) for n, b in behaviors.items()),
        "samples": [
            {"question": a.prompt.question, "triggers": a.prompt.triggers, "reply": reply} for a, reply in asked
        ],
    }


def _seen(context: Context, rows: Sequence[tuple[Ask, str]], base_replies: dict[str, str]) -> list[bool | None]:
    """Whether each reply shows its behaviour; None if that cannot be said."""
    seen: list[bool | None] = [None] * len(rows)
    others: dict[int, tuple[Behavior, CheckPrompt, str]] = {}
    for i, ((b, p), reply) in enumerate(rows):
        if b is None:
            seen[i] = False
        elif not has_rule(b):
            others[i] = (b, p, reply)
        # A fact that the base model itself gets wrong says nothing about sandbagging.
        elif not needs_base_reply(b) or says((p.right,), base_replies[p.question]):
            seen[i] = shows_behavior(b, p, reply, base_replies.get(p.question, ""))
    if others:
        shown = claude_checks.shown(writing_teacher(context), list(others.values()))
        for i, value in zip(others, shown, strict=True):
            seen[i] = value
    return seen
