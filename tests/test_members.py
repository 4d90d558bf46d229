"""IAs of every kind through the commands: trained over a finished run's organisms, listed, asked, exported."""

import json

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters.base import identify
from ia_jax.adapters.peft import import_peft
from ia_jax.adapters.store import load_adapter
from ia_jax.config import PROJECTIONS
from ia_jax.models.lora import RESIDUAL, layers_of
from ia_jax.recipes import load_config
from ia_jax.workdir import open_workdir
from tests.runs import ORGANISMS, part_of


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return part_of(finished, tmp_path_factory.mktemp("members") / "workdir", *ORGANISMS)


KINDS = {
    "vector": (["kind=vector", "layers=1", f"targets={PROJECTIONS}"], (RESIDUAL,), (1,), "0", "residual"),
    "upper": (["layers=1:2", "targets=('q', 'down')"], ("q", "down"), (1,), "2", "q,down"),
}


@pytest.mark.parametrize("name", KINDS)
def test_trained_listed_asked_and_exported(run, tmp_path, capsys, refused, name):
    settings, targets, layers, rank, shown = KINDS[name]
    overrides = [f"--config.sft.lora.{s}" for s in settings]
    assert cli.main(["sft", f"--workdir={run}", f"--name={name}", *overrides, "--config.sft.steps=2"]) == 0
    workdir = open_workdir(run)
    adapter, metadata = load_adapter(workdir.ia_dir(name) / "adapter")
    assert (metadata.targets, metadata.layers, str(metadata.rank)) == (targets, layers, rank)
    assert layers_of(adapter) == layers
    assert any(np.any(x) for x in adapter[targets[-1]].values())
    capsys.readouterr()
    assert cli.main(["adapters", "ls", f"--workdir={run}"]) == 0
    [line] = [x.split() for x in capsys.readouterr().out.splitlines() if x.startswith(f"ia/{name}")]
    assert line[4:6] == [shown, "1"]
    assert cli.main(["adapters", "verify", f"ia/{name}", f"--workdir={run}"]) == 0
    assert cli.main(["adapters", "show", f"ia/{name}", f"--workdir={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("sound, 0 damaged\n")[-1])["layers"] == [1]
    assert cli.main(["ask", f"--workdir={run}", f"--ia={name}", "--max-new-tokens=2", "Who are you?"]) == 0
    assert cli.main(["export-peft", str(workdir.ia_dir(name)), str(tmp_path / "peft")]) == 0
    back = import_peft(tmp_path / "peft", identify(metadata.base_name))
    assert all(np.array_equal(back[t][n], x) for t, leaves in adapter.items() for n, x in leaves.items())
    merged = ["export-peft", str(workdir.ia_dir(name)), str(tmp_path / "merged"), "--merged"]
    if name == "vector":
        refused(merged, 2, "no weight that a vector could be merged into; export it as PEFT")
    else:
        assert cli.main(merged) == 0


def test_layers_of_a_recipe_may_be_overridden_by_a_range(tmp_path):
    recipe = tmp_path / "c.py"
    recipe.write_text(
        "from ia_jax.config import default_config\n\n\ndef get_config():\n    c = default_config()\n"
        "    c.sft.lora.layers = (7, 3)\n    c.organisms.lora.layers = '10:13'\n    return c\n"
    )
    config = load_config(str(recipe))
    assert (config.sft.lora.layers, config.organisms.lora.layers) == ((3, 7), (10, 11, 12))
    for written, found in (("20:22", (20, 21)), ("4", (4,)), ("(9, 8)", (8, 9)), ("None", None)):
        assert load_config(str(recipe), [f"--config.sft.lora.layers={written}"]).sft.lora.layers == found
