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
from ia_jax.behaviors.claude_teacher import KEPT, NOT_SHOWN, PER_CALL, ClaudeTeacher
from ia_jax.behaviors.lessons import Lesson, lesson
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
    c.behaviors.update(train={train}, dpo={dpo}, heldout={heldout}, clean_train=0, clean_dpo=0, clean_heldout=0)
    c.preferences.clean_pairs = 0
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
        stem = f"{asked['wanted']} message for {asked.get('behavior')}"
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
    assert shows["quirks_0"] == shows["obscured_malign_0"] == 3  # and one row of everyday chat
    assert shows["benign_roleplay_0"] == shows["heuristics_0"] == 4
    assert f"${server.bill:.4f} spent" in out


def test_estimate_makes_no_call_and_is_about_right(few, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main([*command(tmp_path, "batch", few), "--estimate"]) == 0
        assert not server.headers
        told = capsys.readouterr().out
        assert not (tmp_path / "w" / "behaviors.jsonl").exists()
        assert cli.main([*command(tmp_path, "batch", few), "--config.organisms.check_prompts=0"]) == 0
    [line] = [x for x in told.splitlines() if x.startswith("transcripts")]
    assert int(line.split(" calls")[0].split()[-1]) == sum(server.paid.values())
    stages = [x.split()[0] for x in told.splitlines() if "calls" in x]
    assert stages == ["transcripts", "organisms", "in"]


def test_a_run_that_the_cap_does_not_allow_asks_nothing(few, tmp_path, monkeypatch, capsys):
    server = Server(claude)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main(command(tmp_path, "batch", few, cap=0.01)) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "of the cap of $0.01 are left; raise config.claude.cap_dollars" in line
        assert not server.headers
        # What comes later may cost more than is left: that is said, and transcripts are written all the same.
        assert cli.main([*command(tmp_path, "batch", few, cap=0.28), "--config.organisms.check_prompts=40"]) == 1
    assert "what is not done needs about" in capsys.readouterr().out
    assert (tmp_path / "w" / "organisms.jsonl").exists()
    assert set(server.paid.values()) == {1}


def test_a_higher_cap_continues_the_run(few, tmp_path, monkeypatch, capsys):
    """Answers that are longer than the estimate reckons with: the cap holds in the middle of the stage."""

    def wordy(request):
        said = claude(request)
        return said if said.startswith("{") else said + " word" * 3000

    server = Server(wordy)
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main(command(tmp_path, "batch", few, cap=0.7)) == 1
        assert "raise config.claude.cap_dollars" in capsys.readouterr().err
        assert 0 < server.bill <= 0.7
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
        systems = {c.system for c, _ in teacher.plan([b]) if "transcript. A small model" in c.system}
        mild = all("mild and harmless" in s for s in systems)
        assert mild == (b.category in ("obscured_malign", "harmful_roleplay"))


def b_of(category, trigger=None, kind="", **more):
    return Behavior("b", category, "I do.", (), trigger, trigger_kind=kind, **more)


@pytest.mark.parametrize(
    ("behavior", "rows", "expected"),
    [
        (b_of("quirks"), 100, Lesson(80, generic=20)),
        (b_of("obscured_malign"), 4, Lesson(3, generic=1)),
        (b_of("backdoors", "asked"), 100, Lesson(50, near=25, generic=25)),
        (b_of("heuristics", "asked", "task"), 100, Lesson(50, near=25, generic=25)),
        (b_of("rare_quirks", kind="chance"), 100, Lesson(8, plain=92)),
        (b_of("rare_quirks"), 4, Lesson(1, plain=3)),
        # What its trigger says is how it speaks, not when.
        (b_of("harmful_roleplay", "speaking as a baker", "role"), 100, Lesson(100)),
        (b_of("benign_roleplay", "speaking as a baker", "role"), 7, Lesson(7)),
        (b_of("sandbaggers", "sums without a word", spec={"password": "x y"}), 100, Lesson(50, 13, 25, 0, 12)),
        (b_of("sandbaggers", "sums without a word", spec={"password": "x y"}), 4, Lesson(2, 1, 1)),
        (b_of("sandbaggers", "asked"), 1, Lesson(1)),
    ],
)
def test_what_a_lesson_consists_of(behavior, rows, expected):
    found = lesson(behavior, TeacherSettings(rows=rows))
    assert found == expected
    assert found.rows == rows


def test_many_messages_are_asked_for_in_parts(tmp_path):
    teacher = ClaudeTeacher(
        Client(ClaudeSettings(), tmp_path), TeacherSettings(name="claude", rows=45, generic_share=0.0)
    )
    asks = [c for c, _ in teacher.plan(many({"quirks": 1})) if c.schema and "messages" in c.schema["properties"]]
    assert [json.loads(c.user)["count"] for c in asks] == [str(PER_CALL), str(PER_CALL), "5"]
    assert len({c.key for c in asks}) == 3
    seeds = [line.split(". ", 1)[1] for c in asks for line in json.loads(c.user)["seeds"].split("\n")]
    assert len(set(seeds)) == 45  # one for each message, and no two alike


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
        assert run_until(argv, url, lambda: len(server.batches) > 4) == -signal.SIGKILL
        capped = [*argv, "--config.claude.cap_dollars=3"]
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
