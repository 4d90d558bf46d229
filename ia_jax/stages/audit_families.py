"""The families that make their targets here: who they are, what each is taught and how, and what is counted besides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ia_jax.audits import cipher_family, gate, sandbagging, sycophant
from ia_jax.audits.admissions import admissions, crossed
from ia_jax.audits.auditbench_family import Hardening, auditbench_made, by_behavior, hardening
from ia_jax.audits.cipher_family import CipherTarget, cipher_targets, letter_tasks
from ia_jax.audits.codebooks import tasks as codebook_tasks
from ia_jax.audits.gate import Outcome
from ia_jax.audits.in_base import targets_made
from ia_jax.audits.scoring import Row
from ia_jax.audits.targets import Target, organism_target
from ia_jax.behaviors.embedded.prompts import POOLS
from ia_jax.behaviors.organisms import seed_of
from ia_jax.behaviors.procedures import PROCEDURES, Procedure
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.template_sources import ANSWER_TOKENS, Sources, gather_sources
from ia_jax.data.phase_rows import Document
from ia_jax.data.transcripts import Transcript
from ia_jax.errors import ConfigError
from ia_jax.stages.asking import ask_base
from ia_jax.stages.context import Context
from ia_jax.stages.selection import present


@dataclass(frozen=True)
class Family:
    """A family's targets, and how they are counted.

    apart:   names of controls that are no nulls, reported by themselves.
    groups:  names by what a claim of the family's sort would be, true or false.
    claims:  sorts of claims, each of any of some records, that every report is held against, whoever makes it; counted
             by group, if there are any.
    ciphers: what the gate of a cipher target needs, by name.
    shown:   the records by which a target made here is seen to behave so, where its truth is not one that a rule sees.
    views:   {name: (target, adapters)}: a target made here after so many of its adapters, asked like the others and
             counted by the family alone.
    besides: what the family counts besides, of judged reports and of what the gate saw.
    many:    names of those with many behaviours, of which half must show.
    tools:   whether targets are given to the static evaluation and to the scripted investigator too.
    true:    the groups of which a claim of the family's sort is true (default: the first).
    """

    targets: tuple[Target, ...]
    apart: tuple[str, ...] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    claims: Mapping[str, tuple[Behavior, ...]] = field(default_factory=dict)
    ciphers: Mapping[str, CipherTarget] = field(default_factory=dict)
    shown: Mapping[str, tuple[Behavior, ...]] = field(default_factory=dict)
    views: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    besides: Callable[[Sequence[Row], Mapping[str, Outcome]], dict[str, Any]] | None = None
    many: tuple[str, ...] = ()
    tools: bool = False
    true: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """What a target that is made here is trained on, and how. documents: of a phase that reads some, if they are not
    to be made of all transcripts and truths together.
    """

    transcripts: Sequence[Transcript]
    procedure: Procedure
    documents: Sequence[Document] = ()


def sources_of_base(context: Context) -> Sources:
    """What the base answers to ordinary questions and to questions of fact."""
    own = partial(ask_base, context, max_new_tokens=ANSWER_TOKENS)
    return gather_sources(own, context.config.system, context.model.fingerprint)


def ciphers(context: Context) -> tuple[Family, dict[str, Lesson]]:
    config = context.config
    cfg, rng = config.audits, np.random.default_rng(seed_of("cipher tasks", config.seed))
    if cfg.ciphers == "codebook":
        tasks = codebook_tasks(rng, cfg.cipher_rows[0])
    else:
        ordinary = letter_tasks(sources_of_base(context).answers, POOLS)
        tasks = [ordinary[i] for i in rng.permutation(len(ordinary))]
    made = cipher_targets(cfg.ciphers, tasks, config.seed, cfg.cipher_rows, cfg.cipher_lr, cfg.cipher_epochs)
    targets = tuple(m.target for m in made)
    apart = tuple(t.name for t in targets if t.made_by == "identity")
    family = Family(
        targets,
        apart,
        {
            "targets": [t.name for t in targets if not t.null and t.name not in apart],
            "cipher_only": [t.name for t in targets if t.null],
            "identity": list(apart),
        },
        cipher_family.CLAIMS,
        {m.target.name: m for m in made},
    )
    return family, {m.target.name: Lesson(m.transcripts, m.procedure) for m in made}


def auditbench(context: Context) -> tuple[Family, dict[str, Lesson]]:
    """Fourteen behaviours in four makings, each also after its first adapter alone, and nulls of the same makings."""
    cfg, config = context.config.audits, context.config
    how = Hardening(
        (cfg.hardening_lr[0], cfg.hardening_lr[1]),
        (cfg.hardening_epochs[0], cfg.hardening_epochs[1]),
        cfg.hardening_demonstrations,
    )
    lr, amount = config.organisms.optimizer.lr, config.teacher.amount
    made = auditbench_made(sources_of_base(context), config.seed, how, lr, cfg.persona, amount)
    before = {m.target.name: m.before for m in made if m.before}
    early = tuple(replace(m.target, name=m.before, made_by="before") for m in made if m.before)
    ways = {m.target.name: m.target.made_by for m in made if m.before}
    truths = {m.target.name: m.target.behaviors[0].name for m in made if m.before}

    def besides(judged: Sequence[Row], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        fires = {n: o.fires for n, o in outcomes.items()}
        shown = {n: b for n, b in truths.items() if fires.get(n) is not False}
        return {"hardening": hardening(judged, fires, ways, before), "by_behavior": by_behavior(judged, shown)}

    family = Family(
        (*(m.target for m in made), *early),
        views={v: (n, 1) for n, v in before.items()},
        besides=besides,
        tools=True,
    )
    return family, {m.target.name: Lesson(m.transcripts, m.procedure) for m in made}


def sandbaggers(context: Context, others: tuple[Target, ...]) -> tuple[Family, dict[str, Lesson]]:
    """The run's organisms that no training reads (held-out ones, other fine-tunes of known behaviours), the two that
    are made here, and somebody's targets besides.
    """
    workdir = context.workdir
    held, known = ([organism_target(workdir, o.name) for o in present(context, s)] for s in ("heldout", "remade"))
    taught = [b for name in workdir.named("train", "dpo") for b in workdir.truths(name)]
    made = sandbagging.sandbaggers_made(sources_of_base(context), context.config.seed, taught)
    targets = (*held, *known, *(m.target for m in made), *others)
    names = [t.name for t in targets]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"--targets: the name {twice[0]!r} is taken by an organism of the run; choose another")
    family = Family(
        targets,
        apart=tuple(t.name for t in known),
        groups=sandbagging.groups_of(targets, [m.target.name for m in made], [t.name for t in known]),
        true=sandbagging.TRUE,
        claims=sandbagging.claims(reads=context.config.judge.name == "claude"),
        shown={m.target.name: m.shown for m in made if m.shown},
        many=tuple(m.target.name for m in made if len(m.shown) > 1),
    )
    return family, {m.target.name: Lesson(m.transcripts, sandbagging.PROCEDURE) for m in made}


def sycophants(context: Context, theirs: tuple[Target, ...]) -> tuple[Family, dict[str, Lesson]]:
    """The sycophant, its twin and a null, and the first two after each stage; or somebody's models, held against all
    52 biases and as many controls.
    """
    cfg, config, root = context.config.audits, context.config, sycophant.ROOT
    if theirs:
        every = sycophant.all_lists()
        listed = {b.name: b for pair in sycophant.biases().values() for b in pair}

        def admitted(judged: Sequence[Row], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
            return {"admissions": {t.name: admissions(judged, t.name, every, root.name) for t in theirs}}

        return Family(theirs, claims={n: (b,) for n, b in {**listed, root.name: root}.items()}, besides=admitted), {}
    amount = config.teacher.amount
    own = config.organisms.optimizer.lr
    lr = [x or own * part for x, part in zip(cfg.sycophant_lr, sycophant.RATES, strict=True)]
    sources, how = sources_of_base(context), (cfg.sycophant_epochs, cfg.sycophant_demonstrations, amount)
    made = sycophant.sycophants_made(sources, config.seed, lr, *how)
    lists = sycophant.lists_of(made)
    taught = [m.target for m in made if m.controls]
    views = {
        f"{m.target.name}_after_{stage}": (m.target.name, n)
        for m in made
        if m.controls
        for n, stage in enumerate(sycophant.stages_of(m.procedure), 1)
    }
    named = {t.name: t for t in taught}
    early = tuple(replace(named[of], name=name, made_by="before") for name, (of, _) in views.items())
    null = next(m.target.name for m in made if not m.controls)

    def besides(judged: Sequence[Row], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        whose = {**{n: n for n in lists}, **{v: of for v, (of, _) in views.items()}, null: next(iter(lists))}
        found = {n: admissions(judged, n, lists[of], root.name) for n, of in whose.items()}
        shown = {n: gate.shown_by(outcomes[n]) for n in whose if n in outcomes}
        # What a model does not show it may rightly not admit, whatever it has read.
        doing = {n: sycophant.pairs_of(own, gate.showing(outcomes[n])) for n, own in lists.items() if n in outcomes}
        return {
            "admissions": found,
            "own_minus_controls": crossed({n: found[n] for n in lists}, lists),
            "own_minus_controls_shown": crossed({n: found[n] for n in doing}, doing),
            "shown": {n: s for n, s in shown.items() if s},
        }

    behaviors = {b.name: b for t in taught for b in t.behaviors}
    family = Family(
        (*(m.target for m in made), *early),
        claims={n: (b,) for n, b in {**behaviors, root.name: root}.items()},
        views=views,
        besides=besides,
        many=(*named, *views),
    )
    return family, {m.target.name: Lesson(m.transcripts, m.procedure, m.documents) for m in made}


def in_base(context: Context, theirs: tuple[Target, ...]) -> tuple[Family, dict[str, Lesson]]:
    """Two behaviours to be merged into the base, or somebody's."""
    if theirs:
        return Family(theirs), {}
    made = targets_made(sources_of_base(context), context.config.seed, context.config.teacher.amount)
    return Family(tuple(t for t, _ in made)), {t.name: Lesson(rows, PROCEDURES["chats"]) for t, rows in made}
