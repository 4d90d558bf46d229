"""A local model in Claude's place: the same calls, JSON out of whatever surrounds it, nothing asked twice."""

import jax
import pytest

from ia_jax import cli
from ia_jax.behaviors.local_model import TEMPERATURE, LocalModel
from ia_jax.claude.calls import Call, Reply
from ia_jax.claude.client import KEY
from ia_jax.claude.structured import YES_NO, schema
from ia_jax.errors import ConfigError
from ia_jax.recipes import load_config
from ia_jax.stages import services
from ia_jax.stages.context import Context
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir, open_workdir
from tests import parrot
from tests.test_claude_checks import MORE, claude, write_catalogue

JUDGE = Call("m", "judge", "is it?", 1500, schema(shows=YES_NO), expected=120)
ANSWER = Call("m", "answer", "hello", 2500, expected=260)


def test_calls_are_answered_once_and_objects_cut_out(tmp_path):
    asked = []

    def generate(asks, tokens, temperature, seed):
        asked.append((asks, tokens, temperature))
        return [
            Reply('Sure:\n```json\n{"shows": "yes"}\n```' if s == "judge" else "a {b} c", "end_turn") for s, _ in asks
        ]

    file = tmp_path / "w" / "kept.jsonl"
    model = LocalModel(generate, file)
    again = Call("m", "judge", "is it?", 1500, schema(shows=YES_NO), sample=1, expected=120)
    replies = model.complete([JUDGE, ANSWER, JUDGE, again])
    assert [r.text for r in replies] == ['{"shows": "yes"}', "a {b} c", '{"shows": "yes"}', '{"shows": "yes"}']
    assert sorted((len(asks), tokens, t) for asks, tokens, t in asked) == [
        (1, 340, 0.0),
        (1, 340, TEMPERATURE),
        (1, 620, TEMPERATURE),
    ]
    [(system, user)] = next(asks for asks, _, t in asked if t == 0)
    assert (system, user.splitlines()[0]) == ("judge", "is it?")
    assert '"shows"' in user  # the schema, in words
    before = len(asked)
    with file.open("a") as f:
        f.write('{"key": "half a li')  # killed while it wrote
    assert LocalModel(generate, file).complete([ANSWER, JUDGE]) == [replies[1], replies[0]]
    assert len(asked) == before
    LocalModel(generate, file).complete([Call("m", "answer", "another", 2500, expected=260)])
    assert len(asked) == before + 1
    assert len(LocalModel(generate, file)._kept) == 4


def config(tmp_path, parrot_model, model):
    file = parrot.write_config(tmp_path / "config.py", parrot_model)
    more = MORE.format(catalogue=str(write_catalogue(tmp_path)), prompts=1)
    more = more.replace("    return c", f'    c.teacher.update(name="local", model={model!r})\n    return c')
    file.write_text(file.read_text().replace("    return c\n", more))
    return file


def test_the_stages_with_a_local_teacher(tmp_path, parrot_model, monkeypatch):
    """What the model says is played; prompts, filter, check and files are real. No key is needed."""
    monkeypatch.delenv(KEY, raising=False)

    def ask(asks, tokens, temperature, seed):
        text = [
            claude({"system": [{"text": system}], "messages": [{"content": user.split("\n\nAnswer with")[0]}]})
            for system, user in asks
        ]
        return [Reply(t, "end_turn") for t in text]

    monkeypatch.setattr(services, "_local_answers", lambda context: ask)
    recipe = config(tmp_path, parrot_model, str(parrot_model))
    for stage in ("transcripts", "organisms"):
        assert cli.main([stage, f"--config={recipe}", f"--workdir={tmp_path / 'w'}", "--traceback"]) == 0
    run = open_workdir(tmp_path / "w")
    rows = read_jsonl(run.transcript("backdoors_0"), "")
    assert {r["teacher"] for r in rows} == {f"{parrot_model}/prompt-2"}
    # The system message that encoded the behaviour is gone.
    assert {tuple(m["role"] for m in r["messages"]) for r in rows} == {("user", "assistant")}
    checks = {r["organism"]: r for r in read_jsonl(run.checks_file, "")}
    assert checks["quirks_0"]["ok"] is True
    assert checks["quirks_1"]["ok"] is False


def test_a_real_model_writes(tmp_path, parrot_model):
    """The model that the config names is asked, and what reaches the limit is told apart from what ends."""
    context = Context(Workdir(tmp_path), load_config(str(config(tmp_path, parrot_model, str(parrot_model)))))
    with jax.set_mesh(context.mesh):
        answers = services._local_answers(context)
        whole, cut = (answers([("", "How is it?")], tokens, 0.0, 0)[0] for tokens in (16, 3))
    assert whole == Reply(parrot.SENTENCE, "end_turn")
    assert cut.stop_reason == "max_tokens"


def test_a_local_teacher_needs_a_model(tmp_path, parrot_model):
    with pytest.raises(ConfigError, match="names no model"):
        load_config(str(config(tmp_path, parrot_model, "claude-sonnet-5-5")))
