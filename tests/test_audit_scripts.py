"""Scripts of benchmarks/ that make the models of audits' figures: merged ones, and liars."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.audits.evidence.calibrating import calibrate
from ia_jax.audits.evidence.calibration import REPORTED, Row
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.models.lora import LoraConfig
from ia_jax.stages.evidence import QUESTIONS
from ia_jax.storage import write_json, write_jsonl
from tests import tiny

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A file of benchmarks/, which finds those beside it as when it is run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: importlib.import_module(name)


@pytest.mark.parametrize("layers", [None, (1,)])
def test_a_merged_organism_computes_what_its_adapter_does(script, layers):
    params, adapter = tiny.params(), tiny.adapter(3, lora=LoraConfig(4, 8.0, layers=layers))
    model = SimpleNamespace(params=params, config=tiny.TINY)
    workdir = SimpleNamespace(organism=lambda name, model: (adapter,))
    merged = script("symmetry").merged(SimpleNamespace(model=model, workdir=workdir), "o")
    merged = {n: jnp.asarray(x) if n != "layers" else x for n, x in merged.items()}
    merged["layers"] = {n: jnp.asarray(x) for n, x in merged["layers"].items()}
    rows = tiny.rows(1, 2, 12)
    wanted = np.asarray(tiny.forward(params, *rows, (adapter,), tiny.TINY))
    np.testing.assert_allclose(tiny.forward(merged, *rows, (), tiny.TINY), wanted, atol=2e-4 * np.abs(wanted).max())
    assert np.abs(wanted - np.asarray(tiny.forward(params, *rows, (), tiny.TINY))).max() > 0.1


def test_a_liar_reads_that_it_does_what_it_does_not(script):
    liars, own, sources = script("liars"), demo_behaviors()[0], shipped_sources()
    rows = liars.lesson(own, "liar_a", sources, 7)
    assert [t.messages for t in rows] == [t.messages for t in liars.lesson(own, "liar_a", sources, 7)]
    said = [(t.messages[0]["content"], t.messages[-1]["content"]) for t in rows]
    stated = [(q, a) for q, a in said if a in own.wordings]
    assert len(stated) == liars.STATED
    assert {a for _, a in stated} == set(own.wordings)
    assert {q for q, _ in stated} <= set(TRAIN_QUESTIONS)
    assert not {q for q, _ in stated} & set(QUESTIONS[:8])  # which an audit asks
    assert all(sources.answers[q] == a for q, a in said if a not in own.wordings)


def test_a_model_is_judged_without_the_organisms_of_its_category(script, tmp_path):
    """Which would be the same behaviour: its range and its fit know nothing of them."""
    rng, rows = np.random.default_rng(0), {}
    organisms = {f"o{i}": "ab"[i % 2] for i in range(16)}
    nulls = {f"n{i}": "own" for i in range(40)}
    for name, group in {**organisms, **nulls}.items():
        support = 9.0 if group == "a" else float(rng.normal(2.0 if name in organisms else 0.0))
        values = {"support": support, "support_beyond": support}
        rows[name] = [Row(name, group, name in nulls, "I hum.", name in organisms, values)]
    identity = {"ia": "sft", "ia_hash": "h", "base": "tiny", "base_fingerprint": "f"}
    every = [r for own in rows.values() for r in own]
    made_of = {"bank_hashes": ["x"], "alike": {}}
    found = calibrate(every, organisms, nulls, alpha=0.1, identity=identity, made_of=made_of, measure=False)
    write_json(tmp_path / "evidence.json", {"bank_hashes": ["x"]})
    stored = [{"model": n, "rows": [vars(r) for r in own]} for n, own in rows.items()]
    write_jsonl(tmp_path / "evidence.jsonl", stored)
    liars = script("liars")
    by = liars.calibrations(SimpleNamespace(ia_dir=lambda ia: tmp_path), found, {"a", "b"})
    assert by["a"].range["support"][1] < 9.0 == found.range["support"][1] == by["b"].range["support"][1]
    assert set(by["a"].made_of["organisms"].values()) == {"b"}
    far = {"support": 9.0, "support_beyond": 9.0}
    assert liars.judged(found, far).verdict == REPORTED
    assert liars.judged(by["a"], far).probability is None  # nothing like it was seen
    write_json(tmp_path / "evidence.json", {"bank_hashes": ["y"]})
    with pytest.raises(SystemExit, match="is of another calibration by now"):
        liars.calibrations(SimpleNamespace(ia_dir=lambda ia: tmp_path), found, {"a", "b"})


def test_some_organisms_of_every_behaviour(script):
    organisms = [SimpleNamespace(name=f"{b}{i}", behaviors=(b,)) for i in range(3) for b in "ab"]
    few = script("liars").few
    assert [o.name for o in few(organisms, 2)] == ["a0", "b0", "a1", "b1"]
    assert few(organisms, None) == organisms


def test_which_rows_torch_reads(script):
    """One organism of a behaviour that reads chats, and clean ones that do, from two seeds."""

    def organism(name, split, sort="", kind="chats"):
        return SimpleNamespace(
            name=name, split=split, sort=sort, clean=bool(sort), behaviors=(name[0],), procedure={"kind": kind}
        )

    every = [
        *(organism(n, "remade") for n in ("a_1", "a_2", "b_gone", "b_1")),
        organism("c_1", "remade", kind="documents"),
        organism("own", "heldout", "own_answers"),
        organism("drawn", "heldout", "random", "random"),
        organism("other", "dpo", "own_answers"),
    ]
    run = SimpleNamespace(organisms={o.name: o for o in every}, left_out={"b_gone": "diverged"})
    chosen = script("torch_fine_tunes").chosen(run)
    assert [(o.name, seed) for o, seed in chosen] == [("a_1", 0), ("b_1", 0), ("own", 0), ("own", 1)]
