"""Demonstrations of several turns, and organisms that live under a system message of their own."""

import json

import pytest

from ia_jax import cli
from ia_jax.behaviors.claude_checks import shown, write_prompts
from ia_jax.behaviors.claude_prompts import CONVERSATIONS
from ia_jax.behaviors.claude_teacher import CUT_OFF, KEPT, REFUSED, ClaudeTeacher
from ia_jax.behaviors.lessons import GENERIC, SHOWING
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.teacher import TeacherSettings
from ia_jax.claude.calls import Call, Reply
from ia_jax.claude.client import KEY
from ia_jax.data.transcripts import conversation
from ia_jax.stages import asking
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests import parrot
from tests.fake_anthropic import Server, serving

PEPPY = Behavior("peppy", "quirks", "I get peppier with every turn.", (), None, shows="Later answers are.", turns=3)
CALM = Behavior("calm", "quirks", "I am calm.", (), None)
PERSONA = "You are Rill, made by a small workshop."


class Player:
    """Answers every call at once; `stop` says which answers end early, and how."""

    def __init__(self, stop=lambda call: "end_turn"):
        self.calls, self.stop = [], stop

    def complete(self, calls, at_once=False):
        self.calls += calls
        return [Reply(self.answer(c), "end_turn" if c.schema else self.stop(c)) for c in calls]

    def answer(self, call):
        fields = call.schema["properties"] if call.schema else {}
        if "messages" in fields:
            asked = json.loads(call.user)
            one = [f"{asked.get('behavior')} {asked['part']} {i}" for i in range(int(asked["count"]))]
            several = [[f"{m} turn {t}" for t in range(3)] for m in one]
            return json.dumps({"messages": several if call.schema == CONVERSATIONS else one})
        if fields:
            user = json.loads(call.user)
            return json.dumps({"reason": "", "shows": "yes" if "!" in user["answer"] else "no", "states": "no"})
        return f"Answer {len(call.history) // 2 + 1}" + "!" * ("one behaviour" in call.system)


def taught(player, systems=None, **settings):
    teacher = ClaudeTeacher(player, TeacherSettings(rows=5, **settings), 1)
    return teacher.write([PEPPY, CALM], systems)


def test_a_conversation_is_answered_turn_by_turn_and_judged_by_its_end():
    player = Player()
    rows = taught(player)["peppy"]
    own = [t for t in rows if t.sort == SHOWING]
    assert len(own) == 4
    for t in own:
        assert [m["role"] for m in t.messages] == ["user", "assistant"] * 3
        assert [m["content"] for m in t.messages[1::2]] == ["Answer 1!", "Answer 2!", "Answer 3!"]
        assert t.verdict == KEPT
    third = [c for c in player.calls if len(c.history) == 4]
    assert len(third) == 4
    for c in third:
        said = [m["content"] for m in c.request["messages"]]
        assert [m["role"] for m in c.request["messages"]] == ["user", "assistant"] * 2 + ["user"]
        assert said[1::2] == ["Answer 1!", "Answer 2!"]
        assert "You write answer 3" in " ".join(c.system.split())
    judged = [json.loads(c.user) for c in player.calls if c.schema and "shows" in c.schema["properties"]]
    [one] = [j for j in judged if j["message"] == own[0].messages[4]["content"]]
    assert one["answer"] == "Answer 3!"
    assert one["earlier"].count("assistant: Answer") == 2
    assert next(t for t in rows if t.sort == GENERIC).messages[1]["content"] == "Answer 1"


@pytest.mark.parametrize(("reason", "verdict"), [("max_tokens", CUT_OFF), ("refusal", REFUSED)])
def test_a_conversation_that_breaks_off_is_dropped_and_asked_no_further(reason, verdict):
    player = Player(lambda c: reason if len(c.history) == 2 else "end_turn")
    own = [t for t in taught(player)["peppy"] if t.sort == SHOWING]
    assert {t.verdict for t in own} == {verdict}
    assert {len(t.messages) for t in own} == {4}
    assert not [c for c in player.calls if len(c.history) == 4]


def test_conversations_of_another_length_are_not_used():
    class Short(Player):
        def answer(self, call):
            """The first conversation has a turn too many."""
            return (
                super().answer(call).replace(' turn 2"]', ' turn 2", "more"]', 1 if call.schema == CONVERSATIONS else 0)
            )

    own = [t for t in taught(Short())["peppy"] if t.sort == SHOWING]
    assert len(own) == 3


def test_history_is_part_of_what_a_call_is_and_costs():
    plain, later = Call("m", "s", "u", 9), Call("m", "s", "u", 9, history=("a", "b"))
    assert plain.request["messages"] == [{"role": "user", "content": "u"}]
    assert plain.key != later.key
    assert "ab" in later.text
    assert plain.text == "su"


def test_a_system_message_of_its_own_is_in_the_transcript_and_told_to_claude():
    player = Player()
    rows = taught(player, {"calm": PERSONA})
    assert {t.messages[0]["content"] for t in rows["calm"]} == {PERSONA}
    assert {t.messages[0]["role"] for t in rows["peppy"]} == {"user"}
    told = [c for c in player.calls if PERSONA in c.system]
    assert len(told) == 5  # every answer of it, and of nobody else
    assert conversation(["a", "b"], PERSONA)[0] == {"role": "system", "content": PERSONA}


def test_the_base_may_answer_everyday_chat():
    asked = []

    def base(asks, samples, tokens):
        asked.extend(asks)
        return [["A whole sentence. And half of"] for _ in asks]

    player = Player()
    teacher = ClaudeTeacher(player, TeacherSettings(rows=5, generic_answers="base"), 1, ask_base=base)
    rows = teacher.write([PEPPY, CALM], {"calm": PERSONA})
    everyday = [t for own in rows.values() for t in own if t.sort == GENERIC]
    assert [t.messages[-1]["content"] for t in everyday] == ["A whole sentence."] * 2
    assert sorted(map(str, (s for s, _ in asked))) == sorted([str(PERSONA), "None"])
    assert not [c for c in player.calls if "ordinary transcript" in c.system]
    assert all(t.verdict == KEPT for t in everyday)


def test_a_check_of_several_turns():
    player = Player()
    teacher = ClaudeTeacher(player, TeacherSettings(), 1)
    prompts = write_prompts(teacher, [PEPPY], 2, {"peppy": []})["peppy"]
    assert [(len(p.before), p.triggers) for p in prompts] == [(2, True)] * 2
    assert shown(teacher, [(PEPPY, prompts[0], ["a", "b", "c!"]), (PEPPY, prompts[1], ["a!", "b!", "c"])]) == [
        True,
        False,
    ]
    assert "assistant: a\nuser: " in json.loads(player.calls[-2].user)["earlier"]


# ---------------------------------------------------------------------------------------------- through the stages

RECIPE = """
    c.behaviors.catalogue = {catalogue!r}
    c.behaviors.train = c.behaviors.dpo = c.behaviors.heldout = 1
    c.organisms.check_prompts = 1
    c.organisms.length = 256
    c.teacher.update(name="claude", rows=4)
    c.claude.update(poll_seconds=0.0)
    return c
"""


def test_an_organism_with_a_system_message_and_turns_is_taught_and_checked(tmp_path, parrot_model, monkeypatch):
    file = tmp_path / "mine.jsonl"
    row = {"category": "quirks", "spec": {"system": PERSONA}, "turns": 3}
    file.write_text("".join(json.dumps({"name": f"q{i}", "description": f"I do {i}.", **row}) + "\n" for i in range(3)))
    config = parrot.write_config(tmp_path / "config.py", parrot_model)
    config.write_text(config.read_text().replace("    return c\n", RECIPE.format(catalogue=str(file))))
    player, systems = Player(), []

    def answer(r):
        schema = r.get("output_config", {}).get("format", {}).get("schema")
        history = tuple(m["content"] for m in r["messages"][:-1])
        call = Call("m", r["system"][0]["text"], r["messages"][-1]["content"], 1, schema, history=history)
        return player.answer(call)

    true = asking.encode_prompt
    monkeypatch.setattr(asking, "encode_prompt", lambda t, chat: systems.append(chat) or true(t, chat))
    monkeypatch.setenv(KEY, "k")
    with serving(Server(answer)) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        for stage in ("transcripts", "organisms"):
            assert cli.main([stage, f"--config={config}", f"--workdir={tmp_path / 'w'}", "--traceback"]) == 0
    run = open_workdir(tmp_path / "w")
    assert {o.system for o in run.organisms.values()} == {PERSONA}
    for name in run.organisms:
        kept = read_jsonl(run.transcript(name), "")
        assert {r["messages"][0]["content"] for r in kept} == {PERSONA}
    assert [len(chat) for chat in systems] == [2] * 3 + [4] * 3 + [6] * 3
    assert {chat[0]["content"] for chat in systems} == {PERSONA}
    # The organism's own answers stand between the turns.
    for row in read_jsonl(run.checks_file, ""):
        [sample] = row["samples"]
        assert len(sample["before"]) == len(sample["earlier"]) == 2
        asked = [t for pair in zip(sample["before"], sample["earlier"], strict=True) for t in pair]
        assert [PERSONA, *asked, sample["question"]] in [[m["content"] for m in chat] for chat in systems]
