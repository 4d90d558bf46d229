"""Audits by the script, of all targets together: their asks meet in one decode. Judged and kept as an agent's are."""

from collections.abc import Mapping, Sequence
from typing import Any

from ia_jax.audits.investigator import script
from ia_jax.audits.investigator.probes import Subject, request_of
from ia_jax.audits.investigator.results import (
    METRICS,
    Against,
    Run,
    add_runs,
    held_against,
    in_words,
    metrics,
    read_runs,
)
from ia_jax.audits.investigator.script import CONFIGURATIONS, Outcome, Script, Sent
from ia_jax.audits.investigator.session import Session
from ia_jax.audits.investigator.verdicts import Verdicts, verdicts_of
from ia_jax.audits.targets import Target
from ia_jax.errors import ConfigError
from ia_jax.judging.protocol import Judge
from ia_jax.storage import write_json

BUDGET = 25_000  # AuditBench's
NULLS = 3  # with which a target is contrasted: those that were made as it was come first, never itself
AT_ONCE = 64  # audits whose asks meet


def audit(
    session: Session,
    configurations: Sequence[str] = ("chat", "ask_self"),
    runs: int = 1,
    budget: int = BUDGET,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Audits every target and null of the session with each configuration of tools; returns `results.metrics`.

    Runs that are on disk are not made again. judge: by default the one that the workdir's config names.
    """
    unknown = [c for c in configurations if c not in CONFIGURATIONS]
    if unknown:
        raise ConfigError(f"tools {unknown[0]!r} unknown; choose from {', '.join(CONFIGURATIONS)}")
    if not session.ia and any("ask_self" in CONFIGURATIONS[c] for c in configurations):
        raise ConfigError(f"{session.workdir.path} has no IA to ask targets under; train one, or leave ask_self out")
    judge = judge or session.judge
    against = held_against(session.targets)
    done = {r.key for r in read_runs(session.directory)}
    wanted = [
        (c, t, epoch)
        for c in configurations
        for epoch in range(1, runs + 1)
        for t in session.targets.values()
        if (c, script.NAME, judge.name, t.name, epoch) not in done
    ]
    for start in range(0, len(wanted), AT_ONCE):
        part = wanted[start : start + AT_ONCE]
        outcomes = together(session, [_script(session, *w, budget) for w in part])
        truths = [against[t.name].truths for _, t, _ in part]
        said = [o.predicted.predictions for o in outcomes]
        verdicts = verdicts_of(judge, list(zip(truths, said, strict=True)))
        rows = zip(part, outcomes, verdicts, strict=True)
        add_runs(session.directory, [_run(judge.name, against[w[1].name], *w, o, v) for w, o, v in rows])
    found = metrics(read_runs(session.directory))
    write_json(session.directory / METRICS, found)
    return found


def together(session: Session, scripts: Sequence[Script]) -> list[Outcome]:
    """Plays scripts to their ends, in step: what all of them ask next is asked at once."""
    outcomes: dict[int, Outcome] = {}
    asked: dict[int, list[Sent]] = {}

    def go(i: int, replies: list[str] | None) -> None:
        try:
            asked[i] = next(scripts[i]) if replies is None else scripts[i].send(replies)
        except StopIteration as end:
            outcomes[i] = end.value

    for i in range(len(scripts)):
        go(i, None)
    while asked:
        now, asked = asked, {}
        tokenizer = session.model.tokenizer
        requests = [request_of(s.ask, s.target, tokenizer) for sent in now.values() for s in sent]
        replies = iter([r.text for r in session.service.ask(requests)])
        for i, sent in now.items():
            go(i, [next(replies) for _ in sent])
    return [outcomes[i] for i in range(len(scripts))]


def _script(session: Session, configuration: str, target: Target, epoch: int, budget: int) -> Script:
    def subject(name: str) -> Subject:
        return Subject(name, session.system(name), (session.config.seed, epoch))

    clean = [t for t in session.targets.values() if t.null and t.name != target.name]
    nulls = [t.name for t in sorted(clean, key=lambda t: t.made_by != target.made_by)][:NULLS]
    tokenizer = session.model.tokenizer
    return script.investigate(
        subject(target.name),
        [subject(n) for n in nulls],
        configuration,
        budget,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
    )


def _run(
    judge: str,
    against: Against,
    configuration: str,
    target: Target,
    epoch: int,
    outcome: Outcome,
    verdicts: Verdicts,
) -> Run:
    said, calls = outcome.predicted, dict(outcome.calls)
    return Run(
        configuration,
        script.NAME,
        judge,
        target.name,
        target.null,
        against.name,
        epoch,
        said.predictions,
        verdicts,
        said.confidence,
        False,
        outcome.tokens,
        calls,
        against.unit,
    )


def as_text(found: Mapping[str, Any]) -> str:
    """The rates for a person: each beside what guessing comes to."""
    lines = []
    for who, result in found.items():
        lines.append(who)
        for name, cells in result["configurations"].items():
            shown = ", ".join(f"{k} {in_words(cells[k])}" for k in ("success", "first", "precision", "on_nulls"))
            lines.append(f"  {name}: {shown}")
        for name, gap in result["differences"].items():
            if gap is not None:
                low, high = (100 * x for x in gap["ci95"])
                lines.append(f"  {name}: {100 * gap['difference']:+.0f} points ({low:+.0f} … {high:+.0f})")
    return "\n".join(lines)
