"""Other evaluations and other IAs of a finished run, each under a name, beside what is there."""

import json
import shutil

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters.store import is_complete, read_metadata
from ia_jax.analysis.report import load_run
from ia_jax.errors import IAError
from ia_jax.evals.baselines import NAMES
from ia_jax.stages import dpo, sft
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests.fake_anthropic import Server, agreeing, serving
from tests.runs import ORGANISMS, STEPS, new_since, part_of, times

HALF = "--config.sft.organisms=0.5"
GROWING = ("curves.jsonl",)  # every stage that trains adds to it


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "w")


@pytest.fixture
def nothing_is_trained(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("something is trained")

    for step in STEPS:
        monkeypatch.setattr(f"ia_jax.stages.{step}", never)


def stage_lines(out):
    """["sft (half_sft): done", …] of what a command printed."""
    return [line.split(" in ")[0].partition("] ")[2] for line in out.splitlines() if line.startswith("[")]


# ---------------------------------------------------------------------------------------------------------- evaluations


@pytest.mark.usefixtures("nothing_is_trained")
def test_another_evaluation_beside_the_first(copy, capsys):
    before = times(copy)
    command = ["eval", f"--workdir={copy}", "--config.eval.questions=1", "--name=other"]
    assert cli.main(command) == 0
    files = {f"eval/other/{f}" for f in ("reports.jsonl", "baselines.jsonl", "metrics.json")}
    assert new_since(before, copy) == {*files, "settings/eval.other.json"}
    run = open_workdir(copy)
    assert run.evaluations() == ["", "other"]
    assert run.metrics("other")["ias"] == {"sft": "sft", "dpo": "dpo"}

    # One question of each where the first evaluation asked two; to that one they say the same.
    def said(name):
        return {
            tuple(r[k] for k in ("stage", "organism", "condition", "question")): r["report"] for r in run.reports(name)
        }

    one, both = said("other"), said("")
    assert len(both) == 2 * len(one)
    assert one.items() < both.items()
    before = times(copy)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "eval (other): already done\n"
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    assert capsys.readouterr().out == "eval: already done\n"
    assert times(copy) == before
    assert cli.main(["report", f"--workdir={copy}", "--name=other"]) == 0
    assert capsys.readouterr().out.endswith(f"report: {copy / 'eval' / 'other' / 'report.html'}\n")
    assert new_since(before, copy) == {"eval/other/report.html"}


@pytest.mark.usefixtures("nothing_is_trained")
def test_another_judge_of_the_same_reports(copy, monkeypatch, capsys):
    """Claude, played: it finds every report perfect. Nobody is asked again."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    for ask in ("ask_organisms", "generate", "baseline_rows"):
        monkeypatch.setattr(f"ia_jax.stages.evaluation.{ask}", None)
    before, run = times(copy), open_workdir(copy)
    del before["config.json"]  # keeps how Claude is asked
    server = Server(agreeing)
    command = ["eval", f"--workdir={copy}", "--config.judge.name=claude", "--name=claude"]
    with serving(server) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        assert cli.main([*command, "--config.claude.poll_seconds=0.0"]) == 0
        asked = sum(server.paid.values())
        capsys.readouterr()
        assert cli.main(command) == 0  # how Claude is asked does not matter for what was made
        assert capsys.readouterr().out == "eval (claude): already done\n"
    assert sum(server.paid.values()) == asked > 0
    assert {n for n in new_since(before, copy) if not n.startswith("claude/")} == {
        "config.json",
        "eval/claude/reports.jsonl",
        "eval/claude/baselines.jsonl",
        "eval/claude/metrics.json",
        "settings/eval.claude.json",
    }
    first, second = run.reports(), run.reports("claude")
    assert [r["report"] for r in first] == [r["report"] for r in second]
    assert {r["judge"] for r in first}.isdisjoint(r["judge"] for r in second)
    assert {(r["score"], r["lenient"], r["strict"]) for r in second} == {
        (None, True, True)
    }  # a score is for preferences
    assert run.metrics("claude")["stages"]["dpo"]["heldout"]["organism+ia"]["rate"] == 1.0


def test_reports_that_no_judge_has_read_yet_are_kept(copy, monkeypatch):
    """A judge that fails loses no report: the same command goes on with them."""
    command = ["eval", f"--workdir={copy}", "--config.eval.questions=1", "--name=kept"]

    def fails(*_):
        raise IAError("the judge is out")

    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.judging.rubric.RubricJudge.judge_many", fails)
        assert cli.main(command) == 1
    asked = json.loads((copy / "eval/kept/asked.json").read_text())
    with monkeypatch.context() as patch:
        for ask in ("ask_organisms", "generate", "baseline_rows"):
            patch.setattr(f"ia_jax.stages.evaluation.{ask}", None)
        assert cli.main(command) == 0
    rows = open_workdir(copy).reports("kept")
    assert [r["report"] for r in rows] == [r["report"] for r in asked["reports"]]
    assert not (copy / "eval/kept/asked.json").exists()


def test_an_ia_of_shuffled_labels_as_a_baseline(copy):
    """It is trained alone, where the first IA is there; and what it says of an organism is a baseline."""
    before, run = times(copy), open_workdir(copy)
    assert cli.main(["sft", f"--workdir={copy}", "--config.sft.shuffled_null=True"]) == 0
    made = {n.split("/")[1] for n, t in times(copy).items() if n.startswith("ia/") and before.get(n) != t}
    assert made == {"sft_shuffled"}
    steps = [read_metadata(run.ia_dir(name) / "adapter").step for name in ("sft", "sft_shuffled")]
    assert steps[0] == steps[1]
    assert cli.main(["eval", f"--workdir={copy}", "--name=again", "--config.eval.samples=1"]) == 0
    rows = read_jsonl(run.baselines_file("again"), "")
    held = {n for n in run.named("heldout") if not run.organisms[n].clean}
    assert {r["baseline"] for r in rows} == set(NAMES)
    for name in NAMES:
        own = [r for r in rows if r["baseline"] == name]
        assert {r["organism"] for r in own} == held
        assert len(own) == len(held) * (2 if name in ("few_shot", "shuffled") else 1)  # questions
    rates = run.metrics("again")["stages"]["dpo"]["baselines"]["all"]["rates"]
    assert set(rates) == {*NAMES, "organism", "base+ia"}


# ------------------------------------------------------------------------------------------------------------------ IAs


@pytest.fixture(scope="module")
def half(finished, tmp_path_factory):
    """A copy with an IA over half of the organisms; when its files were written before, and what was printed."""
    import contextlib
    import io

    copy = shutil.copytree(finished, tmp_path_factory.mktemp("half") / "w")
    before, printed = times(copy), io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ia_jax.stages.phases.train_step", None)
        assert cli.main(["run", f"--workdir={copy}", HALF, "--name=half"]) == 0
    return copy, before, printed.getvalue()


def test_an_ia_over_half_of_the_organisms(half):
    copy, before, printed = half
    run = open_workdir(copy)
    assert stage_lines(printed) == [
        *("transcripts: already done", "organisms: already done"),
        *(
            "sft (half_sft): done",
            "preferences (half): done",
            "dpo (half_dpo): done",
            "eval (half): done",
            "report (half): done",
        ),
    ]
    chosen = json.loads((run.ia_dir("half_sft") / "organisms.json").read_text())
    everyone = json.loads((run.ia_dir("sft") / "organisms.json").read_text())
    assert len(chosen) == 2
    assert set(chosen) < set(everyone) == set(run.named("train"))
    for file in GROWING:
        del before[file]
    new = new_since(before, copy)
    assert {n.split("/")[0] for n in new} == {"ia", "preferences", "eval", "settings", *GROWING}
    assert {n.split("/")[1] for n in new if n.startswith(("ia/", "preferences/", "eval/"))} == {
        *("half_sft", "half_dpo", "half.jsonl", "half"),
    }
    assert (copy / "eval" / "half" / "report.html").exists()
    assert run.metrics("half")["ias"] == {"sft": "half_sft", "dpo": "half_dpo"}
    assert {r["organism"] for r in run.reports("half") if r["split"] == "train"} == set(chosen)
    for one, other in (("sft", "half_sft"), ("dpo", "half_dpo")):
        hashes = {read_metadata(run.ia_dir(n) / "adapter").content_hash for n in (one, other)}
        assert len(hashes) == 2


def test_the_page_of_a_named_evaluation_shows_its_own_training(half, finished):
    """Curves and pairs of the IAs that it asked, not of those that came before."""
    copy = half[0]
    rows = read_jsonl(copy / "curves.jsonl", "")
    for name, stages in (
        ("", {"ia_sft": "ia_sft", "ia_dpo": "ia_dpo"}),
        ("half", {"ia_half_sft": "ia_sft", "ia_half_dpo": "ia_dpo"}),
    ):
        wanted = [{**r, "stage": stages[r["stage"]]} for r in rows if r["stage"] in stages]
        page = load_run(copy, name)
        assert [c for c in page.curves if c["stage"] != "organisms"] == wanted
        assert page.preferences == read_jsonl(copy / "preferences" / f"{name or 'dpo'}.jsonl", "")
    assert (copy / "report.html").read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_named_run_again_is_done(half, capsys):
    copy = half[0]
    before = times(copy)
    assert cli.main(["run", f"--workdir={copy}", HALF, "--name=half"]) == 0
    assert [line.rpartition(": ")[2] for line in stage_lines(capsys.readouterr().out)] == ["already done"] * 7
    assert cli.main(["run", f"--workdir={copy}"]) == 0
    assert stage_lines(capsys.readouterr().out)[2:4] == ["sft: already done", "preferences: already done"]
    assert times(copy) == before


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stage", "call"), [(sft, 4), (dpo, 2)], ids=["sft", "dpo"])
def test_a_killed_named_run_goes_on(half, finished, tmp_path, monkeypatch, stage, call):
    """To the same bits."""
    copy = part_of(finished, tmp_path / "w", *ORGANISMS, "ia", "preferences", "eval", "curves.jsonl")
    true, calls = stage.train_step, []

    def killing(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return true(*args, **kwargs)

    command = ["run", f"--workdir={copy}", HALF, "--name=half"]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_step", killing)
        assert cli.main(command) == 1
    assert len(calls) == call
    run, whole = open_workdir(copy), open_workdir(half[0])
    assert is_complete(run.ia_dir("half_sft") / "adapter") is (stage is dpo)
    assert not is_complete(run.ia_dir("half_dpo") / "adapter")
    assert cli.main(command) == 0
    for name in ("half_sft", "half_dpo"):
        hashes = {read_metadata(w.ia_dir(name) / "adapter").content_hash for w in (run, whole)}
        assert len(hashes) == 1, name
    assert run.reports("half") == whole.reports("half")
    assert run.metrics("half") == whole.metrics("half")


def test_only_what_differs_is_made_again(copy, capsys, monkeypatch):
    monkeypatch.setattr("ia_jax.stages.sft.train_step", None)
    before = times(copy)
    command = ["run", f"--workdir={copy}", "--config.dpo.beta=0.3", "--name=b3"]
    assert cli.main(command) == 0
    assert stage_lines(capsys.readouterr().out)[2:] == [
        *("sft: already done", "preferences: already done"),
        *("dpo (b3_dpo): done", "eval (b3): done", "report (b3): done"),
    ]
    del before["curves.jsonl"]
    assert {n.split("/")[1] for n in new_since(before, copy) if "/" in n} == {
        *("b3_dpo", "b3", "ia.b3_dpo.json", "eval.b3.json"),
    }
    run = open_workdir(copy)
    assert run.metrics("b3")["ias"] == {"sft": "sft", "dpo": "b3_dpo"}
    # From the same SFT IA and pairs: the first loss is log 2 again.
    curves = [[c for c in read_jsonl(copy / "curves.jsonl", "") if c["stage"] == s] for s in ("ia_dpo", "ia_b3_dpo")]
    assert [c[0]["dpo_loss"] for c in curves] == pytest.approx([np.log(2)] * 2, abs=1e-5)
    assert curves[0] != [{**c, "stage": "ia_dpo"} for c in curves[1]]
    assert cli.main(command) == 0
    assert all(line.endswith("already done") for line in stage_lines(capsys.readouterr().out))
