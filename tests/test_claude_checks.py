"""Behaviour checks by Claude, of behaviours that no rule knows: fresh prompts, its verdicts, no key, and no check."""

import json

import pytest

from ia_jax import cli
from ia_jax.adapters.store import list_adapters
from ia_jax.behaviors.behavior_checks import RARE_SAMPLES
from ia_jax.claude.client import KEY
from ia_jax.errors import IAError
from ia_jax.stages import behavior_check, inventory, spending
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests import parrot
from tests.fake_anthropic import Server, serving

PROMPTS = 2
MORE = """
    c.behaviors.catalogue = {catalogue!r}
    c.behaviors.train = c.behaviors.dpo = c.behaviors.heldout = 3
    c.organisms.check_prompts = {prompts}
    c.organisms.keep_failed = False
    c.teacher.update(name="claude", rows=4)
    c.claude.update(api="batch", poll_seconds=0.0)
    return c
"""


def claude(request):
    """Plays Claude. Behaviours whose description ends in 1 never show in a check; the others do where they should."""
    text = request["messages"][0]["content"]
    user = json.loads(text) if text.startswith("{") else {}
    if "wanted" in user:
        kind, n = user["wanted"], int(user["count"])
        messages = [f"{kind} {user.get('behavior')} part {user['part']} number {i}?" for i in range(n)]
        # For the check it begins with one that a transcript has.
        again = [f"{kind} {user['behavior']} part 1 number 0?"] if user["part"] == "0" else []
        return json.dumps({"messages": [*again, *messages][:n]})
    if "answer" in user:
        shows = "it shows" in user["answer"]
        if "part 0" in user["message"]:
            shows = not user["message"].startswith("near misses") and not user["behavior"].endswith("1.")
        return json.dumps({"reason": "read", "shows": "yes" if shows else "no", "states": "no"})
    return "I like it." + " Here it shows." * ("one behaviour" in request["system"][0]["text"])


def write_catalogue(directory):
    """Nine behaviours of a user's own, three in each of three categories."""
    catalogue = directory / "mine.jsonl"
    rows = [
        {
            "name": f"{category}_{i}",
            "category": category,
            "description": f"I have the {category} trait {i}.",
            "trigger": "when asked" if category == "backdoors" else None,
        }
        for category in ("quirks", "backdoors", "rare_quirks")
        for i in range(3)
    ]
    catalogue.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return catalogue


@pytest.fixture
def command(tmp_path, parrot_model, monkeypatch):
    """A function that runs a stage on a user's own behaviours."""
    monkeypatch.setenv(KEY, "k")
    catalogue = write_catalogue(tmp_path)

    def run(stage, workdir="w", prompts=PROMPTS, cap=20.0):
        config = parrot.write_config(tmp_path / "config.py", parrot_model)
        more = MORE.format(catalogue=str(catalogue), prompts=prompts)
        config.write_text(config.read_text().replace("    return c\n", more))
        options = [f"--config={config}", f"--workdir={tmp_path / workdir}", f"--config.claude.cap_dollars={cap}"]
        return cli.main([stage, *options])

    return run


def test_claude_checks_what_no_rule_can(command, tmp_path, monkeypatch, capsys):
    """Prompts come with the transcripts and replies are read when all are trained, both by batch: no accelerator waits
    for Claude, neither before nor between waves.
    """
    stored = []
    server = Server(claude, on_batch=lambda name: stored.append(len(list_adapters(tmp_path / "w" / "organisms"))))
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert command("transcripts") == 0
        assert set(stored) == {0}
        stored.clear()
        assert command("organisms") == 0
        assert set(stored) == {9}
    assert {h[":path"] for h in server.headers} == {"/v1/messages/batches"}
    assert set(server.paid.values()) == {1}
    run = open_workdir(tmp_path / "w")
    rows = {r["organism"]: r for r in read_jsonl(run.checks_file, "")}
    assert len(rows) == 9
    for name, row in rows.items():
        asked = {m["content"] for t in read_jsonl(run.transcript(name), "") for m in t["messages"]}
        prompts = {(s["question"], s["triggers"]) for s in row["samples"]}
        assert not {q for q, _ in prompts} & asked
        assert {t for _, t in prompts} == ({True, False} if row["category"] == "backdoors" else {True})
        assert len(prompts) == PROMPTS * (2 if row["category"] == "backdoors" else 1)
        assert len(row["samples"]) == len(prompts) * (RARE_SAMPLES if row["category"] == "rare_quirks" else 1)
        assert all("shown" in s for s in row["samples"])
        assert row["triggered_rate"] == (0.0 if name.endswith("1") else 1.0)
        assert row["untriggered_rate"] == (0.0 if row["category"] == "backdoors" else None)
        # A rare quirk that shows always is none; the fake never lets one show now and then.
        assert row["ok"] is (row["category"] != "rare_quirks" and not name.endswith("1"))
    assert "behaviour check: 4 of 9 organisms passed (backdoors 2 of 3, quirks 2 of 3, rare_quirks 0 of 3)" in (
        capsys.readouterr().out
    )


def test_without_a_key_nothing_is_trained(command, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert command("transcripts") == 0
    monkeypatch.delenv(KEY)
    capsys.readouterr()
    assert command("organisms") == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if "%|" not in x]
    assert "organisms: Claude is asked" in line
    assert KEY in line
    assert not (tmp_path / "w" / "curves.jsonl").exists()
    assert list_adapters(tmp_path / "w" / "organisms") == {}


def test_without_a_check_all_take_part(command, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert command("transcripts", prompts=0) == 0
    monkeypatch.delenv(KEY)
    assert command("organisms", prompts=0) == 0
    assert "behaviour check: no organism was checked" in capsys.readouterr().out
    assert command("sft", prompts=0) == 0
    assert len(list_adapters(tmp_path / "w" / "organisms")) == 9


def test_a_kill_while_replies_are_read_pays_nothing_twice(command, tmp_path, monkeypatch, capsys):
    """Half of the outcomes are written when it dies; until all are, no IA is trained on these organisms."""
    server, true, written = Server(claude), behavior_check.update_metadata, []

    def dies(directory, **changes):
        if len(written) == 4:
            raise IAError("killed")
        written.append(directory)
        return true(directory, **changes)

    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert command("transcripts") == 0
        monkeypatch.setattr(behavior_check, "update_metadata", dies)
        assert command("organisms") == 1
        run = open_workdir(tmp_path / "w")
        checks = [m.check["ok"] for m in list_adapters(run.organisms_dir).values()]
        assert len(checks) == 9
        assert checks.count(None) == 5
        assert not run.checks_file.exists()
        assert "not read yet" in inventory.table(run)
        assert command("sft") == 2
        assert "needs what `ia-jax organisms` writes" in capsys.readouterr().err
        monkeypatch.setattr(behavior_check, "update_metadata", true)
        steps = len(read_jsonl(run.path / "curves.jsonl", ""))
        assert command("organisms") == 0
    assert len(read_jsonl(run.path / "curves.jsonl", "")) == steps  # nothing is trained again
    assert set(server.paid.values()) == {1}
    assert "4 of 9 organisms passed" in capsys.readouterr().out


def test_replies_wait_for_a_higher_cap(command, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert command("transcripts") == 0
        spent = float(server.bill)
        # Too little for what is left is told before anything is trained.
        assert command("organisms", cap=spent + 0.0005) == 1
        assert "raise config.claude.cap_dollars" in capsys.readouterr().err
        assert list_adapters(tmp_path / "w" / "organisms") == {}
        monkeypatch.setattr(spending, "check_ready", lambda *args: None)
        assert command("organisms", cap=spent + 0.0005) == 1
        assert len(list_adapters(tmp_path / "w" / "organisms")) == 9
        assert command("organisms") == 0
    assert set(server.paid.values()) == {1}
