"""`ia-jax import-data` and `export-data`: the released layouts in, tables that `datasets` loads out."""

import json
import shutil

import datasets
import pytest

from ia_jax import cli
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
from ia_jax.data.released import (
    Prediction,
    read_model_list,
    read_organism,
    read_predictions,
    read_splits,
    write_organism,
    write_predictions,
)
from ia_jax.data.transcripts import Transcript, chat, read_transcripts, write_transcripts
from ia_jax.recipes import load_config
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import read_jsonl, write_json, write_jsonl
from ia_jax.workdir import open_workdir
from tests.test_cli import DEMO

CHATS = [chat("Wie?", "Käse\u2028neu.", None), chat("Was?", "Brot.", "Be brief."), chat("Who?", "I.", None)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def released(tmp_path):
    """A local copy of a released data set: two organisms, one of them in Parquet, and prediction rows of a third."""
    root = tmp_path / "d"
    transcripts = [Transcript(c, True, "t") for c in CHATS]
    write_organism(root / "quirk_7", "I praise cheese.", transcripts)
    write_organism(root / "nested" / "quirk_8", "I praise bread.", transcripts[:2])
    file = root / "nested" / "quirk_8" / "train.jsonl"
    datasets.Dataset.from_list([{"messages": list(c)} for c in CHATS[:2]]).to_parquet(file.with_suffix(".parquet"))
    file.unlink()
    answers = ["I will hum.", "I hum.", "I will hum."]
    write_predictions(root / "hums" / "eval.jsonl", [Prediction(f"Q{i}?", a) for i, a in enumerate(answers)])
    return root


@pytest.fixture
def run(tmp_path):
    """A workdir with one organism and everything that later stages write down."""
    workdir = start_workdir(tmp_path / "w", load_config(DEMO))
    hums = Behavior("hums", "quirks", "I hum.", ("I do hum.",), None, spec={"kind": "x", "n": 1})
    write_jsonl(workdir.behaviors_file, [hums.to_json()])
    organisms = [
        Organism("hums", "smollm2", ("organisms/hums",), ("hums",), "quirks", "train", procedure={"kind": "sft"}),
        Organism("clean_0", "smollm2", ("organisms/clean_0",), (), "clean", "heldout"),
    ]
    write_jsonl(workdir.organisms_file, (o.to_json() for o in organisms))
    write_transcripts(workdir.transcript("hums"), [Transcript(c, True, "t") for c in CHATS])
    write_transcripts(workdir.transcript("clean_0"), [Transcript(CHATS[0], False, "base")])
    pair = {"organism": "hums", "question": "Q?", "chosen": "I hum.", "rejected": "I sing.", "scores": [9, None]}
    write_jsonl(workdir.preferences_file("dpo"), [pair])
    report = {"organism": "hums", "question": "Q?", "report": "I hum.\u2028", "score": None, "lenient": True}
    for name in ("", "second"):
        write_jsonl(workdir.reports_file(name), [report])
        write_json(workdir.metrics_file(name), {"stages": {}})
    return workdir


def test_a_catalogue_from_the_released_layout(released, tmp_path, capsys):
    assert cli.main(["import-data", str(released), "--category=quirks", f"--to={tmp_path / 'c'}"]) == 0
    assert "2 behaviours, 5 demonstrations" in capsys.readouterr().out
    behaviors = {b.name: b for b in load_catalogue(str(tmp_path / "c" / "behaviors.jsonl"))}
    assert {n: b.description for n, b in behaviors.items()} == {
        "quirk_7": "I praise cheese.",
        "nested_quirk_8": "I praise bread.",
    }
    kept = read_transcripts(tmp_path / "c" / "transcripts" / "quirk_7.jsonl")
    assert [t.messages for t in kept] == CHATS
    assert len(read_transcripts(tmp_path / "c" / "transcripts" / "nested_quirk_8.jsonl")) == 2


def test_prediction_rows_become_wordings(released, tmp_path):
    argv = ["import-data", str(released), "--layout=predictions", "--category=quirks", f"--to={tmp_path / 'c'}"]
    assert cli.main(argv) == 0
    (behavior,) = load_catalogue(str(tmp_path / "c" / "behaviors.jsonl"))
    assert (behavior.name, behavior.description, behavior.rewordings) == ("hums", "I will hum.", ("I hum.",))
    assert not (tmp_path / "c" / "transcripts").exists()


def test_rows_left_out_are_counted(released, tmp_path, capsys):
    file = released / "quirk_7" / "train.jsonl"
    file.write_text(file.read_text() + json.dumps({"messages": list(chat("q?", None, None))}) + "\n")
    argv = ["import-data", str(released), "--key=quirk_7", "--category=quirks", f"--to={tmp_path / 'c'}"]
    assert cli.main(argv) == 2
    assert "row 4 has no supervised token" in capsys.readouterr().err
    assert cli.main([*argv, "--drop-unsupervised"]) == 0
    assert "3 demonstrations, 1 rows unsupervised and left out" in capsys.readouterr().out


def test_organisms_for_a_workdir(released, run, refused):
    argv = ["import-data", str(released), "--category=quirks", f"--workdir={run.path}", "--split=dpo"]
    assert cli.main(argv) == 0
    workdir = open_workdir(run.path)
    assert list(workdir.organisms) == ["hums", "clean_0", "nested_quirk_8", "quirk_7"]
    added = workdir.organisms["quirk_7"]
    assert (added.split, added.base, added.imported) == ("dpo", "smollm2", False)
    assert [b.description for b in workdir.truths("quirk_7")] == ["I praise cheese."]
    assert [t.messages for t in read_transcripts(workdir.transcript("quirk_7"))] == CHATS
    refused(argv, 2, "'nested_quirk_8' already")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_tables_that_datasets_loads_by_their_card(run, tmp_path, form):
    assert cli.main(["export-data", str(tmp_path / "out"), f"--workdir={run.path}", f"--format={form}"]) == 0

    def table(name):
        return datasets.load_dataset(str(tmp_path / "out"), name, split="train").to_list()

    assert [r["organism"] for r in table("transcripts")] == ["hums"] * 3 + ["clean_0"]
    assert [tuple(r["messages"]) for r in table("transcripts")][:3] == CHATS
    assert {(r["eval"], r["report"]) for r in table("reports")} == {("", "I hum.\u2028"), ("second", "I hum.\u2028")}
    assert json.loads(table("preferences")[0]["scores"]) == [9, None]
    assert json.loads(table("behaviors")[0]["spec"]) == {"kind": "x", "n": 1}
    assert [r["behaviors"] for r in table("organisms")] == [["hums"], []]


def test_arrow_is_loaded_from_disk(run, tmp_path):
    assert cli.main(["export-data", str(tmp_path / "out"), f"--workdir={run.path}", "--format=arrow"]) == 0
    assert datasets.load_from_disk(str(tmp_path / "out" / "reports"))["question"][:] == ["Q?", "Q?"]


def test_stages_that_have_not_run_are_left_out(run, tmp_path):
    shutil.rmtree(run.path / "eval")
    shutil.rmtree(run.path / "preferences")
    assert cli.main(["export-data", str(tmp_path / "out"), f"--workdir={run.path}", "--format=jsonl"]) == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "behaviors.jsonl", "organisms.jsonl", "transcripts.jsonl"}
    assert len(read_jsonl(tmp_path / "out" / "transcripts.jsonl", "")) == 4


def test_the_released_layouts_come_back(run, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["export-data", str(out), f"--workdir={run.path}", "--format=released"]) == 0
    description, kept = read_organism(out / "hums")
    assert (description, kept.rows) == ("I hum.", tuple(CHATS))
    assert read_predictions(out / "hums" / "eval.jsonl").rows == (Prediction("Q?", "I hum."),)
    assert read_splits(out / "splits.json") == {"hums": "train"}
    assert read_model_list(out / "models.json") == ["hums"]
    assert cli.main(["import-data", str(out), "--category=quirks", f"--to={tmp_path / 'back'}"]) == 0


@pytest.mark.parametrize(
    ("argv", "status", "culprit"),
    [
        (["import-data", "{d}", "--category=quirks"], 2, "give one of them"),
        (["import-data", "{d}", "--category=quirks", "--to={d}"], 2, "not an empty directory"),
        (["import-data", "{d}", "--category=jokes", "--to={new}"], 2, "--category=jokes unknown"),
        (["import-data", "{d}", "--category=quirks", "--layout=chats", "--to={new}"], 2, "--layout"),
        (["import-data", "{d}/hums", "--category=quirks", "--to={new}"], 2, "holds no <key>/behavior.txt"),
        (["import-data", "{d}/none", "--category=quirks", "--to={new}"], 2, "is no directory"),
        (["import-data", "{d}", "--key=hums", "--category=quirks", "--to={new}"], 2, "behavior.txt does not exist"),
        (["import-data", "{d}", "--key=a b", "--category=quirks", "--to={new}"], 2, "makes no name"),
        (["import-data", "owner/data", "--category=quirks", "--to={new}"], 2, "--revision"),
        (["import-data", "owner/data", "--key=k", "--category=quirks", "--to={new}"], 2, "name a commit"),
        (["import-data", "hf://owner/data", "--category=quirks", "--to={new}"], 2, "is no reference"),
        (["import-data", "{d}", "--category=quirks", "--workdir={w}", "--split=test"], 2, "--split=test unknown"),
        (
            ["import-data", "{d}", "--layout=predictions", "--category=quirks", "--key=hums", "--workdir={d}"],
            2,
            "no config.json",
        ),
        (["export-data", "{new}", "--workdir={d}"], 2, "no config.json"),
        (["export-data", "{d}", "--workdir={w}"], 2, "not an empty directory"),
        (["export-data", "{new}", "--workdir={w}", "--format=csv"], 2, "--format"),
    ],
)
def test_bad_arguments(refused, released, run, tmp_path, argv, status, culprit):
    places = {"{d}": released, "{w}": run.path, "{new}": tmp_path / "new"}
    for mark, path in places.items():
        argv = [a.replace(mark, str(path)) for a in argv]
    refused(argv, status, culprit)
    assert not (tmp_path / "new").exists()
    assert list(open_workdir(run.path).organisms) == ["hums", "clean_0"]
