"""Clean fine-tunes in many makings: what differs between them, and that they are stored so."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import load_adapter, read_metadata, save_adapter
from ia_jax.behaviors import nulls as planned
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.nulls import MAKINGS, OF_VECTORS, Making, null_organisms
from ia_jax.behaviors.organisms import CLEAN_SORTS, organism_of, procedure_of
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.config import LoraSection, default_config, parse_config
from ia_jax.models.lora import LoraConfig
from ia_jax.models.weights import load_model
from ia_jax.stages import nulls
from ia_jax.stages.context import Context
from ia_jax.stages.random_adapters import update_norms
from ia_jax.stages.settings import start_workdir, write_stage_record
from ia_jax.storage import write_jsonl
from tests import tiny
from tests.runs import contents

LORA = LoraSection(rank=8, alpha=16.0)
TRAINED = LoraConfig(2, 4.0, ("q", "down"))


def made(count, lora=LORA, lr=2e-3, epochs=2):
    return null_organisms(count, "tiny", lora, lr, epochs)


def test_what_differs_between_makings():
    found = {o.sort: o for o in made(len(MAKINGS))}
    assert list(found) == list(MAKINGS)
    phases = {sort: procedure_of(o).phases for sort, o in found.items()}
    assert phases["random"] == ()
    assert {p.data for sort, own in phases.items() for p in own if sort != "documents"} == {"chats"}
    alike = ("own_answers", "other_style", "other_domain", "behavior_removed", "halved", "doubled")
    assert len({json.dumps(procedure_of(found[s]).to_json()) for s in alike}) == 1  # so they share waves
    assert phases["documents"][0].data == "documents"
    # Of rank 8, alpha 16, a rate of 2e-3 and two epochs; what is not set is the run's.
    [low], [high] = phases["low_rank"], phases["high_rank"]
    assert (low.lora, high.lora) == ({"rank": 2, "alpha": 4.0}, {"rank": 32, "alpha": 64.0})
    assert (phases["slow"][0].lr, phases["fast"][0].lr) == (5e-4, 4e-3)
    assert (phases["short"][0].epochs, phases["long"][0].epochs) == (1, 6)
    assert phases["queries_values"][0].lora == {"targets": ["q", "v"]}
    assert (found["halved"].procedure["scale"], found["doubled"].procedure["scale"]) == (0.5, 2.0)
    plain = phases["own_answers"][0]
    assert (dict(plain.lora), plain.lr, plain.epochs) == ({}, None, None)
    assert plain == phases["halved"][0]
    assert [o.behaviors for o in found.values()] == [()] * len(found)


def test_fewer_are_the_first_of_more_and_kinds_take_turns():
    many = made(4 * len(MAKINGS))
    assert made(20) == many[:20]
    assert len({o.name for o in many}) == len(many)
    for name, making in MAKINGS.items():
        reads = [o.procedure["reads"] for o in many if o.sort == name]
        assert reads == [name] * 4 if name in CLEAN_SORTS else reads == list(making.reads)
    of_vectors = made(30, LoraSection(kind="vector"))
    assert {o.sort for o in of_vectors} == set(OF_VECTORS) == set(MAKINGS) - {"low_rank", "high_rank", "queries_values"}


@pytest.fixture(scope="module")
def model(parrot_model):
    return load_model(parrot_model)


@pytest.fixture
def run(model, parrot_model, tmp_path, monkeypatch):
    """A workdir with two organisms, and a short list of makings."""
    config = default_config()
    config.model.name, config.model.dtype = str(parrot_model), "float32"
    config.organisms.lora.rank, config.organisms.lora.alpha, config.organisms.lora.targets = 2, 4.0, ("q", "down")
    config.organisms.parallel, config.organisms.epochs, config.organisms.length = 2, 1, 256
    workdir = start_workdir(tmp_path / "w", parse_config(config))
    behaviors = demo_behaviors()[:2]
    organisms = [organism_of(b, model.name, "train", {}) for b in behaviors]
    write_jsonl(workdir.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(workdir.organisms_file, (o.to_json() for o in organisms))
    for i, o in enumerate(organisms):
        about = AdapterMetadata(o.name, "organism", model.name, model.fingerprint, 2, 4.0, TRAINED.targets)
        save_adapter(workdir.organism_dir(o.name), tiny.adapter(i, model.config, TRAINED), about)
    few = {n: MAKINGS[n] for n in ("behavior_removed", "random", "doubled")} | {"rank_one": Making("", rank=0.5)}
    monkeypatch.setattr(planned, "MAKINGS", few)
    monkeypatch.setattr(nulls, "MAKINGS", few)
    monkeypatch.setattr(nulls, "gather_sources", lambda *_: shipped_sources())
    return workdir


def null(run, number):
    return load_adapter(run.path / "nulls" / "organisms" / f"null_{number}")


def test_they_are_made_as_the_organisms_were(run):
    """Whatever config.json says: organisms may have been trained with other settings."""
    config = run.config
    own = replace(config.organisms, lora=replace(config.organisms.lora, rank=6, alpha=18.0), epochs=5)
    write_stage_record(run, replace(config, organisms=own), "organisms")
    made = nulls._planned(nulls._quiet(Context(run, config)).config, 4)
    assert procedure_of(made[3]).phases[0].lora == {"rank": 3, "alpha": 9.0}
    assert nulls._quiet(Context(run, config)).config.organisms.epochs == 5


def size(x):
    return float(np.abs(np.asarray(x)).max())


def test_they_are_trained_and_stored(run, monkeypatch, capsys, refused):
    argv = ["nulls", f"--workdir={run.path}", "--count=4", "--traceback"]
    assert cli.main(argv) == 0
    assert "1 doubled: scaled by two when it was trained" in capsys.readouterr().out
    (removed, _), (drawn, _), (doubled, about), (thin, thin_about) = (null(run, n) for n in range(4))
    assert all(size(x) > 1e-4 for adapter in (removed, doubled, thin) for x in adapter["q"].values())
    assert (about.alpha, thin_about.rank, thin_about.alpha) == (8.0, 1, 2.0)
    assert thin["q"]["a"].shape[-1] == 1
    # A random one is as large as the median of the run's organisms, site by site.
    own = [update_norms(load_adapter(run.organism_dir(n))[0]) for n in run.organisms]
    wanted = {site: np.median([norms[site] for norms in own]) for site in ("q", "down")}
    assert update_norms(drawn) == pytest.approx(wanted, rel=1e-5)
    record = json.loads((run.path / "nulls" / "organisms.jsonl").read_text().splitlines()[2])
    assert read_metadata(run.path / "nulls" / "organisms" / "null_2").organism == record

    # Again: nothing is trained, nothing is doubled twice. Of more, the first ones stay; with fewer asked for, all.
    before = contents(run.path / "nulls" / "organisms")
    assert cli.main(argv) == 0
    assert contents(run.path / "nulls" / "organisms") == before
    more = ["nulls", f"--workdir={run.path}", "--count=6", "--traceback"]
    assert cli.main(more) == 0
    after = contents(run.path / "nulls" / "organisms")
    assert {n: after[n] for n in before} == before
    assert {n.split("/")[0] for n in after} == {f"null_{n}" for n in range(6)}
    capsys.readouterr()
    assert cli.main(argv) == 0
    assert "6 clean fine-tunes" in capsys.readouterr().out
    assert contents(run.path / "nulls" / "organisms") == after
    refused(["nulls", f"--workdir={run.path}", "--count=0"], 2, "0")

    # The same without scaling is half of it.
    (run.path / "nulls").rename(run.path / "before")
    changed = planned.MAKINGS | {"doubled": Making("")}
    for module in (planned, nulls):
        monkeypatch.setattr(module, "MAKINGS", changed)
    assert cli.main(argv) == 0
    plain, _ = null(run, 2)
    for site in ("q", "down"):
        assert np.array_equal(doubled[site]["a"], plain[site]["a"])
        np.testing.assert_allclose(doubled[site]["b"], 2 * np.asarray(plain[site]["b"]), rtol=1e-6)

    # Random ones need to know how large the run's organisms are. Made otherwise: refused.
    one = run.organism_dir(next(iter(run.organisms)))
    one.rename(run.path / "away")
    refused(argv[:-1], 2, one.name, "is not trained", "ia-jax organisms")
    (run.path / "away").rename(one)
    monkeypatch.setattr(planned, "MAKINGS", planned.MAKINGS | {"rank_one": Making("", lr=3.0)})
    refused(argv[:-1], 2, "null_3", "other settings")
