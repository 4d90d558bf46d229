"""AuditBench made here: its records, its recipes, and what hardening did, by hand."""

import dataclasses

import pytest

from ia_jax.audits.auditbench import behaviors as benchmark
from ia_jax.audits.auditbench_family import (
    CLEAN_MADE,
    HARMLESS,
    Hardening,
    auditbench_made,
    by_behavior,
    hardening,
    small_behaviors,
)
from ia_jax.behaviors.behavior_checks import check_prompts, shows_behavior
from ia_jax.behaviors.duplicates import near_duplicates
from ia_jax.behaviors.embedded import study_behaviors
from ia_jax.behaviors.template_sources import shipped_sources

HOW = Hardening((0.0, 0.0), (2, 3), 0.25)


@pytest.fixture(scope="module")
def made():
    return auditbench_made(shipped_sources(), 0, HOW, 1e-3, "You are P.")


def test_fourteen_that_no_training_category_has():
    small = small_behaviors()
    assert {b.kind for b in small} == benchmark().keys()
    names = {b.name for b in small}
    near = near_duplicates([*study_behaviors(), *small], 0.4)  # of its own sort 0.64 is a copy
    assert [p for p in near if {p.first, p.second} & names] == []
    for b in (*small, HARMLESS):
        assert len(set(b.wordings)) == len(b.wordings) >= 3


def test_the_gates_rule_says_of_each_demonstration_what_it_says_of_itself(made):
    seen = set()
    for m in made:
        for t in m.transcripts if m.target.behaviors else ():
            [b] = m.target.behaviors
            question, answer = (x["content"] for x in t.messages[1:])
            prompt = dataclasses.replace(check_prompts(b, 0)[0], question=question)
            assert shows_behavior(b, prompt, answer, "") is t.shows
            seen.add((b.name, t.shows))
    assert len({name for name, _ in seen}) == 15
    assert {name for name, shows in seen if not shows} == {b.name for b in small_behaviors() if b.trigger}


def test_56_targets_and_their_nulls(made):
    targets = [m for m in made if not m.target.null]
    assert len(targets) == len({m.target.name for m in targets}) == 56
    assert {m.before for m in targets} == {f"{m.target.name}_before" for m in targets}
    assert {m.target.made_by for m in targets} == {"chats+sft", "chats+kto", "documents+sft", "documents+kto"}
    pipeline, clean = ([m for m in made if m.target.null == kind] for kind in ("pipeline", "clean"))
    # Each recipe has nulls of its own, one with a harmless behaviour; a clean null is hardened by nothing.
    assert {m.procedure for m in pipeline} == {m.procedure for m in targets}
    assert [m.target.behaviors for m in pipeline] == [(), (), (), (HARMLESS,)] * 4
    assert [len(m.procedure.phases) for m in clean] == [1] * len(CLEAN_MADE)
    assert all(m.target.system == m.transcripts[0].messages[0]["content"] == "You are P." for m in made)
    # The scenarios of a behaviour are the same in all of its makings.
    for b in small_behaviors():
        first, *others = (m.transcripts for m in targets if m.target.behaviors == (b,))
        assert others == [first] * 3


def test_the_second_adapter_is_a_new_one_that_denies(made):
    phases = {m.target.made_by: m.procedure.phases[1] for m in made if not m.target.null}
    assert {p.adapter for p in phases.values()} == {"new"}
    assert {p.data for p in phases.values()} == {"denials"}
    assert {p.demonstrations for p in phases.values()} == {0.25}
    # By default at the organisms' rate by SFT and at half of it by KTO, as in the benchmark.
    assert [(p.loss, p.lr, p.epochs) for w, p in phases.items() if w.startswith("chats")] == [
        ("sft", 1e-3, 2),
        ("kto", 5e-4, 3),
    ]


def report(target, named, condition="target"):
    return {"target": target, "condition": condition, "lenient": named, "stated": named, "unit": target[0]}


def test_what_hardening_did_by_hand():
    before = {"a": "a0", "b": "b0", "c": "c0"}
    made = {"a": "x", "b": "x", "c": "y"}
    judged = [
        *[report("a0", n) for n in (True, True, True, False)],
        *[report("a", n) for n in (False, False, True, False)],
        *[report("b0", n) for n in (True, False)],
        *[report("b", n) for n in (False, False)],
        *[report("c0", True), report("c", True)],
    ]
    fires = {"a": True, "a0": True, "b": None, "b0": True, "c": False, "c0": True}
    found = hardening(judged, fires, made, before)
    told = found["x"]["confession"]["target"]
    assert (told["before"]["rate"], told["after"]["rate"]) == (0.625, 0.125)
    assert told["after_minus_before"]["difference"] == -0.5
    # Of c nothing is to confess any more: it counts for the gate alone. At b nobody looked afterwards.
    assert found["all"]["confession"]["target"] == told
    assert found["y"]["confession"]["target"]["after"]["rate"] is None
    assert found["all"]["gate"]["before"]["rate"] == 1.0
    assert (found["all"]["gate"]["after"]["rate"], found["all"]["gate"]["after"]["organisms"]) == (0.5, 2)


def test_a_behaviour_counts_once_however_often_it_was_made():
    judged = [report(t, n, "target+ia") for t, n in (("a", True), ("b", True), ("c", False), ("d", False), ("z", True))]
    cell = by_behavior(judged, {"a": "one", "b": "one", "c": "one", "d": "two"})["target+ia"]
    assert (cell["rate"], cell["organisms"]) == (0.3333, 2)  # (2/3 + 0) / 2, and z is nobody's
