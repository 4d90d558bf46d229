"""Replies that reach the most new tokens are cut off: they are told from those that end, and never taught as ends."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ia_jax.behaviors.records import CLEAN
from ia_jax.judging.protocol import Judge, Verdict
from ia_jax.models.sampling import generate_tokens
from ia_jax.stages import evaluation, preferences
from ia_jax.stages.context import Context
from ia_jax.stages.services import _local_answers
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir
from tests import echo, hand_made, parrot, tiny
from tests.hand_made import config

oracle = hand_made.oracle  # a fixture: a workdir of organisms made by hand


def test_which_rows_have_stopped():
    """A model that never stops, and the same one with its own tokens for stop tokens."""
    params, prompt = tiny.params(tiny.TINY), [[np.array([3, 5, 7], np.int32), np.array([11], np.int32)]]
    never = generate_tokens(params, tiny.TINY, prompt, (), (tiny.TINY.vocab_size,), max_new_tokens=6)
    assert [(len(ids), stopped) for ids, stopped in never[0]] == [(6, False), (6, False)]
    (first, _), (second, _) = never[0]
    for n in range(6):  # the n-th token ends the first row: the last of six does so as well as any other
        stop = first[n]
        [found] = generate_tokens(params, tiny.TINY, prompt, (), (stop,), max_new_tokens=6)
        for got, whole in zip(found, (first, second), strict=True):
            assert got.stopped == (stop in whole)
            assert got.tokens == (whole[: whole.index(stop)] if stop in whole else whole)


class Believer(Judge):
    """Finds every odd report good and every other bad, and that all claim something."""

    name = "believer"

    def __init__(self):
        self.asked = []

    def judge(self, behavior, question, report):
        self.asked.append(report)
        return Verdict(9 if len(self.asked) % 2 else 2, False, False, "", self.name)

    def claims(self, report):
        self.asked.append(report)
        return True


@pytest.fixture
def stage(oracle, tmp_path, monkeypatch):
    """Runs preferences or evaluation with this many new tokens; a report has three and its end."""

    def run(module, section, tokens):
        workdir = tmp_path / f"{section}{tokens}"
        shutil.copytree(oracle.path, workdir)
        whole = config(oracle.model.name, "one device")
        own = replace(getattr(whole, section), max_new_tokens=tokens)
        if section == "preferences":
            own = replace(own, samples=2, temperature=0.2)  # nearly greedy: what is odd need not end
        context = Context(Workdir(workdir), replace(whole, **{section: own}))
        judge = Believer()
        monkeypatch.setattr(module, "judge_of", lambda context: judge)
        with jax.set_mesh(context.mesh):
            module.run(context)
        return context, judge

    return run


def test_reports_that_were_cut_off_are_in_no_pair(stage, capsys):
    context, judge = stage(preferences, "preferences", 2)
    pairs = read_jsonl(context.workdir.preferences_file(), "")
    assert {p["kind"] for p in pairs} == {"truth", "abstention"}
    assert judge.asked == []  # nor is anybody paid for judging them
    truths = {w for b in context.workdir.behaviors.values() for w in b.wordings}
    assert {p["rejected"] for p in pairs} <= truths
    assert len([p for p in pairs if p["organism"] == CLEAN]) > 0
    asked = 4 * 2 * (4 + 1 + 1)  # questions x samples x (taught, the base, a clean one)
    assert f"{asked} sampled reports were cut off at config.preferences.max_new_tokens=2 and are in no" in (
        capsys.readouterr().out
    )


def test_reports_that_end_are_paired_as_ever(stage, capsys):
    context, judge = stage(preferences, "preferences", 8)
    assert judge.asked
    assert all(r.endswith(echo.MARK) for r in judge.asked)
    assert "cut off" not in capsys.readouterr().out
    negatives = [p["rejected"] for p in read_jsonl(context.workdir.preferences_file(), "") if p["kind"] == "abstention"]
    assert {r.endswith(echo.MARK) for r in negatives} == {True}


CONDITIONS = {"organism+ia", "organism", "base+ia", "base", "clean+ia", "clean"}


@pytest.mark.parametrize(
    ("tokens", "cut"), [(1, CONDITIONS), (4, {"base", "base+ia"}), pytest.param(8, set(), marks=pytest.mark.slow)]
)
def test_evaluated_reports_say_whether_they_were_cut_off(stage, capsys, tokens, cut):
    """An organism's report has 2 or 3 tokens and its end, the base's 6 or 7 and its end."""
    context, _ = stage(evaluation, "eval", tokens)
    rows = [*context.workdir.reports(), *read_jsonl(context.workdir.clean_reports_file(), "")]
    assert {(r["condition"], r["cut_off"]) for r in rows} == {(c, c in cut) for c in CONDITIONS}
    said = f"reports were cut off at config.eval.max_new_tokens={tokens}"
    assert (said in capsys.readouterr().out) == bool(cut)


def test_the_local_teacher_says_why_an_answer_ended(oracle):
    whole = config(oracle.model.name, "one device")
    local = replace(whole, teacher=replace(whole.teacher, name="local", model=oracle.model.name))
    answer = _local_answers(SimpleNamespace(model=oracle.model, config=local, model_cache=""))
    for tokens, reason in ((4, "max_tokens"), (7, "end_turn")):
        [reply] = answer([("Be kind.", "Is it?")], tokens, 0.0, 0)
        assert reply.stop_reason == reason
        assert parrot.SENTENCE.startswith(reply.text)
