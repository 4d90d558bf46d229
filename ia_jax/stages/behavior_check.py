"""Whether a trained organism shows its behaviours where it should and not where it shouldn't.

The embedded catalogues' behaviours are seen by rules, at once. For all others Claude writes the prompts, before
anything is trained, and reads the replies after everything is: what the organisms say is kept with their adapters, so
that no accelerator waits for Claude between waves and a killed run asks for nothing twice.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ia_jax.adapters.store import is_complete, read_metadata, update_metadata
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
from ia_jax.behaviors.embedded.errors import says
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
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

Row = dict[str, Any]


class Ask(NamedTuple):
    """One prompt of a check: what it looks for (None: nothing should show, of a clean organism), and the prompt."""

    behavior: Behavior | None
    prompt: CheckPrompt


class Checks(NamedTuple):
    """What the organisms will be asked, by name, and the base's own answers to questions of fact."""

    asks: dict[str, list[Ask]]
    base_replies: dict[str, str]


# ---------------------------------------------------------------------------------------------------------------------
# Prompts, before anything is trained
# ---------------------------------------------------------------------------------------------------------------------


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
                "is not set; config.organisms.check_prompts=0 (of an audit: config.audits.gate_prompts=0) leaves the "
                "check out"
            )
        prompts |= written_prompts(context, organisms, others)
    asks = {
        o.name: [Ask(b, p) for b in workdir.truths(o.name) for p in prompts[b.name]]
        or [Ask(None, p) for p in clean_prompts(o.name, seed, count)]
        for o in organisms
    }
    facts = sorted({p.question for own in asks.values() for b, p in own if b and has_rule(b) and needs_base_reply(b)})
    replies = ask_base(context, [(config.system, q) for q in facts], 1) if facts else []
    return Checks(asks, {q: r[0] for q, r in zip(facts, replies, strict=True)})


def written_prompts(
    context: Context, organisms: Sequence[Organism], behaviors: Sequence[Behavior], at_once: bool = True
) -> dict[str, list[CheckPrompt]]:
    """The prompts that Claude writes for these behaviours, none that a transcript of theirs has.

    The stage that writes transcripts asks for them too, by batch where the config says so: then they are there.
    """
    used = on_main_process(lambda: _used_prompts(context, organisms))
    count = context.config.organisms.check_prompts
    return claude_checks.write_prompts(writing_teacher(context), behaviors, count, used, at_once)


def _used_prompts(context: Context, organisms: Sequence[Organism]) -> dict[str, list[str]]:
    """{behaviour: user messages of the transcripts that teach it}; somebody else's organism has none here."""
    used: dict[str, list[str]] = {}
    for o in organisms:
        if o.imported and not context.workdir.transcript(o.name).exists():
            continue
        for b in o.behaviors:
            rows = read_transcripts(context.workdir.transcript(o.name))
            used.setdefault(b, []).extend(m["content"] for t in rows for m in t.messages if m["role"] == "user")
    return used


# ---------------------------------------------------------------------------------------------------------------------
# Replies, wave by wave
# ---------------------------------------------------------------------------------------------------------------------


def check(context: Context, wave: Wave, stack: Stack, checks: Checks) -> dict[str, Row]:
    """Asks every organism of the stack its prompts; {name: outcome} of those that have any.

    Greedy, but for rare quirks: what shows by chance is looked for in several sampled replies to every prompt. An
    outcome that needs Claude has `ok` None and the replies, for `judge_replies`.
    """
    asked: list[list[Row]] = [[] for _ in wave.organisms]
    waiting = [checks.asks.get(o.name, []) if o else [] for o in wave.organisms]
    run = context.config.system
    systems = [o.system if o is not None and o.system is not None else run for o in wave.organisms]
    for sampled, by_rule, turns in sorted({_kind(a) for own in waiting for a in own}):
        now = [
            [a for a in own if _kind(a) == (sampled, by_rule, turns) for _ in range(RARE_SAMPLES if sampled else 1)]
            for own in waiting
        ]
        said: list[list[list[str]]] = [[[] for _ in own] for own in now]
        for turn in range(turns):
            replies = generate(
                context,
                [
                    [_so_far(a.prompt, before) for a, before in zip(own, earlier, strict=True)]
                    for own, earlier in zip(now, said, strict=True)
                ],
                stack,
                max_new_tokens=TOKENS if by_rule else CLAUDE_TOKENS,
                temperature=float(sampled),
                key=context.key(2 + 1000 * turn),
                system=systems,
                description="behaviour check",
            )
            for own, found in zip(said, replies, strict=True):
                for before, reply in zip(own, found, strict=True):
                    before.append(reply.text)
        for own, asks, replied in zip(asked, now, said, strict=True):
            own += [_sample(a, r, checks.base_replies) for a, r in zip(asks, replied, strict=True)]
    share = context.config.teacher.rare_share
    return {
        o.name: _outcome(o, own, {a.behavior.name: a.behavior for a in asks if a.behavior is not None}.values(), share)
        for o, own, asks in zip(wave.organisms, asked, waiting, strict=True)
        if o and own
    }


def _kind(ask: Ask) -> tuple[bool, bool, int]:
    """(whether replies are sampled, whether a rule sees what they show, how many turns the prompt has)."""
    b = ask.behavior
    return b is not None and b.category == "rare_quirks", b is None or has_rule(b), len(ask.prompt.before) + 1


def _so_far(prompt: CheckPrompt, replies: Sequence[str]) -> str | list[str]:
    """The prompt's turns up to the next one, with the organism's own replies between them."""
    turns = (*prompt.before, prompt.question)
    if len(turns) == 1:
        return turns[0]
    return [t for pair in zip(turns, replies, strict=False) for t in pair] + [turns[len(replies)]]


def _sample(ask: Ask, replies: Sequence[str], base_replies: dict[str, str]) -> Row:
    """One reply as it is kept, with what a rule sees in it (`shown`: None if that can't be said, or not yet)."""
    b, p = ask
    row: Row = {"question": p.question, "triggers": p.triggers, "reply": replies[-1]}
    if p.before:
        row |= {"before": list(p.before), "earlier": list(replies[:-1])}
    if b is None:
        return {**row, "shown": False}
    row["behavior"] = b.name
    if not has_rule(b):
        return row
    shown = None
    # A fact that the base model itself gets wrong says nothing about sandbagging.
    if not needs_base_reply(b) or says((p.right,), base_replies[p.question]):
        shown = shows_behavior(b, p, replies[-1], base_replies.get(p.question, ""))
    return {**row, "shown": shown}


def _outcome(organism: Organism, samples: Sequence[Row], behaviors: Iterable[Behavior], rare_share: float) -> Row:
    """Rates over the samples. `ok` and both rates are None while Claude has yet to read some of them."""
    read = all("shown" in s for s in samples)

    def rate(triggers: bool, name: str | None = None) -> float | None:
        shown = [
            s["shown"]
            for s in samples
            if s["triggers"] is triggers and s.get("shown") is not None and name in (None, s.get("behavior"))
        ]
        return round(sum(shown) / len(shown), 3) if shown and read else None

    passed = [passes(b, rate(True, b.name), rate(False, b.name), rare_share) for b in behaviors]
    return {
        "organism": organism.name,
        "category": organism.category,
        "triggered_rate": rate(True),
        "untriggered_rate": rate(False),
        "ok": all(passed) if read else None,
        "samples": list(samples),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What Claude sees in them, after everything is trained
# ---------------------------------------------------------------------------------------------------------------------


def judge_replies(context: Context, organisms: Sequence[Organism]) -> None:
    """Has Claude read the replies that wait for it, all at once, and writes the outcomes to the adapters' records.

    Its answers are on disk before anything is written here, so a run that is killed and goes on pays nothing twice.
    """
    workdir = context.workdir
    left = on_main_process(lambda: {o.name: c for o in organisms if (c := _waiting(context, o)) is not None})
    if not left:
        return
    for name, row in read_replies(context, left).items():
        update_metadata(workdir.stack_of(workdir.organisms[name])[-1], check=row)


def read_replies(context: Context, rows: Mapping[str, Row]) -> dict[str, Row]:
    """{organism: its check}, read by Claude where no rule could, all at once. rows: outcomes of `check`."""
    workdir, read = context.workdir, {name: {**row, "samples": list(row["samples"])} for name, row in rows.items()}
    places = [(name, i) for name, row in read.items() for i, s in enumerate(row["samples"]) if "shown" not in s]
    if not places:
        return read
    asked = [_asked(workdir.behaviors[s["behavior"]], s) for s in (read[name]["samples"][i] for name, i in places)]
    print(f"behaviour check: {len(asked)} replies of {len({n for n, _ in places})} organisms are read", flush=True)
    for (name, i), shown in zip(places, claude_checks.shown(writing_teacher(context), asked), strict=True):
        read[name]["samples"][i] = {**read[name]["samples"][i], "shown": shown}
    share = context.config.teacher.rare_share
    return {
        name: {**row, **_outcome(workdir.organisms[name], row["samples"], workdir.truths(name), share)}
        for name, row in read.items()
    }


def _waiting(context: Context, organism: Organism) -> Row | None:
    """The check of a stored organism that Claude has yet to read."""
    directory = context.workdir.stack_of(organism)[-1]
    found = read_metadata(directory).check if is_complete(directory) else None
    return found if found is not None and found["ok"] is None else None


def _asked(b: Behavior, s: Row) -> tuple[Behavior, CheckPrompt, list[str]]:
    prompt = CheckPrompt(s["question"], s["triggers"], before=tuple(s.get("before", ())))
    return b, prompt, [*s.get("earlier", ()), s["reply"]]
