"""What each stage was made with: what may change, and what is refused, in one line with the remedy."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from ia_jax import cli
from ia_jax.adapters.store import is_complete, read_metadata
from ia_jax.config import RunConfig
from ia_jax.stages.settings import DEPENDS, FREE, differences, read_stage_record, stage_settings
from ia_jax.workdir import open_workdir
from tests.runs import ORGANISMS, TRANSCRIPTS, new_since, part_of, spoil, times

STAGES = ("transcripts", "organisms", "sft", "preferences", "dpo", "eval")


def flat(node, prefix="config."):
    return [x for k, v in node.items() for x in (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"])]


def test_every_setting_belongs_to_a_stage_or_changes_nothing():
    """A field that is added to the config and forgotten here would pass for the same."""
    known = {f"config.{key}" for stage in DEPENDS for key in stage_settings(RunConfig(), stage)}
    known |= {f"config.{key}" for key in FREE}
    left = {key for key in flat(asdict(RunConfig())) if key not in known}
    assert {key.split(".")[1] for key in left} == {"mesh", "claude", "audits"}


def test_a_stage_writes_down_what_it_was_made_with(finished):
    run = open_workdir(finished)
    assert {p.name for p in (finished / "settings").iterdir()} == {
        *("transcripts.json", "organisms.json", "ia.sft.json", "ia.dpo.json", "preferences.dpo.json", "eval.json"),
    }
    for stage in STAGES:
        record = read_stage_record(run, run.config, stage)
        assert record["stage"] == stage
        assert record["settings"] == stage_settings(run.config, stage)
        assert record["versions"]["jax"]
    record = read_stage_record(run, run.config, "dpo")
    ia = read_metadata(run.ia_dir("sft") / "adapter").content_hash
    assert record["inputs"]["ia/sft"] == ia[:16]
    assert record["inputs"].keys() == {"organisms", "ia/sft", "preferences/dpo.jsonl"}
    assert read_metadata(run.ia_dir("dpo") / "adapter").config_hash == record["hash"]


def test_a_setting_that_came_later_is_what_runs_before_it_were_made_with(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "w")
    run, file = open_workdir(tmp_path / "w"), tmp_path / "w" / "settings" / "ia.sft.json"

    def without(key):
        record = json.loads(file.read_text())
        del record["settings"][key]
        file.write_text(json.dumps(record))

    without("sft.contrast")
    assert differences(run, run.config, "sft") is None
    other = replace(run.config, sft=replace(run.config.sft, contrast=1.0))
    assert differences(run, other, "sft") == "config.sft.contrast was 0.0 and is now 1.0"
    without("sft.steps")
    assert differences(run, run.config, "sft") == "config.sft.steps was 'not there' and is now 6"


@pytest.mark.parametrize(
    ("stage", "override", "old", "new", "remedy"),
    [
        ("transcripts", "behaviors.train=3", "4", "3", "use another --workdir or the old config"),
        ("transcripts", "seed=2", "1547", "2", "use another --workdir"),
        ("organisms", "organisms.epochs=2", "1", "2", "`ia-jax adapters rm` the organisms"),
        ("sft", "sft.steps=7", "6", "7", "--name=NAME"),
        ("sft", "sft.organisms=0.5", "1.0", "0.5", "--name=NAME"),
        ("sft", "questions=general", "'short'", "'general'", "--name=NAME"),
        ("preferences", "preferences.samples=3", "2", "3", "--name=NAME"),
        ("preferences", "judge.name=claude", "'rubric'", "'claude'", "--name=NAME"),
        ("dpo", "dpo.beta=0.3", "0.1", "0.3", "--name=NAME"),
        ("eval", "eval.questions=1", "2", "1", "--name=NAME"),
        ("eval", "judge.name=claude", "'rubric'", "'claude'", "--name=NAME"),
    ],
)
def test_another_setting_on_what_is_there_is_refused(refused, finished, stage, override, old, new, remedy):
    before, key = times(finished), override.split("=")[0]
    line = refused([stage, f"--workdir={finished}", f"--config.{override}"], 2, remedy)
    assert f"config.{key} was {old} and is now {new}; " in line
    assert str(finished) in line
    assert times(finished) == before
    # `run` meets it at the same stage, after those that it does not concern.
    if (stage, key) != ("eval", "judge.name"):  # that concerns preferences too
        assert refused(["run", f"--workdir={finished}", f"--config.{override}"], 2) == line
    assert times(finished) == before


@pytest.mark.parametrize(
    "override", ["sft.checkpoint_every=5", "organisms.checkpoint_every=1", "model.remat=mlp", "claude.cap_dollars=1.0"]
)
def test_what_says_how_and_not_what_may_change(finished, tmp_path, capsys, override):
    copy = shutil.copytree(finished, tmp_path / "w")
    before = times(copy)
    assert cli.main(["run", f"--workdir={copy}", f"--config.{override}"]) == 0
    assert capsys.readouterr().out.count("already done") == 7
    # What the next command would be surprised to find changed back is kept.
    kept = {"config.json": before.pop("config.json")} if override.startswith(("model", "claude")) else {}
    assert new_since(before, copy) == kept.keys()
    assert (open_workdir(copy).config != open_workdir(finished).config) is bool(kept)


@pytest.mark.parametrize("command", ["run", "sft", "eval"])
def test_another_base_is_refused(refused, finished, command):
    model = open_workdir(finished).config.model.name
    argv = [command, f"--workdir={finished}", "--config.model.name=smollm2", "--name=other"]
    refused(argv, 2, finished, f"config.model.name was {model!r} and is now 'smollm2'; use another --workdir")


def test_a_stage_that_has_not_begun_takes_a_mended_setting(refused, finished, tmp_path):
    copy = part_of(finished, tmp_path / "w", *ORGANISMS)
    assert cli.main(["sft", f"--workdir={copy}", "--config.sft.steps=2"]) == 0
    run = open_workdir(copy)
    assert read_metadata(run.ia_dir("sft") / "adapter").step == 2
    assert read_stage_record(run, run.config, "sft")["settings"]["sft.steps"] == 2
    refused(["sft", f"--workdir={copy}"], 2, "config.sft.steps was 2 and is now 6")
    # What it says can be done: without the IA, the stage has not begun again.
    shutil.rmtree(run.ia_dir("sft"))
    assert cli.main(["sft", f"--workdir={copy}"]) == 0
    hashes = [read_metadata(w.ia_dir("sft") / "adapter").content_hash for w in (run, open_workdir(finished))]
    assert hashes[0] == hashes[1]


def test_a_stage_that_was_killed_has_begun(refused, finished, tmp_path, monkeypatch):
    copy = part_of(finished, tmp_path / "w", *ORGANISMS)
    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.stages.sft.store_ia", None)  # killed with its last state kept
        assert cli.main(["sft", f"--workdir={copy}"]) == 1
    state = times(copy / "ia" / "sft" / "state")
    assert state
    refused(["sft", f"--workdir={copy}", "--config.sft.optimizer.lr=0.1"], 2, "config.sft.optimizer.lr was", "0.1")
    assert times(copy / "ia" / "sft" / "state") == state
    assert cli.main(["adapters", "rm", "ia/sft", f"--workdir={copy}"]) == 0
    assert cli.main(["sft", f"--workdir={copy}", "--config.sft.optimizer.lr=0.1", "--config.sft.steps=2"]) == 0
    assert is_complete(copy / "ia" / "sft" / "adapter")


# --------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("split", "concerned"),
    [("train", ("sft", "eval")), ("dpo", ("preferences", "dpo")), ("heldout", ("eval",))],
)
def test_another_organism_than_a_stage_was_made_from(refused, finished, tmp_path, capsys, split, concerned):
    copy = shutil.copytree(finished, tmp_path / "w")
    run = open_workdir(copy)
    spoil(run.organism_dir(run.named(split)[0]))
    before = times(copy)
    for stage in STAGES:
        if stage in concerned:
            line = refused([stage, f"--workdir={copy}"], 2, "was made from other organisms than there are now")
            assert "--name=NAME" in line
        else:
            assert cli.main([stage, f"--workdir={copy}"]) == 0
            assert capsys.readouterr().out == f"{stage}: already done\n"
    assert times(copy) == before


def test_another_truth_than_a_stage_was_made_from(refused, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "w")
    run = open_workdir(copy)
    name = run.named("heldout")[0]
    text = run.behaviors_file.read_text().replace(run.behaviors[name].description, "I am another.")
    run.behaviors_file.write_text(text)
    refused(["eval", f"--workdir={copy}"], 2, "was made from other organisms than there are now")


def test_other_pairs_and_another_ia_than_a_stage_was_made_from(refused, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "w")
    run = open_workdir(copy)
    lines = run.preferences_file().read_text().splitlines(keepends=True)
    run.preferences_file().write_text("".join(lines[:-1]))
    refused(["dpo", f"--workdir={copy}"], 2, "was made from another preferences/dpo.jsonl than there is now", "--name")
    run.preferences_file().write_text("".join(lines))
    assert cli.main(["dpo", f"--workdir={copy}"]) == 0
    spoil(run.ia_dir("sft") / "adapter")
    for stage in ("preferences", "dpo", "eval"):
        refused([stage, f"--workdir={copy}"], 2, "was made from another ia/sft than there is now")


def test_an_evaluation_from_before_dpo_is_made_again(finished, tmp_path, capsys):
    """It lacks the second IA, and belongs to no other run."""
    copy = part_of(finished, tmp_path / "w", *ORGANISMS, "ia", "preferences")
    shutil.move(copy / "ia" / "dpo", tmp_path / "dpo")
    assert cli.main(["eval", f"--workdir={copy}"]) == 0
    run = open_workdir(copy)
    assert run.metrics()["stages"].keys() == run.metrics()["ias"].keys() == {"sft"}
    shutil.move(tmp_path / "dpo", copy / "ia" / "dpo")
    capsys.readouterr()
    assert cli.main(["run", f"--workdir={copy}"]) == 0
    assert "eval: done in" in capsys.readouterr().out
    assert open_workdir(copy).metrics() == open_workdir(finished).metrics()
    assert read_stage_record(run, run.config, "eval") == read_stage_record(run, open_workdir(finished).config, "eval")


def test_a_damaged_record_is_named(refused, finished, tmp_path):
    copy = part_of(finished, tmp_path / "w", *TRANSCRIPTS)
    for text in ('{"stage": ', "[]", '{"stage": "sft"}'):
        (copy / "settings" / "transcripts.json").write_text(text)
        refused(["transcripts", f"--workdir={copy}"], 2, copy / "settings" / "transcripts.json", "delete it")


def test_a_workdir_without_records_goes_on(finished, tmp_path, capsys):
    """As where somebody deleted a damaged one: what is there counts as made with the config."""
    copy = shutil.copytree(finished, tmp_path / "w")
    shutil.rmtree(copy / "settings")
    before = times(copy)
    assert cli.main(["run", f"--workdir={copy}"]) == 0
    assert capsys.readouterr().out.count("already done") == 7
    assert new_since(before, copy) == set()
    json.loads((copy / "config.json").read_text())
