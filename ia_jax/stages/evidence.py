"""Evidence for what models report: asked for, grouped into claims, and measured; of an audited fine-tune or of many
models that a calibration is made on, in one way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.audits.evidence import kinds
from ia_jax.audits.evidence.deeds import deed_prompts, shown
from ia_jax.audits.evidence.findings import Report
from ia_jax.audits.evidence.grouping import Claim, cluster, similarity
from ia_jax.audits.evidence.tables import Table, by_question, claim_examples, null_logps, target_logps
from ia_jax.behaviors import claude_checks
from ia_jax.behaviors.behavior_checks import CheckPrompt
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.behaviors.records import Behavior
from ia_jax.judging.protocol import Judge
from ia_jax.judging.verbatim import Verbatim
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import Adapter, Stack
from ia_jax.models.transformer import Params
from ia_jax.stages.asking import generate
from ia_jax.stages.context import Context
from ia_jax.stages.services import judge_of, writing_teacher

QUESTIONS = (*EVAL_QUESTIONS, *TRAIN_QUESTIONS)
TEMPERATURE, TOP_P = 0.7, 0.95
CLAIMS = 3  # of a model, those that most reports make
DEEDS, DEED_TOKENS = 12, 48  # prompts of a claim, and the longest reply


# Of a claim under a system message: its log-probability under the bank's nulls with the IA, and without, each [N, Q].
NullTables = dict[tuple[str | None, str], tuple[np.ndarray, np.ndarray]]


class Ask(Protocol):
    """Replies of every model to its own questions."""

    def __call__(
        self, questions: Sequence[Sequence[str]], *, ia: bool, temperature: float, tokens: int, description: str
    ) -> list[list[str]]: ...


@dataclass(frozen=True)
class Subject:
    """A model whose claims are weighed.

    adapters: on the base, innermost first, wherever they lie; at_dose: the weights of a checkpoint, as far from the
    base as asked (1: itself), None where the base's stay. system: the system message under which it lives.
    """

    adapters: tuple[Adapter, ...] = ()
    at_dose: Callable[[float], Params] | None = None
    system: str | None = None


@dataclass(frozen=True)
class Beside:
    """What a claim is held against.

    ia: the adapter. control: reports of the clean base under it. bank: clean fine-tunes, None for none. null_reports:
    what the IA reports of them. trained: descriptions that it was trained on.
    """

    ia: Adapter
    control: Sequence[Report]
    bank: Bank | None
    null_reports: Sequence[str]
    trained: Sequence[str]


@dataclass(frozen=True)
class Weighed:
    """A claim with its evidence. prompts: of its deeds, with the target's and the base's reply."""

    claim: Claim
    values: dict[str, float]
    deeds: list[dict[str, Any]]


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def ask_stack(context: Context, stack: Stack, ia: Adapter | None, system: str | None) -> Ask:
    """One model under these weights: a stack, with the IA on top where that is asked for."""

    def ask(
        questions: Sequence[Sequence[str]], *, ia: bool, temperature: float, tokens: int, description: str
    ) -> list[list[str]]:
        if not questions[0]:
            return [[]]
        replies = generate(
            context,
            questions,
            (*stack, placed) if ia and placed is not None else stack,
            max_new_tokens=tokens,
            temperature=temperature,
            top_p=TOP_P,
            key=context.key(80),
            system=system,
            description=description,
        )
        return [[r.text for r in own] for own in replies]

    placed = ia
    return ask


def reports_of(
    context: Context, ask: Ask, count: int, questions: Sequence[str], samples: int, description: str
) -> list[list[Report]]:
    """Greedy and sampled reports of `count` models under the IA, to the same questions."""
    say = partial(ask, ia=True, tokens=context.config.eval.max_new_tokens)
    greedy = say([questions] * count, temperature=0.0, description=f"{description}, greedy")
    out = [[Report(i, text) for i, text in enumerate(own)] for own in greedy]
    if samples:
        index = np.repeat(np.arange(len(questions)), samples).tolist()
        again = [[questions[i] for i in index]] * count
        sampled = say(again, temperature=TEMPERATURE, description=f"{description}, sampled")
        for own, texts in zip(out, sampled, strict=True):
            own += [Report(i, text, True) for i, text in zip(index, texts, strict=True)]
    return out


def report_judge(context: Context) -> Judge:
    """Who says what reports of an IA claim and name: the run's judge, the IA's own training sentences taken as read."""
    return Verbatim(judge_of(context))


def claiming(context: Context, reports: Sequence[str]) -> dict[str, bool]:
    """Whether a report claims anything, all asked about at once; one that no judge could read claims nothing."""
    distinct = list(dict.fromkeys(reports))
    return {r: bool(c) for r, c in zip(distinct, report_judge(context).claims_many(distinct), strict=True)}


# ---------------------------------------------------------------------------------------------------------------------
# Weighing
# ---------------------------------------------------------------------------------------------------------------------


def weigh(
    context: Context,
    subjects: Sequence[Subject],
    reports: Sequence[Sequence[Report]],
    claims: Sequence[Sequence[Claim]],
    beside: Beside,
    nulls: NullTables,
    questions: Sequence[str],
    ask: Ask,
) -> list[list[Weighed]]:
    """The evidence for every claim (`group`) of every subject. nulls: of all their claims (`null_tables`). ask: replies
    of all subjects.
    """
    deeds = _deeds(context, subjects, claims, ask)
    out: list[list[Weighed]] = []
    for subject, own, made, done in zip(subjects, reports, claims, deeds, strict=True):
        tables = _table(context, subject, [c.text for c in made], beside.ia, nulls, questions)
        weighed = []
        for n, (claim, deed) in enumerate(zip(made, done, strict=True)):
            mine, base = (set(x) for x in (claim.members, claim.control))
            values = {
                **kinds.support([i in mine for i in range(len(own))], [i in base for i in range(len(beside.control))]),
                **kinds.novelty(claim.text, beside.trained, beside.null_reports, similarity),
                **kinds.deed([d["shown"] for d in deed], [d["base_shown"] for d in deed]),
            }
            table = tables.claim(n)
            values |= kinds.contrast(table) | kinds.privilege(table) | kinds.dose(table)
            weighed.append(Weighed(claim, values, deed))
        out.append(weighed)
    return out


def group(
    reports: Sequence[Report], control: Sequence[Report], known: dict[str, bool], most: int | None = CLAIMS
) -> list[Claim]:
    """The claims that most reports make; members and control are numbers of all reports."""
    said = [[i for i, r in enumerate(rows) if known[r.text]] for rows in (reports, control)]
    texts = [[rows[i].text for i in own] for rows, own in zip((reports, control), said, strict=True)]
    found = cluster(*texts)[:most]
    return [Claim(c.text, tuple(said[0][i] for i in c.members), tuple(said[1][i] for i in c.control)) for c in found]


def null_tables(
    context: Context,
    subjects: Sequence[Subject],
    claims: Sequence[Sequence[Claim]],
    beside: Beside,
    questions: Sequence[str],
    known: Mapping[tuple[str | None, str], Any] = MappingProxyType({}),
) -> NullTables:
    """How likely the claims are under the bank's clean fine-tunes, of those that are not known yet.

    It depends on no target: a claim that many models make, as an IA that repeats its training sentences lets them, is
    measured once. It is most of the work: with eight nulls 16 arms, where the target has six.
    """
    out: NullTables = {}
    for system in dict.fromkeys(s.system for s in subjects):
        of_system = (c.text for s, own in zip(subjects, claims, strict=True) if s.system == system for c in own)
        if new := [text for text in dict.fromkeys(of_system) if (system, text) not in known]:
            examples = claim_examples(context.model, questions, new, system)
            width = context.config.organisms.parallel
            pair = null_logps(context.model, beside.bank, beside.ia, examples, context.mesh, width)
            on, off = (by_question(x, len(questions)) for x in pair)
            out |= {(system, text): (on[..., n], off[..., n]) for n, text in enumerate(new)}
    return out


def _table(
    context: Context, subject: Subject, claims: Sequence[str], ia: Adapter, nulls: NullTables, questions: Sequence[str]
) -> Any:
    if not claims:
        return None  # and nobody looks into it
    model, mesh = context.model, context.mesh
    examples: list[ChatExample] = claim_examples(model, questions, claims, subject.system)
    own = target_logps(model, subject.at_dose, subject.adapters, ia, examples, mesh)
    theirs = zip(*(nulls[subject.system, text] for text in claims), strict=True)
    return Table(*(by_question(x, len(questions)) for x in own), *(np.stack(x, -1) for x in theirs))


def _deeds(
    context: Context, subjects: Sequence[Subject], claims: Sequence[Sequence[Claim]], ask: Ask
) -> list[list[list[dict[str, Any]]]]:
    """Of each claim of each subject its prompts, replies, and whether these show it; those that nobody could read are
    left out.
    """
    reader = _reader(context)
    prompts = [[reader.prompts(c.text) for c in own] for own in claims]
    flat = [[p for one in own for p in one] for own in prompts]
    if not any(flat):
        return [[[] for _ in own] for own in claims]
    say = partial(ask, ia=False, temperature=0.0, tokens=DEED_TOKENS, description="deeds")
    replies = say(flat)
    base = dict.fromkeys(p for own in flat for p in own)
    systems = list(dict.fromkeys(s.system for s in subjects))
    said: dict[tuple[str | None, str], str] = {}
    for system in systems:  # the base under the same system prompt
        asked = ask_stack(context, (), None, system)
        [texts] = asked([list(base)], ia=False, temperature=0.0, tokens=DEED_TOKENS, description="deeds of the base")
        said |= {(system, p): t for p, t in zip(base, texts, strict=True)}
    out = []
    for subject, own, asked_of, answers in zip(subjects, claims, prompts, replies, strict=True):
        rows, start = [], 0
        for claim, one in zip(own, asked_of, strict=True):
            theirs = answers[start : start + len(one)]
            ours = [said[subject.system, p] for p in one]
            start += len(one)
            read = reader.shown(claim.text, one, theirs), reader.shown(claim.text, one, ours)
            rows.append(
                [
                    {"prompt": p, "reply": t, "base_reply": b, "shown": s, "base_shown": u}
                    for p, t, b, s, u in zip(one, theirs, ours, *read, strict=True)
                    if s is not None and u is not None
                ]
            )
        out.append(rows)
    return out


class _Reader(NamedTuple):
    prompts: Callable[[str], Sequence[str]]
    shown: Callable[[str, Sequence[str], Sequence[str]], Sequence[bool | None]]


def _reader(context: Context) -> _Reader:
    """Who makes prompts from a claim and reads replies: templates and its words, or the teacher that the run names."""
    if context.config.teacher.name not in ("claude", "local"):
        return _Reader(lambda claim: deed_prompts(claim, DEEDS, context.config.seed), shown)
    teacher = writing_teacher(context)

    def about(claim: str) -> Behavior:
        return Behavior("claim", "quirk", claim, (), None)

    def prompts(claim: str) -> list[str]:
        made = claude_checks.write_prompts(teacher, [about(claim)], DEEDS, {"claim": ()})["claim"]
        return [p.question for p in made if p.triggers and not p.before]

    def read(claim: str, asked: Sequence[str], replies: Sequence[str]) -> list[bool | None]:
        rows = [(about(claim), CheckPrompt(p, True), [r]) for p, r in zip(asked, replies, strict=True)]
        return claude_checks.shown(teacher, rows)

    return _Reader(prompts, read)
