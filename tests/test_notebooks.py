"""Notebooks run from top to bottom on a finished run, and are committed without output."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import subspace_angles

import ia_jax
from ia_jax import cli
from ia_jax.evals.intervals import rate
from ia_jax.models.weights import load_model
from tests.runs import ORGANISMS, part_of

DIRECTORY = Path(__file__).parent.parent / "notebooks"


def ran(name, finished, monkeypatch, **more):
    """The namespace of a notebook's cells, one after the other as a kernel would run them; what the last lines show is
    shown to nobody.
    """
    for key, value in {"IA_RUN": finished, **more}.items():
        monkeypatch.setenv(key, str(value))
    cells = [c for c in json.loads((DIRECTORY / f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    namespace = {}
    for n, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{name}.ipynb, code cell {n}", "exec"), namespace)
    return namespace


def test_every_notebook_has_a_test():
    tested = {n.removeprefix("test_the_").removesuffix("_notebook") for n in globals() if n.endswith("_notebook")}
    assert {p.stem for p in DIRECTORY.glob("*.ipynb")} == tested


def test_the_a_run_notebook(finished, monkeypatch):
    namespace = ran("a_run", finished, monkeypatch)
    # The change of a weight, formed in full.
    ia = namespace["ia"]
    whole = sum(((ia[t]["a"] @ ia[t]["b"]) ** 2).sum() for t in ia)
    assert sum(v.sum() for v in namespace["inner"](ia, ia).values()) == pytest.approx(float(whole), rel=1e-4)
    assert set(namespace["table"].columns) >= {"organism+ia", "organism", "base+ia", "base"}


def test_the_scaling_notebook(finished, tmp_path, monkeypatch):
    """Two runs, which are one: as many weights as the checkpoint has, and nothing gained."""
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(finished)
    namespace = ran("scaling", tmp_path / "*", monkeypatch)
    table = namespace["table"]
    assert list(table["run"]) == ["one", "one", "two", "two"]
    assert list(table["stage"]) == ["sft", "dpo"] * 2
    leaves = load_model(namespace["runs"][0].config.model.name).params
    held = (*leaves["layers"].values(), leaves["embed"], leaves["final_norm"], leaves["lm_head"])
    assert set(table["weights"]) == {sum(x.size for x in held)}
    assert set(table["organisms"]) == {4}
    assert namespace["gain"]["difference"] == 0.0
    assert namespace["figure"].count("<circle") >= 4


def test_the_ablations_notebook(finished, monkeypatch):
    namespace = ran("ablations", finished, monkeypatch)
    assert list(namespace["arms"]) == list(namespace["table"].index) == ["sft", "dpo"]
    metrics = ia_jax.open_workdir(finished).metrics()["stages"]
    for label, arm in namespace["arms"].items():
        assert rate(namespace["named"](*arm)) == metrics[label]["heldout"]["organism+ia"]
    assert list(namespace["gains"]) == ["dpo"]
    assert namespace["figure"].startswith("<svg")


def test_the_logit_lens_notebook(finished, monkeypatch):
    namespace = ran("logit_lens", finished, monkeypatch)
    model, tokens = namespace["model"], namespace["tokens"]
    assert namespace["table"].shape == (model.config.num_hidden_layers + 1, 8)
    # The last layer's is what the model says: ranks by sorting its logits.
    logits = np.asarray(ia_jax.logits(model, tokens, namespace["stacks"]["organism+ia"]))[
        0, len(namespace["prompt"]) - 1 :
    ]
    order = np.argsort(np.argsort(-logits, axis=-1), axis=-1) + 1
    assert np.abs(namespace["ranks"]["organism+ia", "own"][-1] - order[:, namespace["keys"]["own"]]).max() <= 1


def test_the_adapters_notebook(finished, tmp_path, monkeypatch):
    """What subspaces share against scipy's principal angles; and an IA shares all of itself with itself."""
    (tmp_path / "other").symlink_to(finished)
    namespace = ran("adapters", finished, monkeypatch, IA_RUNS=tmp_path / "other")
    organisms, shared = namespace["organisms"], namespace["shared"]
    one, two = list(organisms.values())[:2]
    for k, v in shared(one, two).items():
        cosines = np.cos(subspace_angles(one[k][1], two[k][1])) ** 2
        assert v[1] == pytest.approx(cosines.mean(), abs=1e-9)
    assert namespace["between"].loc["workdir sft / other sft", "reads"] == pytest.approx(1.0)
    assert len(namespace["between"]) == 6  # pairs of two runs' SFT and DPO
    assert set(namespace["table"].columns) == {"within", "across", "by chance", "share of nulls"}


def test_the_audits_notebook(finished, tmp_path, monkeypatch):
    """One family of two targets and a null: the tables have what metrics.json has, and each target's own."""
    workdir = part_of(finished, tmp_path / "w", *ORGANISMS, "ia")
    run = ia_jax.open_workdir(workdir)
    one, other, third = run.named("heldout")[:3]
    truth = [{"description": "I like it very much.", "rubric": {"concepts": [["like"]]}}]
    rows = [{"name": f"of_{n}", "stack": [n], "behaviors": truth} for n in (one, other)]
    rows += [{"name": "nothing", "stack": [third], "null": "clean"}]
    targets = tmp_path / "targets.jsonl"
    targets.write_text("".join(json.dumps(r) + "\n" for r in rows))
    small = {"reports": 3, "max_new_tokens": 6, "scaffold": "words", "gate_prompts": 0}
    settings = [f"--config.audits.{k}={v}" for k, v in small.items()]
    assert cli.main(["audit-family", "targets", f"--workdir={workdir}", f"--targets={targets}", *settings]) == 0

    # The tiny model names nothing: what a judge would have said of one target, by hand.
    judged = workdir / "audits" / "targets" / "judged.jsonl"
    verdicts = [json.loads(line) for line in judged.read_text().splitlines()]
    for row in verdicts:
        if row["lenient"] is not None:  # of the null there is nothing to be right about
            row["lenient"] = (row["target"], row["condition"]) == (f"of_{one}", "target+ia")
    judged.write_text("".join(json.dumps(row) + "\n" for row in verdicts))

    namespace = ran("audits", workdir, monkeypatch)
    metrics = json.loads((workdir / "audits" / "targets" / "metrics.json").read_text())
    assert namespace["found"] == {"targets": metrics}
    assert list(namespace["table"].index) == ["targets"]
    each = namespace["each"]
    assert set(each.index) == {f"of_{one}", f"of_{other}", "nothing"}
    assert each.loc["nothing", "named"] == "–"
    assert (each.loc[f"of_{one}", "named"][:4], each.loc[f"of_{one}", "alone"][:2]) == ("100%", "0%")
    assert namespace["gain"]["difference"] == 0.5
    assert namespace["figure"].startswith("<svg")
