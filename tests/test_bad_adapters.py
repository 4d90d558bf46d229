"""Adapters that cannot be imported, audited or exported: one line on stderr that names why, and nothing overwritten."""

import shutil

import pytest

from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.models.weights import load_model
from ia_jax.workdir import open_workdir
from tests import parrot, tiny
from tests.runs import contents
from tests.stored import flip
from tests.stored import largest_file as largest


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """A base of another width, an adapter of it in both formats."""
    root = tmp_path_factory.mktemp("other")
    model = load_model(parrot.write_model(root / "model", hidden=32, seed=1))
    adapter = tiny.adapter(0, model.config)
    lora = tiny.LORA
    export_peft(adapter, root / "peft", model, lora)
    about = AdapterMetadata("x", "organism", model.name, model.fingerprint, lora.rank, lora.alpha, lora.targets)
    save_adapter(root / "orbax", adapter, about)
    return root


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        (["--name={taken}"], "--name={taken} is taken"),
        (["--name=../x"], "--name=../x must be letters"),
        (["--name=x", "--split=test"], "--split=test unknown; choose from train, dpo, heldout"),
        (["--name=x", "--behavior=nobody"], "--behavior=nobody is not in"),
        (["--name=x", "--description=I hum."], "--category= unknown; choose from sandbaggers"),
        (["--name=x", "--description=I hum.", "--category=clean"], "--category=clean unknown"),
        ([], "import-peft takes SRC and --name"),
        (["elsewhere", "--name=x"], "neither DST nor --model"),
    ],
)
def test_imports(refused, finished, other_base, more, culprit):
    """Refused before the adapter, which is of another base, is looked at."""
    before, taken = contents(finished), open_workdir(finished).named("train")[0]
    more = [x.format(taken=taken) for x in more]
    refused(["import-peft", other_base / "peft", *more, f"--workdir={finished}"], 2, culprit.format(taken=taken))
    assert contents(finished) == before


def test_an_import_of_another_base(refused, finished, other_base):
    before = contents(finished)
    refused(["import-peft", other_base / "peft", "--name=x", f"--workdir={finished}"], 2, other_base / "peft")
    assert contents(finished) == before


@pytest.mark.parametrize("kind", ["peft", "orbax"])
def test_adapter_of_another_base(refused, finished, other_base, kind):
    argv = ["audit", f"--workdir={finished}", f"--adapter={other_base / kind}"]
    refused(argv, 2, other_base / kind, "made for", other_base / "model")


def test_adapter_that_is_none(refused, finished, tmp_path):
    refused(["audit", f"--workdir={finished}", f"--adapter={tmp_path}"], 2, tmp_path)
    refused(["audit", f"--workdir={finished}", f"--adapter={tmp_path / 'none'}"], 2, tmp_path / "none")
    refused(["export-peft", tmp_path / "none", tmp_path / "out"], 1, tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_corrupt_adapter(refused, finished, other_base, tmp_path):
    for kind, damage, argv in (
        ("peft", lambda f: f.write_bytes(f.read_bytes()[:-100]), ["import-peft"]),
        ("orbax", flip, ["export-peft"]),
    ):
        copy = shutil.copytree(other_base / kind, tmp_path / kind)
        damage(largest(copy))
        refused([*argv, copy, tmp_path / "out"], 1, copy)
        assert not (tmp_path / "out").exists()


def test_too_many_questions(refused, finished, other_base):
    refused(["audit", f"--workdir={finished}", f"--adapter={other_base / 'peft'}", "--questions=99"], 2, "99")


def test_nothing_is_overwritten(refused, other_base, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    refused(["export-peft", other_base / "orbax", tmp_path], 2, tmp_path)
    refused(["import-peft", other_base / "peft", tmp_path], 2, tmp_path)
    assert contents(tmp_path).keys() == {"precious.txt"}


def test_export_for_another_base(refused, other_base, parrot_model, tmp_path):
    refused(["export-peft", other_base / "orbax", tmp_path / "out", f"--model={parrot_model}"], 2, "made for")
