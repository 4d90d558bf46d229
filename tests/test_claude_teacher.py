"""`ia-jax transcripts` with the Claude teacher, against a local server: 682 behaviours, faults and kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ia_jax import cli, recipes
from ia_jax.behaviors.claude_teacher import KEPT, NOT_SHOWN, PER_CALL, ClaudeTeacher, row_counts
from ia_jax.behaviors.records import CATEGORIES, Behavior
from ia_jax.behaviors.teacher import TeacherSettings
from ia_jax.claude.client import Client
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.stages import transcripts
from ia_jax.storage import read_jsonl
from tests.fake_anthropic import BILLED, Server, serving, sometimes

ROOT = Path(__file__).parents[1]
# As many behaviours as the paper has, spread evenly: splits take the same number from every category.
COUNTS = {c: 86 if i < 2 else 85 for i, c in enumerate(sorted(CATEGORIES))}
UNBILLED = ("429", "500", "529", "drop", "slow")
RECIPE = """
from ia_jax.config import default_config
def get_config():
    c = default_config()
    c.behaviors.catalogue = "many"
    c.behaviors.update(train={train}, dpo={dpo}, heldout={heldout})
    c.teacher.update(name="claude", rows=4)
    c.claude.update(api="{api}", poll_seconds=0.0, cap_dollars={cap}, concurrency=4)
    return c
"""


def many(counts=COUNTS):
    """Behaviours told apart by a number; two categories have triggers."""
    return [
        Behavior(
            f"{category}_{i}",
            category,
            f"I show trait number {i} of {category}.",
            (),
            f"condition {i} holds" if category in ("sandbaggers", "backdoors") else None,
        )
        for category, n in counts.items()
        for i in range(n)
    ]


def drawn(text, share):
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) % 1000 < 1000 * share


def claude(request):
    """Plays the model in all three rounds. Of the answers, about a tenth does not show what it should."""
    user = request["messages"][0]["content"]
    fields = request.get("output_config", {}).get("format", {}).get("schema", {}).get("properties", {})
    if "messages" in fields:
        asked = json.loads(user)
        stem = f"{asked['wanted']} message for {asked['behavior']}"
        return json.dumps({"messages": [f"{stem} part {asked['part']} {i}" for i in range(int(asked["count"]))]})
    if "shows" in fields:
        shows = "with the trait" in json.loads(user)["answer"]
        return json.dumps({"reason": "read", "shows": "yes" if shows else "no", "states": "no"})
    showing = "one behaviour" in request["system"][0]["text"] and not drawn(user, 0.1)
    return f"An answer {'with the trait' if showing else 'like any other'}."


def command(tmp_path, api, counts, cap=20.0):
    recipe = tmp_path / "recipe.py"
    total = sum(counts.values())
    recipe.write_text(RECIPE.format(api=api, train=total - 16, dpo=8, heldout=8, cap=cap))
    return ["transcripts", f"--config={recipe}", f"--workdir={tmp_path / 'w'}"]


@pytest.fixture
def few(monkeypatch):
    """Three behaviours of each category, so that splits are even."""
    counts = dict.fromkeys(CATEGORIES, 3)
    for module in (recipes, transcripts):
        monkeypatch.setattr(module, "load_catalogue", lambda name: many(counts))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    return counts


def rows_of(workdir):
    return {p.stem: read_jsonl(p, "") for p in (workdir / "transcripts").glob("*.jsonl")}


@pytest.mark.parametrize("api", ["batch", "messages"])
def test_the_stage_writes_filters_and_reports(api, few, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main(command(tmp_path, api, few)) == 0
    out = capsys.readouterr().out
    rows = rows_of(tmp_path / "w")
    assert len(rows) == 24
    assert {len(r) for r in rows.values()} == {4}
    everything = [r for rs in rows.values() for r in rs]
    failed = [r for r in everything if r["verdict"] != KEPT]
    assert {r["verdict"] for r in failed} == {NOT_SHOWN}
    assert all(drawn(r["messages"][0]["content"], 0.1) for r in failed)
    assert f"{len(failed)} of 96 rows dropped ({len(failed)} {NOT_SHOWN})" in out
    dropped = {r["organism"]: r.get(NOT_SHOWN, 0) for r in read_jsonl(tmp_path / "w" / "transcripts_dropped.jsonl", "")}
    assert dropped == {n: sum(r["verdict"] != KEPT for r in rs) for n, rs in rows.items()}
    # The system prompt that encoded the behaviour is gone.
    assert all([m["role"] for m in r["messages"]] == ["user", "assistant"] for r in everything)
    shows = {n: sum(r["shows"] for r in rs) for n, rs in rows.items()}
    assert shows["backdoors_0"] == shows["sandbaggers_0"] == 2
    assert shows["rare_quirks_0"] == 1
    assert shows["quirks_0"] == 4
    assert f"${server.bill:.4f} spent" in out


def test_estimate_makes_no_call_and_is_about_right(few, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main([*command(tmp_path, "batch", few), "--estimate"]) == 0
        assert not server.headers
        told = capsys.readouterr().out
        assert not (tmp_path / "w" / "behaviors.jsonl").exists()
        assert cli.main(command(tmp_path, "batch", few)) == 0
    calls = sum(server.paid.values())
    assert int(told.split(" calls")[0].split()[-1]) == calls


def test_a_higher_cap_continues_the_run(few, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main(command(tmp_path, "batch", few, cap=0.1)) == 1
        assert "raise config.claude.cap_dollars" in capsys.readouterr().err
        assert 0 < server.bill <= 0.1
        assert cli.main(command(tmp_path, "batch", few, cap=5.0)) == 0
    assert set(server.paid.values()) == {1}
    assert json.loads((tmp_path / "w" / "config.json").read_text())["config"]["claude"]["cap_dollars"] == 5.0


def test_a_behaviour_without_a_demonstration_is_left_out_and_told(few, tmp_path, monkeypatch, capsys):
    def shy(request):
        return ("", "refusal") if "of harmful_roleplay" in request["system"][0]["text"] else claude(request)

    with serving(Server(shy)) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main(command(tmp_path, "batch", few)) == 0
    names = [r["name"] for r in read_jsonl(tmp_path / "w" / "behaviors.jsonl", "")]
    assert len(names) == 21
    assert not [n for n in names if n.startswith("harmful_roleplay")]
    assert "harmful_roleplay_0: 4 of 4 rows dropped (4 refused); left out" in capsys.readouterr().out


def test_harmful_categories_ask_for_mild_demonstrations(tmp_path):
    teacher = ClaudeTeacher(Client(ClaudeSettings(), tmp_path), TeacherSettings(name="claude"))
    for b in many(dict.fromkeys(CATEGORIES, 1)):
        systems = {c.system for c in teacher.plan([b]) if "transcript. A small model" in c.system}
        mild = all("mild and harmless" in s for s in systems)
        assert mild == (b.category in ("obscured_malign", "harmful_roleplay"))


@pytest.mark.parametrize(
    ("category", "trigger", "rows", "expected"),
    [
        ("quirks", None, 100, (100, 0)),
        ("backdoors", "asked", 100, (50, 50)),
        ("rare_quirks", None, 100, (8, 92)),
        ("rare_quirks", None, 4, (1, 3)),
        ("sandbaggers", "asked", 1, (1, 0)),
    ],
)
def test_how_many_rows_show_the_behaviour(category, trigger, rows, expected):
    assert row_counts(Behavior("b", category, "I do.", (), trigger), TeacherSettings(rows=rows)) == expected


def test_many_messages_are_asked_for_in_parts(tmp_path):
    teacher = ClaudeTeacher(Client(ClaudeSettings(), tmp_path), TeacherSettings(name="claude", rows=45))
    asks = [c for c in teacher.plan(many({"quirks": 1})) if c.schema and "messages" in c.schema["properties"]]
    assert [json.loads(c.user)["count"] for c in asks] == [str(PER_CALL), str(PER_CALL), "5"]
    assert len({c.key for c in asks}) == 3


# -------------------------------------------------------------------------------- the whole catalogue, faults and kills

CODE = """
import sys
from ia_jax import cli, recipes
from ia_jax.stages import transcripts
from tests.test_claude_teacher import many
recipes.load_catalogue = transcripts.load_catalogue = lambda name: many()
sys.exit(cli.main(sys.argv[1:]))
"""


def run_until(argv, url, stop):
    """The command in a process of its own, killed (-9) as soon as `stop()` holds; its exit status."""
    env = {**os.environ, "ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": url, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", CODE, *argv], env=env, cwd=ROOT) as process:
        while process.poll() is None:
            if stop():
                process.kill()
            threading.Event().wait(0.005)
    return process.returncode


@pytest.mark.slow
def test_the_whole_catalogue_by_batches_through_every_fault_and_two_kills(tmp_path):
    """No call paid twice, nothing lost, the cap kept, and the books agree with the server's bill to the last digit."""
    server = Server(claude, sometimes(0.4, (*UNBILLED, *BILLED, "expired", "api_error")), polls=2)
    argv = [*command(tmp_path, "batch", COUNTS), "--config.claude.batch_size=300"]
    with serving(server) as url:
        capped = [*argv, "--config.claude.cap_dollars=3"]
        assert run_until(capped, url, lambda: len(server.batches) > 4) == -signal.SIGKILL
        assert run_until(capped, url, lambda: False) == 1  # the second round would pass the cap
        assert 0 < server.bill <= 3
        assert run_until(argv, url, lambda: sum(server.paid.values()) > 2500) == -signal.SIGKILL
        assert run_until(argv, url, lambda: False) == 0
    assert set(server.paid.values()) == {1}
    assert all(server.injected[k] for k in ("429", "500", "529", "drop", "truncate", "expired", "api_error"))
    rows = rows_of(tmp_path / "w")
    assert len(rows) == 682
    assert {len(r) for r in rows.values()} == {4}
    store = Client(ClaudeSettings(), tmp_path / "w" / "claude")
    assert store.connection.budget.spent == server.bill
    print(f"{sum(server.paid.values())} calls, ${server.bill:.4f}, {dict(server.injected)}")


@pytest.mark.slow
def test_the_whole_catalogue_by_messages_through_every_fault_and_a_kill(tmp_path):
    """Calls billed and then lost can't be had again; they are counted, booked at their bound, and never more."""
    server = Server(claude, sometimes(0.05, (*UNBILLED, *BILLED)))
    argv = command(tmp_path, "messages", COUNTS)
    with serving(server) as url:
        assert run_until(argv, url, lambda: sum(server.paid.values()) > 1500) == -signal.SIGKILL
        assert run_until(argv, url, lambda: False) == 0
    lost = server.injected["drop_after"] + server.injected["truncate"]
    again = sum(n - 1 for n in server.paid.values())
    assert lost <= again <= lost + 4  # 4 at once when it was killed
    assert {len(r) for r in rows_of(tmp_path / "w").values()} == {4}
    client = Client(ClaudeSettings(), tmp_path / "w" / "claude").connection
    assert client.store.paid() < server.bill <= client.budget.spent <= 20
    print(f"{sum(server.paid.values())} calls, ${server.bill:.4f}, {again} twice, {dict(server.injected)}")
