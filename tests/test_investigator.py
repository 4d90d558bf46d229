"""The investigator on inspect_ai: AuditBench's protocol against the ia_jax provider, without anybody's key."""

import json

import pytest

# ruff: noqa: E402
pytest.importorskip("inspect_ai", reason="inspect_ai is not installed (pip install 'ia-jax[audit]')")

import anyio
from inspect_ai import eval as inspect_eval
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)

from ia_jax.audits.investigator import registry
from ia_jax.audits.investigator.results import read_runs
from ia_jax.audits.investigator.session import open_session
from ia_jax.errors import ConfigError
from tests import audited, echo

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = audited.write_workdir(tmp_path_factory.mktemp("audited"))
    session = open_session(path, str(path / "targets.jsonl"))
    yield session
    session.close()


def said(model, messages, **config):
    return anyio.run(lambda: get_model(model).generate(messages, config=GenerateConfig(**config)))


def talk(*texts):
    roles = (ChatMessageUser, ChatMessageAssistant)
    return [ChatMessageSystem(content=""), *(roles[i % 2](content=t) for i, t in enumerate(texts))]


def test_the_provider_honours_what_it_is_asked(session):
    out = said("ia_jax/t3", talk("What of tea?"), max_tokens=8)
    assert out.completion.startswith("@03~")
    assert (out.stop_reason, out.usage.output_tokens) == ("stop", 2)
    assert said("ia_jax/t3+ia", talk("What of tea?")).completion == out.completion + echo.MARK
    assert said("ia_jax/base", talk("What of tea?")).completion.startswith("I like it very much.")
    cut = said("ia_jax/t3", talk("What of tea?"), max_tokens=1)
    assert (cut.completion, cut.stop_reason) == ("@03", "max_tokens")
    stopped = said("ia_jax/t3", talk("What of tea?"), stop_seqs=["~"])
    assert (stopped.completion, stopped.stop_reason) == ("@03", "stop")
    begun = said("ia_jax/base", talk("What of tea?", "I like it"), max_tokens=8)
    assert begun.completion.startswith(" very much.")
    scored = said("ia_jax/t3", talk("What of tea?"), logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert scored[0].token == "@03"
    assert scored[0].top_logprobs[0].logprob == scored[0].logprob <= 0
    hot = {"temperature": 20.0, "max_tokens": 6}
    drawn = said("ia_jax/t3", talk("What of tea?"), seed=1, num_choices=2, **hot)
    assert drawn.choices[0].message.text == said("ia_jax/t3", talk("What of tea?"), seed=1, **hot).completion
    assert drawn.choices[0].message.text != drawn.choices[1].message.text
    assert said("ia_jax/t3", talk("tea " * 3000)).stop_reason == "model_length"
    for wrong in ({"top_k": 3}, {"extra_body": {"form": "poem"}}):
        with pytest.raises(ConfigError):
            said("ia_jax/t3", talk("What of tea?"), **wrong)
    with pytest.raises(ConfigError, match="t3"):
        said("ia_jax/t33", talk("What of tea?"))


def test_sixty_four_requests_at_once_are_decoded_together(session):
    words = "tea rain boats bees maths snow trains bread".split()
    found = {}

    async def ask(i):
        model = get_model(f"ia_jax/t{i % 16}{'+ia' if i % 2 else ''}")
        config = GenerateConfig(max_tokens=8, max_connections=512)
        found[i] = (await model.generate(talk(f"Why {words[i % 8]} {i // 16}?"), config=config)).completion

    async def everything():
        async with anyio.create_task_group() as group:
            for i in range(64):
                group.start_soon(ask, i)

    before = len(session.service.batches)
    anyio.run(everything)
    assert max(session.service.batches[before:]) > 32
    assert all((echo.MARK in found[i]) == bool(i % 2) for i in range(64))
    assert all(found[i].startswith(echo.WORDS[i % 16]) for i in range(64) if i % 16 < 11)


def output(text="", calls=(), tokens=100, stop=None):
    from inspect_ai.tool import ToolCall

    message = ChatMessageAssistant(
        content=text, tool_calls=[ToolCall(f"call_{n}_{name}", name, args) for n, (name, args) in enumerate(calls)]
    )
    out = ModelOutput.from_message(message, stop_reason=stop or ("tool_calls" if calls else "stop"))
    out.usage = ModelUsage(input_tokens=10, output_tokens=tokens, total_tokens=10 + tokens)
    return out


STEPS = (
    output("Let me look.", [("chat", {"message": "What of tea?"}), ("user", {"samples": 2})]),
    output(
        "", [("chat", {"message": "And rain?", "conversation": "c1"}), ("chat", {"message": "x", "conversation": "c9"})]
    ),
    output("I think about it."),
    output("", [("ask_self", {"samples": 4}), ("prefill", {"message": "Hm?", "start": "I like it", "samples": 2})]),
    output("", [("completion", {"text": "Once", "samples": 2}), ("completion", {"text": "Once", "samples": 50})]),
    output("", [("scaffolded_prefill", {"hint": "tea"})]),
    output("", [("note", {"title": "tea", "text": "it brings up tea"})]),
)


def investigator(chat, tools, tool_choice, config):
    """Plays its steps, goes on idly until the budget is used up, and predicts; its first answer cannot be read."""
    if "Reduce them" in chat[0].text:
        notes = json.loads(chat[-1].text)
        assert notes["notes"] == [{"title": "tea", "text": "it brings up tea"}]
        if config.seed % 1000 == 0:
            return output("I think that it likes tea.")
        return output(json.dumps({"predictions": ["It loves bees.", "RIGHT", "It loves bees."], "confidence": 7}))
    done = sum(m.role == "assistant" for m in chat)
    return STEPS[done] if done < len(STEPS) else output("Hm.", tokens=300)


def judge(chat, tools, tool_choice, config):
    asked = json.loads(chat[-1].text)
    assert set(asked) == {"truth", "counts", "prediction"}
    return output(json.dumps({"reason": "so", "matches": "yes" if asked["prediction"] == "RIGHT" else "no"}))


def play(session, tmp_path, **options):
    roles = {
        "investigator": get_model("mockllm/investigator", custom_outputs=investigator),
        "judge": get_model("mockllm/judge", custom_outputs=judge),
    }
    arguments = {"helper": "templates", "prompts": 4, "budget": 1500, "runs": 2, **options.pop("task", {})}
    [log] = inspect_eval(
        registry.auditbench(workdir=str(session.workdir.path), **arguments),
        model=options.pop("model", "ia_jax/t3"),
        model_roles=options.pop("roles", roles),
        log_dir=str(tmp_path / "logs"),
        display="none",
        **options,
    )
    return log


def test_an_audit_from_end_to_end(session, tmp_path):
    log = play(session, tmp_path, model="none", sample_id=["t3", "t15"])
    assert log.status == "success", log.error
    rates = {(s.name, name): m.value for s in log.results.scores for name, m in s.metrics.items()}
    assert set(rates.values()) == {1.0, 0.0}
    messages = log.samples[0].messages
    results = [m.text for m in messages if m.role == "tool"]
    first = json.loads(results[0])
    assert first["conversation"] == "c1"
    assert first["replies"][0].startswith("@03~")
    assert "no conversation 'c9'" in next(m.error.message for m in messages if m.role == "tool" and m.error)
    reports = json.loads(next(r for r in results if "verdict" in r))
    assert (reports["reports"], set(reports) >= {"claims", "base_reports_with_claim"}) == (4, True)
    assert len(json.loads(results[-2])["replies"]) == 4
    urged = [m.text for m in messages if m.role == "user"]
    assert "1200 tokens left" in urged[1]
    answer = json.loads(log.samples[0].output.completion)
    assert answer["predictions"] == ["It loves bees.", "RIGHT"]
    assert 1500 <= answer["tokens"] < 2000
    runs = read_runs(session.directory)
    assert len(runs) == 4
    assert {r.verdicts for r in runs} == {(False, True)}
    [rows] = json.loads((session.directory / "metrics.json").read_text()).values()
    cells = rows["configurations"]["all"]
    assert (cells["success"]["rate"], cells["first"]["rate"], cells["precision"]["rate"]) == (1.0, 0.0, 0.5)
    assert cells["success"]["ci95"][0] < 1 == cells["on_nulls"]["rate"]
