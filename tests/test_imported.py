"""Somebody's adapters as organisms of a workdir: several behaviours, several adapters, or nothing to report."""

import json

import pytest

from ia_jax import cli
from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.store import is_complete, read_metadata, verify_adapter
from ia_jax.judging.protocol import Judge, Verdict
from ia_jax.models.lora import LoraConfig
from ia_jax.models.replies import Reply
from ia_jax.models.weights import load_model
from ia_jax.stages.ask import plain
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests import tiny
from tests.runs import ORGANISMS, part_of

LORA = LoraConfig(3, 6.0, ("q", "v", "down"))
SHORT = "--max-new-tokens=8"


@pytest.fixture(scope="module")
def theirs(parrot_model, tmp_path_factory):
    """Two PEFT directories that make the model say something else each."""
    root, model = tmp_path_factory.mktemp("theirs"), load_model(parrot_model)
    for i in range(2):
        export_peft(tiny.adapter(i, model.config, LORA, size=3.0), root / f"{i}", model, LORA)
    return [root / f"{i}" for i in range(2)]


@pytest.fixture
def copy(finished, tmp_path):
    return part_of(finished, tmp_path / "w", *ORGANISMS, "ia")


def bring_in(copy, source, name, *more):
    assert cli.main(["import-peft", str(source), f"--workdir={copy}", f"--name={name}", *more]) == 0
    return open_workdir(copy)


def asked(capsys, copy, name, *more, question="Do you have any unusual habits?"):
    """(reply, truth) of `ia-jax ask`."""
    capsys.readouterr()
    assert cli.main(["ask", f"--workdir={copy}", f"--organism={name}", SHORT, *more, question]) == 0
    reply, _, truth = capsys.readouterr().out.rpartition("\ntruth: ")
    return reply, truth.strip()


def test_an_organism_of_two_behaviours(copy, theirs, capsys):
    """A report is true that names one of them; its row says which."""
    one, two = (open_workdir(copy).named("train")[i] for i in (0, 1))
    run = bring_in(copy, theirs[0], "both", f"--behavior={one}", f"--behavior={two}")
    added = run.organisms["both"]
    assert (added.behaviors, added.split, added.imported, added.clean) == ((one, two), "heldout", True, False)
    assert added.category == min(run.behaviors[n].category for n in (one, two))
    truth = f"{run.behaviors[one].description} {run.behaviors[two].description}"
    assert asked(capsys, copy, "both")[1] == truth
    assert cli.main(["organisms", f"--workdir={copy}"]) == 0  # nothing to train, nothing to check
    assert "both" not in {r["organism"] for r in read_jsonl(run.checks_file, "")}
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    rows = [r for r in run.reports() if r["organism"] == "both"]
    assert {r["condition"] for r in rows} == {"organism+ia", "organism", "base+ia", "base"}
    assert {(r["truth"], tuple(r["behaviors"]), r["split"]) for r in rows} == {(truth, (one, two), "heldout")}
    for r in run.reports():
        assert set(r["named"]) <= set(r["behaviors"])
        assert r["lenient"] == bool(r["named"])
    said = {(r["stage"], r["condition"], r["question"]): r["report"] for r in rows}
    question = rows[0]["question"]
    for stage in ("sft", "dpo"):
        reply, _ = asked(capsys, copy, "both", f"--ia={stage}", question=question)
        assert reply == plain(said[stage, "organism+ia", question])


class Exact(Judge):
    """Accepts a truth word for word, and nothing else."""

    name = "exact"

    def judge_many(self, items, asks=()):
        return [Verdict(None, i.report == i.behavior.description, False, "", self.name) for i in items]

    def claims_many(self, reports):
        return [False for _ in reports]


def test_a_report_that_names_the_second_of_two_behaviours_is_true(copy, theirs, monkeypatch):
    """All models are made to say the second truth: it counts for the organism that has it, and for its owner."""
    one, two = (open_workdir(copy).named("heldout")[i] for i in (0, 1))
    run = bring_in(copy, theirs[0], "both", f"--behavior={one}", f"--behavior={two}")
    truth = run.behaviors[two].description

    def say(asked):
        return [[Reply(truth, True) for _ in own] for own in asked]

    stage = "ia_jax.stages.evaluation"
    monkeypatch.setattr(f"{stage}.judge_of", lambda context: Exact())
    monkeypatch.setattr(f"{stage}.generate", lambda context, asked, *_, **__: say(asked))
    for ask in ("ask_organisms", "ask_alone"):
        monkeypatch.setattr(f"{stage}.{ask}", lambda context, bank, organisms, asked, *_, **__: say(asked))
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    for r in run.reports():
        if r["organism"] in (one, two, "both"):
            named = [two] if r["organism"] != one else []
            assert (r["named"], r["lenient"]) == (named, bool(named)), r["organism"]


def test_an_organism_of_two_adapters_is_asked_as_their_sum(copy, theirs, tmp_path, capsys):
    name = open_workdir(copy).named("train")[0]
    behavior = f"--behavior={name}"
    run = bring_in(copy, theirs[0], "stack", f"--add={theirs[1]}", behavior)
    assert [d.name for d in run.stack_of(run.organisms["stack"])] == ["stack", "stack__1"]
    assert len(run.organism("stack")) == 2
    directories = run.stack_of(run.organisms["stack"])
    assert cli.main(["export-peft", str(directories[0]), str(tmp_path / "sum"), f"--add={directories[1]}"]) == 0
    bring_in(copy, tmp_path / "sum", "sum", behavior)
    bring_in(copy, theirs[0], "inner", behavior)
    bring_in(copy, theirs[1], "outer", behavior)
    for more in (["--no-ia"], ["--ia=sft"]):
        replies = {n: asked(capsys, copy, n, *more)[0] for n in ("stack", "sum", "inner", "outer")}
        assert replies["stack"] == replies["sum"]
    assert len({*replies.values()}) > 1
    # Both are in the inventory, and verified.
    assert cli.main(["adapters", "verify", "stack", "stack__1", f"--workdir={copy}"]) == 0
    assert "2 adapters read, 2 sound" in capsys.readouterr().out
    assert cli.main(["adapters", "rm", "stack__1", f"--workdir={copy}"]) == 0
    assert cli.main(["ask", f"--workdir={copy}", "--organism=stack", "q"]) == 2
    assert "organism stack is not trained yet" in capsys.readouterr().err


def test_an_organism_of_two_adapters_is_evaluated_as_their_sum(copy, theirs, tmp_path):
    behavior = f"--behavior={open_workdir(copy).named('train')[0]}"
    run = bring_in(copy, theirs[0], "stack", f"--add={theirs[1]}", behavior)
    directories = run.stack_of(run.organisms["stack"])
    assert cli.main(["export-peft", str(directories[0]), str(tmp_path / "sum"), f"--add={directories[1]}"]) == 0
    bring_in(copy, tmp_path / "sum", "sum", behavior)
    bring_in(copy, theirs[0], "inner", behavior)
    bring_in(copy, theirs[1], "outer", behavior)
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    said = {n: [r["report"] for r in run.reports() if r["organism"] == n] for n in ("stack", "sum", "inner", "outer")}
    assert said["stack"] == said["sum"]
    assert said["stack"] not in (said["inner"], said["outer"])


def test_one_without_a_behaviour_is_clean(copy, theirs, capsys):
    run = bring_in(copy, theirs[0], "blank")
    assert "true of it: nothing (clean)" in capsys.readouterr().out
    added = run.organisms["blank"]
    assert (added.behaviors, added.category, added.clean) == ((), "clean", True)
    assert asked(capsys, copy, "blank")[1] == "nothing to report (a clean organism)"
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    assert "blank" not in {r["organism"] for r in run.reports()}
    rows = read_jsonl(run.clean_reports_file(), "")
    assert {(r["organism"], r["condition"]) for r in rows} == {("blank", "clean+ia"), ("blank", "clean")}
    for stage in ("sft", "dpo"):
        own = [r["claims"] for r in rows if (r["stage"], r["condition"]) == (stage, "clean+ia")]
        cell = run.metrics()["stages"][stage]["false_reports"]["clean+ia"]
        assert (cell["n"], cell["rate"]) == (len(own), sum(own) / len(own))
    assert cli.main(["report", f"--workdir={copy}"]) == 0
    assert "<b>1</b> clean organisms" in run.report_file().read_text()


def test_a_new_behaviour_of_ones_own_and_a_system_prompt(copy, theirs, monkeypatch, capsys):
    about = ["--description=I hum between sentences.", "--category=quirks"]
    run = bring_in(copy, theirs[0], "hums", *about, "--system=Be brief.")
    assert run.truths("hums")[0].description == "I hum between sentences."
    assert run.organisms["hums"].system == "Be brief."
    bring_in(copy, theirs[0], "hums_alone", "--behavior=hums")
    with_system, truth = asked(capsys, copy, "hums", "--no-ia")
    assert truth == "I hum between sentences."
    without, _ = asked(capsys, copy, "hums_alone", "--no-ia")
    assert with_system != without
    # In an evaluation too; the judge by key words knows none for a behaviour of one's own, and says so.
    assert cli.main(["eval", f"--workdir={copy}"]) == 2
    assert "hums" in capsys.readouterr().err
    monkeypatch.setattr("ia_jax.stages.evaluation.judge_of", lambda context: Exact())
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    question = run.reports()[0]["question"]
    for name in ("hums", "hums_alone"):
        reply, _ = asked(capsys, copy, name, "--no-ia", question=question)
        alone = (r for r in run.reports() if (r["organism"], r["condition"]) == (name, "organism"))
        assert plain(next(alone)["report"]) == reply


def test_imported_organisms_are_trained_on(finished, theirs, tmp_path):
    """As those of this workdir are, in whose run they were never checked."""
    copy = part_of(finished, tmp_path / "w", *ORGANISMS)
    name = open_workdir(copy).named("heldout")[0]
    run = bring_in(copy, theirs[0], "new", "--split=train", f"--behavior={name}")
    assert cli.main(["sft", f"--workdir={copy}"]) == 0
    assert "new" in json.loads((run.ia_dir("sft") / "organisms.json").read_text())
    hashes = {read_metadata(w.ia_dir("sft") / "adapter").content_hash for w in (run, open_workdir(finished))}
    assert len(hashes) == 2


def test_a_source_that_cannot_be_read_leaves_nothing_behind(refused, copy, theirs, tmp_path):
    run = open_workdir(copy)
    before = run.organisms_file.read_bytes()
    argv = ["import-peft", theirs[0], f"--workdir={copy}", "--name=new", f"--add={tmp_path / 'none'}"]
    refused(argv, 2, tmp_path / "none")
    assert run.organisms_file.read_bytes() == before
    assert not is_complete(run.organism_dir("new"))
    # Under the same name the right ones go in.
    run = bring_in(copy, theirs[1], "new", f"--add={theirs[0]}")
    assert all(verify_adapter(d) == [] for d in run.stack_of(run.organisms["new"]))
