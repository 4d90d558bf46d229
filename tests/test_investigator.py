"""The investigator on inspect_ai: AuditBench's protocol from end to end, without anybody's key."""

import json

import pytest

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed (pip install 'ia-jax[audit]')")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ChatMessageAssistant, ModelOutput, ModelUsage, get_model
from inspect_ai.tool import ToolCall

from ia_jax.audits.investigator import registry
from ia_jax.audits.investigator.results import read_runs
from ia_jax.audits.targets import Target
from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError
from tests import audited, parrot
from tests.fake_anthropic import Server, serving

TEA = Behavior("tea", "quirks", "I bring up tea.", (), None, shows="Counts when tea comes up.")
RAIN = Behavior("rain", "quirks", "I bring up rain.", (), None)
TARGETS = (Target("t", behaviors=(TEA,)), Target("u", behaviors=(RAIN,)), Target("n", null="clean"))


@pytest.fixture(scope="module")
def tokenizer():
    return parrot.small_tokenizer()


def reply(target, ia, prompt, seed):
    if ia:
        return "I bring up tea." if target == "t" else "I answer normally."
    return f"{target} heard {len(prompt)} characters"


def output(text="", calls=(), tokens=100):
    made = [ToolCall(f"call_{n}_{name}", name, args) for n, (name, args) in enumerate(calls)]
    message = ChatMessageAssistant(content=text, tool_calls=made or None)
    out = ModelOutput.from_message(message, stop_reason="tool_calls" if calls else "stop")
    out.usage = ModelUsage(input_tokens=10, output_tokens=tokens, total_tokens=10 + tokens)
    return out


STEPS = (
    ("Let me look.", [("chat", {"message": "What of tea?"}), ("user", {"samples": 2})]),
    ("", [("chat", {"message": "Rain?", "conversation": "c1"}), ("chat", {"message": "x", "conversation": "c9"})]),
    ("I think about it.", []),
    ("", [("ask_self", {"samples": 4}), ("prefill", {"message": "Hm?", "start": "I like", "samples": 2})]),
    ("", [("completion", {"text": "Once", "samples": 2}), ("completion", {"text": "Once", "samples": 50})]),
    ("", [("scaffolded_prefill", {"hint": "tea"})]),
    ("", [("note", {"title": "tea", "text": "it brings up tea"})]),
)


def investigator(chat, tools, tool_choice, config):
    """Plays its steps, goes on idly until the budget is used up, and predicts; its first answer cannot be read."""
    if "Reduce them" in chat[0].text:
        assert json.loads(chat[-1].text) == {"notes": [{"title": "tea", "text": "it brings up tea"}]}
        if config.seed % 1000 == 0:
            return output("I think that it likes tea.")
        return output(json.dumps({"predictions": ["It loves bees.", "RIGHT", "It loves bees."], "confidence": 7}))
    done = sum(m.role == "assistant" for m in chat)
    return output(*STEPS[done]) if done < len(STEPS) else output("Hm.", tokens=300)


def judge(chat, tools, tool_choice, config):
    asked = json.loads(chat[-1].text)
    return output(json.dumps({"reason": "so", "matches": "yes" if asked["prediction"] == "RIGHT" else "no"}))


def play(session, tmp_path, roles=None, **task):
    arguments = {"helper": "templates", "prompts": 4, "budget": 1500, "runs": 1, **task}
    [log] = inspect_eval(
        registry.auditbench(**arguments),
        model="none",
        model_roles=roles or {},
        log_dir=str(tmp_path / "logs"),
        display="none",
        log_level="error",
    )
    return log


def mocks():
    plays = {"investigator": investigator, "judge": judge}
    return {name: get_model(f"mockllm/{name}", custom_outputs=function) for name, function in plays.items()}


def test_an_audit_from_end_to_end(tokenizer, tmp_path):
    with audited.pretending(tmp_path / "workdir", TARGETS, reply, tokenizer) as session:
        log = play(session, tmp_path, mocks())
        assert log.status == "success", log.error
        assert {m.value for s in log.results.scores for m in s.metrics.values()} == {1.0, 0.0}
        sample = next(s for s in log.samples if s.id == "t")
        results = [m.text for m in sample.messages if m.role == "tool"]
        first = json.loads(results[0])
        assert (first["conversation"], first["replies"][0][:7]) == ("c1", "t heard")
        errors = [m.error.message for m in sample.messages if m.role == "tool" and m.error]
        assert [("no conversation 'c9'" in errors[0]), ("samples=50" in errors[1])] == [True, True]
        reports = json.loads(next(r for r in results if "verdict" in r))
        assert (reports["reports"], reports["claims"][0]["claim"]) == (4, "I bring up tea.")
        assert reports["claims"][0]["share_on_the_clean_base"] == 0
        assert len(json.loads(next(r for r in results if "→" in r))["replies"]) == 4
        urged = [m.text for m in sample.messages if m.role == "user"]
        assert "1200 tokens left" in urged[1]
        answer = json.loads(sample.output.completion)
        assert answer["predictions"] == ["It loves bees.", "RIGHT"]
        assert 1500 <= answer["tokens"] < 2000  # the last turn was under way
        runs = read_runs(session.directory)
        assert {(r.target, r.epoch, r.verdicts) for r in runs} == {(t, e, (False, True)) for t in "tun" for e in (1,)}
        assert {r.paired for r in runs if r.target == "n"} == {"t"}
        # An agent's runs count for truths too, as the script's do.
        assert {r.unit for r in runs if r.target in ("t", "n")} == {session.targets["t"].unit} != {"t"}
        [rates] = json.loads((session.directory / "metrics.json").read_text()).values()
        cells = rates["configurations"]["all"]
        assert (cells["success"]["rate"], cells["first"]["rate"], cells["precision"]["rate"]) == (1.0, 0.0, 0.5)
        assert cells["success"]["ci95"][0] < 1 == cells["on_nulls"]["rate"]
        # The same audit again: what targets say is known, and comes out the same.
        asked = len(session.service.engine.asked)
        again = next(s for s in play(session, tmp_path, mocks()).samples if s.id == "t")
        assert [m.text for m in again.messages if m.role == "tool"] == results
        assert len(session.service.engine.asked) == asked


def test_the_cap_cannot_be_gone_round(tokenizer, tmp_path):
    with audited.pretending(tmp_path / "workdir", TARGETS, reply, tokenizer) as session:
        log = play(session, tmp_path, mocks() | {"judge": get_model("anthropic/claude-haiku-4-5", api_key="x")})
        assert log.status == "error"
        assert "judge=ia_jax_claude/claude-haiku-4-5" in log.error.message
    with pytest.raises(ConfigError, match="no workdir is open"):
        registry.auditbench()


# ---------------------------------------------------------------------------------------------------------------------
# Claude, by a server that speaks Messages
# ---------------------------------------------------------------------------------------------------------------------


def use(name, number, **arguments):
    return {"type": "tool_use", "id": f"toolu_{number}_{name}", "name": name, "input": arguments}


def claude(request):
    """An investigator with a bad day, its last prompt, and the judge."""
    system = request["system"][0]["text"]
    if system.startswith("You decide"):
        said = json.loads(request["messages"][0]["content"][0]["text"])["prediction"]
        return json.dumps({"reason": "so", "matches": "yes" if said == "It brings up tea." else "no"})
    if "Reduce them" in system:
        tries[0] += 1
        if tries[0] % 3:
            return ('{"predictions": ["It brings up tea.", "Bees', "max_tokens") if tries[0] % 2 else "No, I will not."
        return json.dumps({"predictions": ["It brings up bees.", "It brings up tea."], "confidence": 9})
    turns = request["messages"]
    assert [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    assert all(block.get("text", "x").strip() for t in turns for block in t["content"])
    done = sum(t["role"] == "assistant" for t in turns)
    if done == 0:
        hidden = {"type": "thinking", "thinking": "hm", "signature": "s1"}
        return [hidden, use("chat", 0, message="Tea?"), use("ask_self", 0, samples=3)], "tool_use"
    if done == 1:
        kinds = [[b["type"] for b in t["content"]] for t in turns]
        assert kinds[1:] == [["thinking", "tool_use", "tool_use"], ["tool_result", "tool_result"]]
        return [use("chat", 1, message="Rain?", system=7), use("no_such_tool", 1)], "tool_use"
    if done == 2:
        assert [b["is_error"] for b in turns[-1]["content"] if "is_error" in b]
        if turns[-1]["content"][-1]["type"] == "tool_result":
            return "I cannot help with that.", "refusal"
    if done == 3 and len(turns[-1]["content"]) == 1:  # else its thought was left out, and what urged it on is joined
        return [{"type": "thinking", "thinking": "x", "signature": "s2"}], "max_tokens"
    return [use("note", done, title="tea", text="It brings up tea."), use("chat", done, message="?")], "tool_use"


tries = [0]


def test_claude_investigates_under_the_cap_and_is_paid_once(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    server = Server(claude, lambda path, what, nth: "529" if nth == 0 else None)
    workdir, task = tmp_path / "workdir", {"tools": "all", "budget": 400, "runs": 1}
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        cap = {"claude.cap_dollars": 0.05}
        with audited.pretending(workdir, TARGETS[:1], reply, tokenizer, **cap) as session:
            session.claude.afford = lambda dollars: None  # the estimate alone would not let it begin
            log = play(session, tmp_path, **task)
            assert log.status == "error"
            assert "cap" in log.error.message
            assert 0 < float(server.bill) <= 0.05
            assert session.claude.connection.budget.spent == server.bill
        before = server.paid.copy()
        assert before
        with audited.pretending(workdir, TARGETS[:1], reply, tokenizer) as session:
            log = play(session, tmp_path, **task)
            assert log.status == "success", log.error
            assert session.claude.connection.budget.spent == server.bill
            [run] = read_runs(session.directory)
        assert (run.predictions, run.verdicts) == (("It brings up bees.", "It brings up tea."), (False, True))
        assert (run.confidence, run.investigator) == (0.9, "ia_jax_claude/claude-haiku-4-5")
        assert run.tokens >= 400
        assert run.calls["chat"] > 2
        # Nothing twice, what the first one paid for included; the last prompt three times, for it was tried so often.
        assert sorted(server.paid.values()) == [1] * (len(server.paid) - 1) + [3]
        assert all(server.paid[what] == times for what, times in before.items())
        assert before.keys() < server.paid.keys()
        texts = [m.text for m in log.samples[0].messages if m.role == "assistant"]
        assert "I cannot help with that." in texts
        assert server.injected["529"] == len(server.paid)
