"""IAs of every kind through the stages: on some layers, as a vector, with dropout; trained, stored, asked, resumed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters.store import load_adapter, read_metadata
from ia_jax.behaviors.organisms import CLEAN_TARGETS
from ia_jax.behaviors.records import Behavior
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.models.lora import PROJECTIONS
from ia_jax.stages import sft
from ia_jax.stages.ia_training import other_descriptions, sft_texts
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests.runs import ORGANISMS, part_of

KINDS = {
    "vector": ("sft.lora.kind=vector", "sft.lora.layers=(1,)", f"sft.lora.targets={PROJECTIONS}"),
    "one layer": ("sft.lora.layers=0:1",),
    "dropout": ("sft.lora.dropout=0.5",),
}
CONTRAST = ("sft.contrast=0.5", "sft.length=192", "sft.per_slot=1")


def trained(finished, directory, *overrides):
    copy = part_of(finished, directory, *ORGANISMS)
    return copy, [f"--workdir={copy}", *(f"--config.{o}" for o in overrides)]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "vector" else [pytest.mark.slow]) for k in KINDS])
def test_an_ia_of_each_kind_goes_through_all_stages(finished, tmp_path, kind, capsys):
    copy, argv = trained(finished, tmp_path / "w", *KINDS[kind])
    assert cli.main(["run", *argv]) == 0
    run = open_workdir(copy)
    for name in ("sft", "dpo"):
        adapter, metadata = load_adapter(run.ia_dir(name) / "adapter")
        leaves = {f"{t}.{f}": np.asarray(x) for t, ab in adapter.items() if isinstance(ab, dict) for f, x in ab.items()}
        assert all(np.isfinite(x).all() for x in leaves.values())
        if kind == "vector":
            assert list(leaves) == ["residual.v"]
            assert leaves["residual.v"].shape == (1, 64)
            assert metadata.layers == (1,)
        elif kind == "one layer":
            assert {x.shape[0] for x in leaves.values()} == {1}
            assert metadata.layers == (0,)
        else:
            assert metadata.layers is None
    assert read_metadata(run.ia_dir("sft") / "adapter").content_hash != (
        read_metadata(open_workdir(finished).ia_dir("sft") / "adapter").content_hash
    )
    assert run.metrics()["ias"] == {"sft": "sft", "dpo": "dpo"}
    capsys.readouterr()
    assert cli.main(["adapters", "verify", f"--workdir={copy}"]) == 0


def test_descriptions_against_those_of_others(finished, tmp_path):
    """The organism's own beside another's. At the first step the IA changes nothing, so DPO's loss is log 2."""
    copy, argv = trained(finished, tmp_path / "w", *CONTRAST)
    assert cli.main(["sft", *argv]) == 0
    rows = [r for r in read_jsonl(copy / "curves.jsonl", "") if r["stage"] == "ia_sft"]
    assert rows[0]["dpo_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[0]["loss"] == pytest.approx(rows[0]["dpo_loss"] + 2 * rows[0]["chosen_nll"], rel=1e-5)
    assert abs(rows[0]["margin"]) < 1e-4 < abs(rows[-1]["margin"])


def test_another_ones_description():
    """Never one's own, nor that of one described alike; of all the others, models without a behaviour among them."""
    one, same, other = (Behavior(n, "quirks", text, (), None) for n, text in zip("abc", ("x", "x", "y"), strict=True))
    told = {"one": (one,), "same": (same,), "other": (other,), "clean": ()}
    drawn = {name: set(other_descriptions(told, name, 300, seed=3)) for name in told}
    nothing = set(CLEAN_TARGETS)
    assert drawn == {
        "one": {"y"} | nothing,
        "same": {"y"} | nothing,
        "other": {"x"} | nothing,
        "clean": {"x", "y"},
    }
    assert other_descriptions(told, "one", 9, 3) == other_descriptions(told, "one", 9, 3)
    with pytest.raises(ConfigError, match=r"sft\.contrast: nothing but one's"):
        other_descriptions({"one": (one,), "same": (same,)}, "one", 3, 3)


def test_several_descriptions_answer_one_question():
    """Different ones, each beside another's; all are used about equally often, and questions as often as with one."""
    one, other = (Behavior(n, "quirks", f"{n}0", tuple(f"{n}{i}" for i in range(1, 4)), None) for n in "ab")
    told = {"one": (one,), "other": (other,)}
    whole = RunConfig()
    config = replace(whole, sft=replace(whole.sft, questions_per_organism=6, answers_per_question=3, contrast=1.0))
    texts = sft_texts(config, told, "one")
    alone = sft_texts(replace(config, sft=replace(config.sft, answers_per_question=1)), told, "one")
    assert [q for q, _ in texts] == [q for q, _ in alone]
    for _, answers in texts:
        assert len({*answers[0::2]}) == 3
        assert {*answers[0::2]} <= {*one.wordings}
        assert {*answers[1::2]} <= {*other.wordings}
        assert len(answers) == 6
    counts = Counter(a for _, answers in texts for a in answers[0::2])
    assert max(counts.values()) - min(counts.values()) <= 1
    many = replace(config, sft=replace(config.sft, answers_per_question=9, contrast=0.0))
    assert all(sorted(answers) == sorted(one.wordings) for _, answers in sft_texts(many, told, "one"))


class Killed(BaseException):
    pass


RESUMED = {**KINDS, "contrast": CONTRAST}


@pytest.mark.parametrize("kind", RESUMED)
def test_one_that_is_killed_goes_on_with_the_same_bits(finished, tmp_path, monkeypatch, kind):
    hashes = []
    for place in ("whole", "killed"):
        copy, argv = trained(finished, tmp_path / place, *RESUMED[kind])
        if place == "killed":
            true, calls = sft.train_step, []

            def step(*args, true=true, calls=calls, **how):
                calls.append(how["dropout"])
                if len(calls) == 4:
                    raise Killed
                return true(*args, **how)

            with monkeypatch.context() as patch:
                patch.setattr(sft, "train_step", step)
                with pytest.raises(Killed):
                    cli.main(["sft", *argv])
            assert set(calls) == {0.5 if kind == "dropout" else 0.0}
        assert cli.main(["sft", *argv]) == 0
        hashes.append(read_metadata(open_workdir(copy).ia_dir("sft") / "adapter").content_hash)
    assert hashes[0] == hashes[1]
