"""A workdir on the organisms of another: they stay where they lie, and are what they were there."""

import json
import shutil

import pytest

from ia_jax import cli
from ia_jax.adapters.store import read_metadata
from ia_jax.storage import read_jsonl, write_jsonl
from ia_jax.workdir import open_workdir
from tests import parrot
from tests.runs import ORGANISMS, part_of, times


@pytest.fixture
def begin(finished, tmp_path):
    """A function that gives the arguments of a command on a second workdir, with the config of the first."""

    def command(stage, *overrides, source=finished, workdir=tmp_path / "second"):
        config = f"--config={finished.parent / 'config.py'}"
        return [stage, config, f"--config.organisms.source={source}", f"--workdir={workdir}", *overrides]

    return command


def content(run, name):
    return read_metadata(run.ia_dir(name) / "adapter").content_hash


def test_the_organisms_of_another_workdir(finished, tmp_path, begin, capsys, monkeypatch):
    before, first = times(finished), open_workdir(finished)
    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.stages.phases.train_step", None)
        for stage in ("transcripts", "organisms", "sft"):
            assert cli.main(begin(stage)) == 0
    out = capsys.readouterr().out
    assert f"organisms: 12 of {finished} (4 dpo, 4 heldout, 4 train)" in out
    second = open_workdir(tmp_path / "second")
    assert not second.organisms_dir.exists()
    assert not (second.path / "transcripts").exists()
    assert second.behaviors == first.behaviors
    for name, o in second.organisms.items():
        assert second.stack_of(o) == (first.organism_dir(name).resolve(),)
        assert (o.split, o.behaviors) == (first.organisms[name].split, first.organisms[name].behaviors)
    assert second.checks_file.read_text() == first.checks_file.read_text()
    assert content(second, "sft") == content(first, "sft")
    assert times(finished) == before

    name = next(iter(second.organisms))
    assert cli.main(["adapters", "ls", f"--workdir={second.path}"]) == 0
    assert "13 of 13 adapters stored" in capsys.readouterr().out
    assert cli.main(["adapters", "rm", name, f"--workdir={second.path}"]) == 2
    assert "belongs to another workdir" in capsys.readouterr().err
    # And on: an evaluation there is that of the first, for IAs that are the same.
    shutil.copytree(finished / "ia" / "dpo", second.ia_dir("dpo"))
    assert cli.main(["eval", f"--workdir={second.path}"]) == 0
    assert second.reports() == first.reports()
    assert times(finished) == before


def test_fewer_of_them_split_anew(finished, tmp_path, begin):
    """A held-out one of the source may be trained on here; nothing is in two splits."""
    counts = ["--config.behaviors.train=3", "--config.behaviors.heldout=2", "--config.behaviors.dpo=0"]
    assert cli.main(begin("transcripts", *counts, "--config.seed=7")) == 0
    first, second = open_workdir(finished), open_workdir(tmp_path / "second")
    assert [len(second.named(s)) for s in ("train", "dpo", "heldout")] == [3, 0, 2]
    assert second.organisms.keys() < first.organisms.keys()
    assert second.behaviors.keys() == {b for o in second.organisms.values() for b in o.behaviors}
    assert any(o.split != first.organisms[n].split for n, o in second.organisms.items())


def test_what_is_held_out_of_another_catalogue_stays_so(refused, finished, tmp_path, begin):
    """It is left out where the config does not ask for it, and never drawn into another split."""
    counts = ["--config.behaviors.train=3", "--config.behaviors.heldout=2", "--config.behaviors.dpo=0"]
    apart = "--config.behaviors.unseen=unseen"
    refused(begin("transcripts", *counts, apart), 2, "no organism of that split")
    other = tmp_path / "source"
    shutil.copytree(finished, other)
    organisms = read_jsonl(other / "organisms.jsonl", "")
    marked = next(o for o in organisms if o["split"] == "heldout" and o["behaviors"])
    write_jsonl(other / "organisms.jsonl", ({**o, "split": "unseen"} if o == marked else o for o in organisms))
    for number, more in enumerate([[], [apart]]):
        to = tmp_path / f"to{number}"
        assert cli.main(begin("transcripts", *counts, *more, "--config.seed=7", source=other, workdir=to)) == 0
        splits = {n: o.split for n, o in open_workdir(to).organisms.items()}
        assert splits.get(marked["name"]) == ("unseen" if more else None)
        assert sum(s in ("train", "heldout") for n, s in splits.items() if not n.startswith("clean")) == 5


def test_a_source_that_was_split_by_overrides_keeps_its_splits(finished, tmp_path, begin):
    """What a workdir's organisms were chosen with stands in its record; its config.json may be an earlier one."""
    source = part_of(finished, tmp_path / "first", *ORGANISMS)
    stored = json.loads((source / "config.json").read_text())
    stored["config"]["behaviors"]["train"] = 8
    (source / "config.json").write_text(json.dumps(stored))
    rows = [json.loads(line) for line in (source / "organisms.jsonl").read_text().splitlines()]
    assert cli.main(begin("transcripts", source=source)) == 0
    second = open_workdir(tmp_path / "second")
    assert {n: o.split for n, o in second.organisms.items()} == {r["name"]: r["split"] for r in rows}


def test_a_source_that_is_not_finished(refused, finished, tmp_path, begin):
    source = part_of(finished, tmp_path / "first", *ORGANISMS)
    missing = open_workdir(source).organism_dir(open_workdir(source).named("train")[0])
    shutil.rmtree(missing)
    refused(begin("transcripts", source=source), 2, missing, "is not stored; finish `ia-jax organisms` there")
    assert not (tmp_path / "second" / "organisms.jsonl").exists()
    refused(begin("transcripts", source=tmp_path / "none"), 2, tmp_path / "none", "does not exist")
    # Mended, the same workdir is begun.
    assert cli.main(begin("transcripts")) == 0


def test_a_source_of_another_base(refused, finished, tmp_path, begin):
    other = parrot.write_model(tmp_path / "other", hidden=32)
    argv = begin("transcripts", f"--config.model.name={other}")
    refused(argv, 2, f"was made for {open_workdir(finished).config.model.name}", f"config.model.name is {other}")


def test_a_source_that_holds_too_few(refused, begin):
    refused(begin("transcripts", "--config.behaviors.train=40"), 2, "too few for", "40 for training")
    refused(begin("transcripts", "--config.behaviors.clean_train=1"), 2, "asks for 1 clean organisms", "has 0")


def test_a_workdir_is_not_its_own_source(refused, finished, tmp_path, begin):
    copy = part_of(finished, tmp_path / "second")
    refused(begin("transcripts", source=copy, workdir=copy), 2, copy, "is the workdir itself")
    (tmp_path / "link").symlink_to(copy)
    refused(begin("transcripts", source=tmp_path / "link", workdir=copy), 2, "is the workdir itself")
