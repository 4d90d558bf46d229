"""`ia-jax adapters`: what a person reads about a store, and that damage of every kind is named."""

import json

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters import record as records
from ia_jax.adapters import store
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.organisms import organism_of
from ia_jax.config import RunConfig
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import write_jsonl
from tests.stored import adapter, flip, largest_file, metadata

NAMES = [b.name for b in demo_behaviors()[:5]]


@pytest.fixture
def workdir(tmp_path):
    """Three organisms stored, one left out, one not trained, and an IA."""
    run = start_workdir(tmp_path / "w", RunConfig())
    write_jsonl(run.behaviors_file, (b.to_json() for b in demo_behaviors()[:5]))
    write_jsonl(run.organisms_file, (organism_of(b, "m", "train", {}).to_json() for b in demo_behaviors()[:5]))
    for i, name in enumerate(NAMES[:3]):
        check = {"ok": i > 0, **({"retry": {"diverged": "why", "retried_lr": 1e-4}} if i == 2 else {})}
        store.save_adapter(run.organism_dir(name), adapter(i), metadata(name, step=10 + i, check=check))
    write_jsonl(run.left_out_file, [{"organism": NAMES[3], "left_out": "its loss was not finite at update 3"}])
    store.save_adapter(
        run.ia_dir("sft") / "adapter", adapter(9), metadata("ia_sft", kind="ia", organism=None, behaviors=())
    )
    return run


def adapters(run, *arguments):
    return cli.main(["adapters", *arguments, f"--workdir={run.path}"])


def test_ls(workdir, capsys):
    assert adapters(workdir, "ls") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "RANK", "ALPHA", "TARGETS", "LAYERS", "STEP", "CHECK", "MIB", "CONTENT"]
    said = {line.split()[0]: line for line in lines[1:-1]}
    assert list(said) == [*NAMES, "ia/sft"]
    digest = store.read_metadata(workdir.organism_dir(NAMES[1])).content_hash[:12]
    assert said[NAMES[1]].split()[1:7] == ["organism", "4", "8", "all", "all", "11"]
    assert said[NAMES[1]].endswith(digest)
    assert "not passed" in said[NAMES[0]]
    assert "passed (2nd try)" in said[NAMES[2]]
    assert "left out" in said[NAMES[3]]
    assert "not stored" in said[NAMES[4]]
    assert lines[-1].startswith("4 of 6 adapters stored, ")


def test_show(workdir, capsys):
    assert adapters(workdir, "show", NAMES[0], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["rank"], shown["leaves"]["q.a"]) == (NAMES[0], 4, "float32[3, 32, 4]")
    assert adapters(workdir, "show", NAMES[0]) == 0
    assert NAMES[0] in capsys.readouterr().out.splitlines()[0]
    for names, said in (((), "takes one name"), (("nobody",), "'nobody'"), ((NAMES[3],), "update 3")):
        assert adapters(workdir, "show", *names) == 2
        assert said in capsys.readouterr().err


def nan_in(directory):
    """As a writer without our checks would have stored it."""
    tree = adapter(0)
    tree["k"]["a"][0, 1, 2] = np.nan
    check, records.first_nonfinite = records.first_nonfinite, lambda leaves: None
    try:
        store.save_adapter(directory, tree, metadata(directory.name), overwrite=True)
    finally:
        records.first_nonfinite = check


def cut(directory):
    file = largest_file(directory)
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: flip(largest_file(d)), "has other bytes than were written"),
        (lambda d: largest_file(d).unlink(), "is missing"),
        (cut, "bytes instead of"),
        (nan_in, "leaf k.a is not finite at [0, 1, 2]"),
    ],
)
def test_verify_names_the_damage(workdir, capsys, damage, said):
    assert adapters(workdir, "verify") == 0
    assert capsys.readouterr().out == "4 adapters read, 4 sound, 0 damaged\n"
    damage(workdir.organism_dir(NAMES[0]))
    assert adapters(workdir, "verify") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{NAMES[0]}: ")
    assert said in lines[0]
    assert lines[-1] == "4 adapters read, 3 sound, 1 damaged"
    assert adapters(workdir, "verify", NAMES[1], "ia/sft") == 0
    assert adapters(workdir, "verify", NAMES[0], "--json") == 1


def test_rm(workdir, capsys):
    assert adapters(workdir, "rm", NAMES[0], "nobody") == 2
    assert store.is_complete(workdir.organism_dir(NAMES[0]))
    assert adapters(workdir, "rm", NAMES[0], "ia/sft") == 0
    assert not workdir.organism_dir(NAMES[0]).exists()
    assert not (workdir.ia_dir("sft") / "adapter").exists()
    assert store.is_complete(workdir.organism_dir(NAMES[1]))
    assert adapters(workdir, "rm") == 2
    assert adapters(workdir, "rm", NAMES[4]) == 2
    assert "nothing to delete" in capsys.readouterr().err


def test_rm_of_an_ia_takes_its_training_state_first(workdir, monkeypatch):
    """The stage would restore the final state and store the old IA as new; so a kill must not leave it alone."""
    state = workdir.ia_dir("sft") / "state"
    (state / "6").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.stages.inventory.remove_adapter", lambda path: None)  # killed before it
        assert adapters(workdir, "rm", "ia/sft") == 0
    assert not state.exists()
    assert store.is_complete(workdir.ia_dir("sft") / "adapter")
    assert adapters(workdir, "rm", "ia/sft") == 0
    assert not store.is_complete(workdir.ia_dir("sft") / "adapter")


def test_rm_of_an_ia_that_is_still_trained(workdir, capsys):
    """Its state goes, so that it can be begun with other settings; an organism beside it that is none keeps it."""
    state = workdir.ia_dir("dpo") / "state"
    state.mkdir(parents=True)
    assert adapters(workdir, "rm", "ia/dpo", NAMES[4]) == 2
    assert "nothing to delete" in capsys.readouterr().err
    assert state.exists()
    assert adapters(workdir, "rm", "ia/dpo") == 0
    assert not state.exists()
    assert adapters(workdir, "rm", "ia/dpo") == 2
    assert "nothing to delete" in capsys.readouterr().err


def test_rm_checks_all_names_first(workdir, capsys):
    assert adapters(workdir, "rm", NAMES[0], NAMES[4]) == 2
    assert "nothing to delete" in capsys.readouterr().err
    assert store.is_complete(workdir.organism_dir(NAMES[0]))


@pytest.mark.parametrize("killed_between_renames", [False, True])
def test_what_a_killed_overwrite_left_is_verified_and_removed(workdir, capsys, killed_between_renames):
    """`.saving` is served in place of the directory: also right after that was deleted."""
    path = workdir.organism_dir(NAMES[0])
    store.save_adapter(path.with_name("other"), adapter(5), metadata(NAMES[0]))
    path.with_name("other").rename(path.with_name(f"{path.name}.saving"))
    if killed_between_renames:
        path.rename(path.with_name(f"{path.name}.replaced"))
    assert adapters(workdir, "verify") == 0
    assert capsys.readouterr().out.startswith("4 adapters read, 4 sound")
    assert adapters(workdir, "rm", NAMES[0]) == 0
    assert not store.is_complete(path)
    assert not [p.name for p in workdir.organisms_dir.iterdir() if p.name.startswith(NAMES[0])]


def test_a_damaged_metrics_file_and_a_missing_package(workdir, tmp_path, monkeypatch, capsys):
    workdir.metrics_file().parent.mkdir()
    workdir.metrics_file().write_text('{"stages": ')
    assert cli.main(["report", f"--workdir={workdir.path}"]) in (1, 2)
    error = capsys.readouterr().err
    assert "unexpected" not in error
    monkeypatch.setattr("ia_jax.stages.settings.PACKAGES", ("numpy", "no-such-package"))
    start_workdir(tmp_path / "new", RunConfig())
    versions = json.loads((tmp_path / "new" / "config.json").read_text())["versions"]
    assert versions == {"numpy": np.__version__, "no-such-package": None}
