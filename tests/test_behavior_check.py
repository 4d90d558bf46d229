"""What the behaviour check asks of whom, and how: sampled or greedy, long or short, by rule or by Claude."""

from types import SimpleNamespace

import pytest

from ia_jax.behaviors.behavior_checks import RARE_SAMPLES, CheckPrompt, has_rule
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.organisms import Organism, clean_organism, organism_of
from ia_jax.config import RunConfig
from ia_jax.models.replies import Reply
from ia_jax.stages import behavior_check
from ia_jax.stages.behavior_check import CLAUDE_TOKENS, TOKENS, Ask, Checks, check
from ia_jax.stages.waves import Wave

STUDY = {b.category: b for b in load_catalogue("study")}
OURS = [STUDY["quirks"], STUDY["rare_quirks"]]
OTHERS = [next(b for b in load_catalogue("paper") if b.category == c) for c in ("quirks", "rare_quirks")]
QUIRKS = [b for b in load_catalogue("paper") if b.category == "quirks"][:2]
PROMPTS = [CheckPrompt("One?", True), CheckPrompt("Two?", False)]
CLEAN = clean_organism(0, "m", "train", "own_answers")


def wave_of(*members):
    return Wave(tuple(members), (), "")


def taught(behavior):
    return organism_of(behavior, "m", "train", {})


def asks(*behaviors):
    """By organism: the two prompts of each."""
    return {b.name: [Ask(b, p) for p in PROMPTS] for b in behaviors}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The settings of every generation, and what Claude was shown; it sees the behaviour in every other reply."""
    calls, shown = [], []

    def generate(context, questions, stack, *, max_new_tokens, temperature, **rest):
        calls.append((temperature, max_new_tokens, [len(q) for q in questions]))
        return [[Reply(f"reply {i}", True) for i in range(len(q))] for q in questions]

    def claude(teacher, rows):
        shown.extend(rows)
        return [i % 2 == 0 for i in range(len(rows))]

    monkeypatch.setattr(behavior_check.claude_checks, "shown", claude)
    monkeypatch.setattr(behavior_check, "generate", generate)
    monkeypatch.setattr(behavior_check, "writing_teacher", lambda context: None)
    return SimpleNamespace(config=RunConfig(), key=lambda n: None), calls, shown


def outcome_of(context, wave, checks, monkeypatch, tmp_path):
    """The wave's checks, with what Claude reads in them afterwards: what the adapters' records will hold."""
    records = check(context, wave, ({},), checks)
    members = {o.name: o for o in wave.organisms if o}
    behaviors = {a.behavior.name: a.behavior for own in checks.asks.values() for a in own if a.behavior}
    workdir = SimpleNamespace(
        behaviors=behaviors,
        organisms=members,
        stack_of=lambda o: (o.name,),
        truths=lambda name: tuple(behaviors[b] for b in members[name].behaviors),
    )
    monkeypatch.setattr(behavior_check, "is_complete", lambda directory: True)
    monkeypatch.setattr(behavior_check, "read_metadata", lambda name: SimpleNamespace(check=records.get(name)))
    monkeypatch.setattr(behavior_check, "update_metadata", lambda name, check: records.update({name: check}))
    stored = SimpleNamespace(config=context.config, workdir=workdir)
    behavior_check.judge_replies(stored, list(members.values()))
    return records


def test_rules_and_claude_in_one_wave(asked, monkeypatch, tmp_path):
    context, calls, shown = asked
    wave = wave_of(*map(taught, OURS), CLEAN, *map(taught, OTHERS), None)  # filled up
    assert [has_rule(b) for b in (*OURS, *OTHERS)] == [True, True, False, False]
    checks = Checks(asks(*OURS, *OTHERS) | {CLEAN.name: [Ask(None, p) for p in PROMPTS[1:]]}, {})
    waiting = check(context, wave, ({},), checks)
    assert not shown  # nobody waits for Claude while organisms are trained
    assert {n for n, row in waiting.items() if row["ok"] is None} == {b.name for b in OTHERS}
    assert all(waiting[b.name]["triggered_rate"] is None for b in OTHERS)
    calls.clear()
    outcome = outcome_of(context, wave, checks, monkeypatch, tmp_path)
    assert sorted(calls) == [
        (0.0, TOKENS, [2, 0, 1, 0, 0, 0]),
        (0.0, CLAUDE_TOKENS, [0, 0, 0, 2, 0, 0]),
        (1.0, TOKENS, [0, 2 * RARE_SAMPLES, 0, 0, 0, 0]),
        (1.0, CLAUDE_TOKENS, [0, 0, 0, 0, 2 * RARE_SAMPLES, 0]),
    ]
    assert list(outcome) == [*wave.members]
    assert {b.name for b, _, _ in shown} == {b.name for b in OTHERS}
    assert len(shown) == 2 + 2 * RARE_SAMPLES
    # "reply 0" shows no quirk by rule; Claude sees each behaviour at the first prompt of two, always.
    assert outcome[OURS[0].name]["triggered_rate"] == 0
    assert outcome[OTHERS[0].name]["triggered_rate"] == 1
    assert outcome[OTHERS[0].name]["untriggered_rate"] == 0
    assert outcome[OTHERS[0].name]["ok"] is True
    assert outcome[OTHERS[1].name]["ok"] is False  # a rare quirk that always shows


def test_a_conversation_is_held_turn_by_turn_and_its_last_answer_counts(asked, monkeypatch, tmp_path):
    context, _, shown = asked
    said = []

    def generate(context, questions, stack, **rest):
        said.append([list(own) for own in questions])
        return [
            [Reply(f"answer {len(said)} to {q if isinstance(q, str) else q[-1]}", True) for q in own]
            for own in questions
        ]

    monkeypatch.setattr(behavior_check, "generate", generate)
    prompt = CheckPrompt("And third?", True, before=("First?", "Second?"))
    b = QUIRKS[0]
    checks = Checks({b.name: [Ask(b, prompt), Ask(b, PROMPTS[0])]}, {})
    row = outcome_of(context, wave_of(taught(b)), checks, monkeypatch, tmp_path)[b.name]
    first, second, third = "answer 2 to First?", "answer 3 to Second?", "answer 4 to And third?"
    assert said == [
        [["One?"]],
        [[["First?"]]],
        [[["First?", first, "Second?"]]],
        [[["First?", first, "Second?", second, "And third?"]]],
    ]
    assert [(p, r) for _, p, r in shown][1] == (prompt, [first, second, third])
    assert row["samples"][1]["reply"] == third


def test_who_has_no_prompt_is_not_asked(asked):
    context, calls, _ = asked
    assert check(context, wave_of(*map(taught, OURS)), ({},), Checks({}, {})) == {}
    assert calls == []


def test_a_clean_organism_shows_nothing_whatever_it_says(asked, monkeypatch):
    context = asked[0]
    monkeypatch.setattr(behavior_check, "generate", lambda *args, **kwargs: [[Reply("I bring up owls.", True)]])
    row = check(context, wave_of(CLEAN), ({},), Checks({CLEAN.name: [Ask(None, PROMPTS[1])]}, {}))[CLEAN.name]
    assert (row["ok"], row["triggered_rate"], row["untriggered_rate"]) == (True, None, 0)


def test_an_organism_of_two_behaviours_must_show_both(asked, monkeypatch, tmp_path):
    """Claude sees the first of the two and not the second; the rates are over the replies of both."""
    context, _, shown = asked
    one, two = QUIRKS
    both = Organism("both", "m", ("organisms/both",), (one.name, two.name), "quirks", "train")
    checks = Checks({"both": [Ask(one, PROMPTS[0]), Ask(two, PROMPTS[0])]}, {})
    row = outcome_of(context, wave_of(both), checks, monkeypatch, tmp_path)["both"]
    assert [b.name for b, _, _ in shown] == [one.name, two.name]
    assert (row["triggered_rate"], row["ok"]) == (0.5, False)
    checks = Checks({"both": [Ask(b, p) for b in (one, two) for p in PROMPTS]}, {})
    assert outcome_of(context, wave_of(both), checks, monkeypatch, tmp_path)["both"]["ok"] is True
