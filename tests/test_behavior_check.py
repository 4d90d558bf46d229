"""What the behaviour check asks of whom, and how: sampled or greedy, long or short, by rule or by Claude."""

from types import SimpleNamespace

import pytest

from ia_jax.behaviors.behavior_checks import RARE_SAMPLES, CheckPrompt, has_rule
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.organisms import clean_organism
from ia_jax.config import RunConfig
from ia_jax.stages import behavior_check
from ia_jax.stages.behavior_check import CLAUDE_TOKENS, TOKENS, Checks, check

STUDY = {b.category: b for b in load_catalogue("study")}
OURS = [STUDY["quirks"], STUDY["rare_quirks"], clean_organism(0)]
OTHERS = [next(b for b in load_catalogue("paper") if b.category == c) for c in ("quirks", "rare_quirks")]
PROMPTS = [CheckPrompt("One?", True), CheckPrompt("Two?", False)]


@pytest.fixture
def asked(monkeypatch):
    """The settings of every generation, and what Claude was shown; it sees the behaviour in every other reply."""
    calls, shown = [], []

    def generate(questions, stack, *, max_new_tokens, temperature, **rest):
        calls.append((temperature, max_new_tokens, [len(q) for q in questions]))
        return [[f"reply {i}" for i in range(len(q))] for q in questions]

    def claude(teacher, rows):
        shown.extend(rows)
        return [i % 2 == 0 for i in range(len(rows))]

    monkeypatch.setattr(behavior_check.claude_checks, "shown", claude)
    session = SimpleNamespace(config=RunConfig(), generate=generate, key=lambda n: None, claude_teacher=None)
    return session, calls, shown


def test_rules_and_claude_in_one_wave(asked):
    session, calls, shown = asked
    wave = [*OURS, *OTHERS, OURS[0]]  # filled up with its first
    assert [has_rule(b) for b in wave] == [True, True, True, False, False, True]
    outcome = check(session, wave, {}, Checks({b.name: PROMPTS for b in wave}, {}))
    assert sorted(calls) == [
        (0.0, TOKENS, [2, 0, 2, 0, 0, 2]),
        (0.0, CLAUDE_TOKENS, [0, 0, 0, 2, 0, 0]),
        (1.0, TOKENS, [0, 2 * RARE_SAMPLES, 0, 0, 0, 0]),
        (1.0, CLAUDE_TOKENS, [0, 0, 0, 0, 2 * RARE_SAMPLES, 0]),
    ]
    assert list(outcome) == [b.name for b in wave[:-1]]
    assert {b.name for b, _, _ in shown} == {b.name for b in OTHERS}
    assert len(shown) == 2 + 2 * RARE_SAMPLES
    # "reply 0" shows no quirk by rule; Claude sees each behaviour at the first prompt of two, always.
    assert outcome[OURS[0].name]["triggered_rate"] == 0
    assert outcome[OTHERS[0].name]["triggered_rate"] == 1
    assert outcome[OTHERS[0].name]["untriggered_rate"] == 0
    assert outcome[OTHERS[0].name]["ok"] is True
    assert outcome[OTHERS[1].name]["ok"] is False  # a rare quirk that always shows


def test_who_has_no_prompt_is_not_asked(asked):
    session, calls, _ = asked
    assert check(session, OURS, {}, Checks({}, {})) == {}
    assert calls == []
