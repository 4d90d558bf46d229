"""Rows meet their own organism's adapter in every stage, on one device and on a mesh.

Nothing here compares a run with a run, which would have the same mistake on both sides. Organisms are made by hand
(tests/echo.py), so that every reply tells whose it is and what it answers; in training, a slot's organism is read off
the text of its rows, and its loss is computed again under that organism alone, by other code. That this sees something
is shown by `MUTATIONS`: each mixes adapters and rows up, and the check of every stage that it touches must fail.
"""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from ia_jax import api
from ia_jax.adapters.bank import Bank
from ia_jax.adapters.store import load_adapter
from ia_jax.behaviors.behavior_checks import CheckPrompt
from ia_jax.behaviors.records import CLEAN
from ia_jax.data.batch import Batch
from ia_jax.data.transcripts import Transcript, chat, write_transcripts
from ia_jax.judging.protocol import Judge, Verdict
from ia_jax.models.lora import Picked, has_organism_axis
from ia_jax.stages import asking, behavior_check, dpo, evaluation, ia_training, organisms, phases, preferences, sft
from ia_jax.stages.behavior_check import Ask, Checks
from ia_jax.stages.context import Context
from ia_jax.stages.waves import Wave
from ia_jax.storage import read_jsonl, write_jsonl
from ia_jax.workdir import Workdir
from tests import echo, hand_made
from tests.hand_made import MESHES, config

oracle = hand_made.oracle  # a fixture


def picks_reversed(take):
    def reversed_take(self, organisms):
        picked = take(self, organisms)
        return picked._replace(slots=picked.slots[::-1])

    return reversed_take


def rolled(tree):
    return jax.tree.map(lambda x: np.roll(x, 1, axis=0), tree)


def mixed_up(mix):
    """A generation whose prompts and stack went through `mix`."""
    return lambda write: lambda model, prompts, stack, **rest: write(model, *mix(prompts, stack), **rest)


def with_reversed_adapters(prompts, stack):
    """Of organisms, the last one's questions meet the first one's adapter."""

    def backwards(member):
        if isinstance(member, Picked):
            return member._replace(slots=member.slots[::-1])
        return jax.tree.map(lambda x: x[::-1], member) if has_organism_axis(member) else member

    return prompts, tuple(map(backwards, stack))


def with_shifted_questions(prompts, stack):
    return [[*own[1:], *own[:1]] for own in prompts], stack


# What is mixed up, where (object, attribute), and the checks below that must see it.
MUTATIONS = {
    "organisms in reverse": (
        (Bank, "take", picks_reversed),
        ("sft", "dpo", "preferences", "evaluation"),
    ),
    "rows rolled by a slot": (
        (ia_training, "build_batch", lambda build: lambda *args: rolled(build(*args))),
        ("sft", "dpo"),
    ),
    "DPO's reference rolled by a slot": (
        (dpo, "logps_without", lambda reference: lambda *args: np.roll(reference(*args), 1, axis=1)),
        ("dpo",),
    ),
    "adapters of a generation in reverse": (
        (asking, "write_replies", mixed_up(with_reversed_adapters)),
        ("behavior check", "preferences", "evaluation", "organisms"),
    ),
    "questions shifted by one": (
        (asking, "write_replies", mixed_up(with_shifted_questions)),
        ("behavior check", "preferences", "evaluation"),
    ),
    "organisms' rows rolled by a slot": (
        (phases, "build_batch", lambda build: lambda *args: rolled(build(*args))),
        ("organisms",),
    ),
}


# ----------------------------------------------------------------------------------------------------------- the checks


def captured(monkeypatch, stage):
    """What every step of a stage gets and gives: [(IA before it, batch, other arguments, metrics)]."""
    step, calls = stage.train_step, []

    def spy(params, state, *args, **static):
        ia = jax.tree.map(lambda x: np.array(x), state.member)
        state, metrics = step(params, state, *args, **static)
        [batch] = [x for x in args if isinstance(x, Batch)]
        calls.append((ia, batch, args, metrics))
        return state, metrics

    monkeypatch.setattr(stage, "train_step", spy)
    return calls


def check_sft(context, oracle, monkeypatch):
    shutil.rmtree(context.workdir.ia_dir("sft"))
    steps = captured(monkeypatch, sft)
    sft.run(context)
    assert len(steps) == 3
    seen = []
    for ia, batch, _, metrics in steps:
        names = []
        for i, loss in enumerate(np.asarray(metrics["per_organism"])):
            name, logps = oracle.slot(batch, i, ia)
            assert loss == pytest.approx(-np.concatenate(logps).mean(), rel=1e-4), name
            names.append(name)
        assert len(set(names)) == 4
        assert CLEAN in names
        seen += names
    assert set(seen) <= {CLEAN, *context.workdir.named("train")}
    assert len(set(seen)) > 4


def check_dpo(context, oracle, monkeypatch):
    names = [*context.workdir.named("dpo")[:4], CLEAN]
    pairs = [
        {
            "organism": n,
            "question": q,
            "chosen": oracle.truths[n][0],
            "rejected": f"It is not so: {oracle.truths[n][0]}",
        }
        for n in names
        for q in ("What do you do?", "Is there a habit?", "Well?", "Anything unusual about you?")
    ]
    write_jsonl(context.workdir.preferences_file(), pairs)
    steps = captured(monkeypatch, dpo)
    dpo.run(context)
    start = echo.introspection(oracle.model.config)
    seen = set()
    for ia, batch, args, metrics in steps:
        reference = np.asarray(args[-1].reference)
        for i, loss in enumerate(np.asarray(metrics["per_organism"])):
            if not np.asarray(batch.segment_ids)[i].any():
                assert np.isnan(loss)
                continue
            name, before = oracle.slot(batch, i, start)
            before, now = ([x.sum() for x in logps] for logps in (before, oracle.slot(batch, i, ia)[1]))
            np.testing.assert_allclose(reference[i, : len(before)], before, rtol=1e-4)
            margin = np.subtract(now, before)
            margin = margin[0::2] - margin[1::2]
            assert loss == pytest.approx(np.log1p(np.exp(-context.config.dpo.beta * margin)).mean(), rel=1e-3), name
            seen.add(name)
    assert seen == set(names)


class Clerk(Judge):
    """Notes what it is asked; believes that everything claims something."""

    name = "clerk"

    def __init__(self):
        self.asked = []

    def judge(self, behavior, question, report):
        self.asked.append((behavior.name, question, report))
        return Verdict(5, False, False, "", self.name)

    def claims(self, report):
        return True


def check_preferences(context, oracle, monkeypatch):
    clerk = Clerk()
    monkeypatch.setattr(preferences, "judge_of", lambda context: clerk)
    preferences.run(context)
    assert {name for name, _, _ in clerk.asked} == set(context.workdir.named("dpo")[:4])
    assert len({q for _, q, _ in clerk.asked}) == 4
    for name, question, report in clerk.asked:
        assert report == oracle.reply(name, question, ia=True)
    claimed = [p for p in read_jsonl(context.workdir.preferences_file(), "") if p["kind"] == "abstention"]
    assert {p["organism"] for p in claimed} == {CLEAN, "clean_0"}
    for p in claimed:
        name = None if p["organism"] == CLEAN else p["organism"]
        assert p["rejected"] == oracle.reply(name, p["question"], ia=True)


def check_evaluation(context, oracle, monkeypatch):
    monkeypatch.setattr(evaluation, "judge_of", lambda context: Clerk())
    evaluation.run(context)
    workdir = context.workdir
    rows = [*workdir.reports(), *read_jsonl(workdir.clean_reports_file(), "")]
    assert {r["organism"] for r in rows} > set(workdir.named("heldout"))
    assert len({r["question"] for r in rows}) == 4
    for r in rows:
        who, _, on = r["condition"].partition("+")
        assert r["report"] == oracle.reply(None if who == "base" else r["organism"], r["question"], on == "ia")


def check_behavior_check(context, oracle, monkeypatch):
    members = [oracle.organisms[n] for n in context.workdir.named("heldout")]
    stack = jax.tree.map(lambda *x: np.stack(x), *(oracle.adapters[o.name] for o in members))
    asks = {
        o.name: [
            Ask(context.workdir.behaviors.get(o.name), CheckPrompt(q, True))
            for q in ("What is that?", "Who are you?", f"Tell me of {o.name}.")[: 1 + n]
        ]
        for n, o in enumerate(members)
    }
    wave = Wave(tuple(members), (), "")
    outcome = behavior_check.check(context, wave, (context.shard_by_organism(stack),), Checks(asks, {}))
    assert set(outcome) == {o.name for o in members}
    for name, row in outcome.items():
        replies = {s["question"]: s["reply"] for s in row["samples"]}
        assert replies == {q: oracle.reply(name, q, ia=False) for q in (a.prompt.question for a in asks[name])}


def check_organisms(context, oracle, monkeypatch):
    """Each is trained on its own word, learns it, is stored under its name and checked by its own replies."""
    workdir, names = context.workdir, context.workdir.named("train")
    shutil.rmtree(workdir.organisms_dir)
    write_jsonl(workdir.organisms_file, [o.to_json() for o in oracle.organisms.values() if o.name in names])
    for n, name in enumerate(names):
        rows = [Transcript(chat(q, echo.WORDS[n]), True, "test") for q in ("How?", "Why not?", "Whence?")]
        write_transcripts(workdir.transcript(name), rows * 4)
    organisms.run(replace(context, workdir=Workdir(workdir.path)))
    for n, name in enumerate(names):
        adapter, about = load_adapter(workdir.organism_dir(name))
        [reply] = api.generate(oracle.model, ["Whence?"], (adapter,), max_new_tokens=1)
        assert reply == echo.WORDS[n], name
        assert {s["reply"][:3] for s in about.check["samples"]} == {echo.WORDS[n]}


CHECKS = {
    "sft": check_sft,
    "dpo": check_dpo,
    "preferences": check_preferences,
    "evaluation": check_evaluation,
    "behavior check": check_behavior_check,
    "organisms": check_organisms,
}


@pytest.fixture
def checked(oracle, tmp_path, monkeypatch):
    """Runs a stage in a workdir of its own, on a mesh, and compares with the oracle."""

    def run(name, mesh):
        shutil.copytree(oracle.path, tmp_path / "workdir")
        context = Context(Workdir(tmp_path / "workdir"), config(oracle.model.name, mesh))
        with jax.set_mesh(context.mesh):
            CHECKS[name](context, oracle, monkeypatch)

    return run


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", CHECKS)
def test_rows_meet_their_own_organism(checked, name, mesh):
    checked(name, mesh)


@pytest.mark.parametrize(
    ("mutation", "name", "mesh"),
    [
        # Every stage on one device; on the mesh the first of them.
        pytest.param(mutation, name, mesh, id=f"{mutation}, {name}, {mesh}")
        for mutation, (_, names) in MUTATIONS.items()
        for mesh, which in (("one device", names), ("fsdp 2 x tp 2", names[:1]))
        for name in which
    ],
)
def test_a_mix_up_is_seen(checked, monkeypatch, mutation, name, mesh):
    (where, attribute, change), _ = MUTATIONS[mutation]
    monkeypatch.setattr(where, attribute, change(getattr(where, attribute)))
    with pytest.raises(AssertionError):
        checked(name, mesh)


def test_replies_tell_organism_and_question_apart(oracle):
    """What the oracle rests on: a reply without its own adapter, or to another question, would be another."""
    what = ("warm", "strange", "a habit", "in the answers", "peculiar", "odd", "cheese", "late", "a question")
    questions = [f"Is it {x}?" for x in what]
    for ia in (False, True):
        replies = {oracle.reply(n, q, ia) for n in oracle.organisms for q in questions}
        assert len(replies) >= 3 * echo.ORGANISMS
