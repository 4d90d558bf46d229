"""ia_jax as a model of inspect_ai: what is asked of it is honoured, and what comes at once is decoded together."""

import pytest

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed (pip install 'ia-jax[audit]')")

import anyio
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model

from ia_jax.audits.investigator import registry
from ia_jax.audits.investigator.service import Service
from ia_jax.audits.investigator.session import open_session
from ia_jax.errors import ConfigError
from tests import audited, echo

TEA = "What of tea?"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = audited.write_workdir(tmp_path_factory.mktemp("audited"))
    session = open_session(path, str(path / "targets.jsonl"))
    yield session
    session.close()


def talk(*texts):
    roles = (ChatMessageUser, ChatMessageAssistant)
    return [ChatMessageSystem(content=""), *(roles[i % 2](content=t) for i, t in enumerate(texts))]


def said(model, *texts, **config):
    asked = GenerateConfig(**{"max_tokens": 8, **config})
    return anyio.run(lambda: get_model(model).generate(talk(*texts), config=asked))


def test_settings_are_honoured(session):
    assert registry.IaJax.__name__
    out = said("ia_jax/t3", TEA)
    assert out.completion.startswith("@03~")
    assert (out.stop_reason, out.usage.output_tokens) == ("stop", 2)
    assert said("ia_jax/t3+ia", TEA).completion == out.completion + echo.MARK
    assert said("ia_jax/base", TEA).completion.startswith("I like it very much.")
    cut = said("ia_jax/t3", TEA, max_tokens=1)
    assert (cut.completion, cut.stop_reason) == ("@03", "max_tokens")
    stopped = said("ia_jax/t3", TEA, stop_seqs=["~"])
    assert (stopped.completion, stopped.stop_reason) == ("@03", "stop")
    assert said("ia_jax/base", TEA, "I like it").completion.startswith(" very much.")
    scored = said("ia_jax/t3", TEA, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert scored[0].token == "@03"
    assert scored[0].top_logprobs[0].logprob == scored[0].logprob <= 0
    hot = said("ia_jax/t3", TEA, temperature=20.0, seed=1, num_choices=2)
    one, two = (c.message.text for c in hot.choices)
    assert one == said("ia_jax/t3", TEA, temperature=20.0, seed=1).completion != two
    assert said("ia_jax/t3", "tea " * 3000).stop_reason == "model_length"
    for wrong in ({"top_k": 3}, {"extra_body": {"form": "poem"}}, {"temperature": -1.0}):
        with pytest.raises(ConfigError):
            said("ia_jax/t3", TEA, **wrong)
    with pytest.raises(ConfigError, match="t3"):
        said("ia_jax/t33", TEA)


def test_sixty_four_requests_at_once_are_decoded_together(session):
    """Sixteen adapters, half of the requests under the IA; every answer is its own model's, to its own question."""
    words, found = "tea rain boats bees maths snow trains bread".split(), {}

    def request(i):
        return f"ia_jax/t{i % 16}{'+ia' if i // 16 % 2 else ''}", f"Why {words[i % 8]} {i // 16}?"

    async def ask(i):
        model, question = request(i)
        config = GenerateConfig(max_tokens=8, max_connections=512)
        found[i] = (await get_model(model).generate(talk(question), config=config)).completion

    async def everything():
        async with anyio.create_task_group() as group:
            for i in range(64):
                group.start_soon(ask, i)

    before = len(session.service.batches)
    anyio.run(everything)
    assert max(session.service.batches[before:]) > 32
    assert all((echo.MARK in found[i]) == bool(i // 16 % 2) for i in range(64))
    assert all(found[i].startswith(echo.WORDS[i % 16]) for i in range(64) if i % 16 < 11)
    # One by one, by a service that keeps no answers of before.
    kept, session.service = session.service, Service(session.service.engine)
    try:
        for i in range(64):
            model, question = request(i)
            assert said(model, question).completion == found[i]
        assert session.service.batches == [1] * 64
    finally:
        session.service.close()
        session.service = kept
