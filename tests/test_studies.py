"""Studies: which directories arms share, mistakes in them, and what they cost."""

from pathlib import Path

import pytest

from ia_jax.errors import ConfigError
from ia_jax.planning.batches import Batches
from ia_jax.planning.hours import stage_chip_hours
from ia_jax.recipes import load_config, load_study
from ia_jax.stages.planned import Planned, planned
from ia_jax.studies import running
from ia_jax.studies.cost import Machine, as_text, costs
from ia_jax.studies.layout import runs_of
from tests import study_files
from tests.study_files import ARMS

write = study_files.write  # a fixture
ROOT = Path(__file__).parent.parent


def test_what_is_the_same_is_one_directory(write, tmp_path):
    found = {(r.arm.name, r.seed): r for r in runs_of(load_study(write(ARMS)), tmp_path / "out")}
    place = {key: r.place.path.name for key, r in found.items()}
    shared = {key: r.organisms.path.name for key, r in found.items()}
    assert [place[n, 1547] for n in ("sft", "dpo", "beta", "hot")] == ["sft"] * 4
    assert (place["few", 1], place["few", 2], place["left_out", 1547]) == ("few_1", "few_2", "left_out")
    assert {shared[n, 1547] for n in ("sft", "dpo", "beta", "hot", "left_out")} == {"base"}
    assert shared["few", 1] == shared["few", 2] == "base"  # seeds split the same organisms otherwise
    assert (shared["small", 1547], shared["own", 1], shared["own", 2]) == ("small", "own_1", "own_2")
    assert found["left_out", 1547].organisms.config.behaviors.heldout_categories == ()
    names = {
        n: (found[n, 1547].config.preferences.name, found[n, 1547].config.dpo.name)
        for n in ARMS
        if n[:3] != "few" and n != "own"
    }
    assert names["dpo"] == ("dpo", "dpo")
    assert names["beta"][0] == "dpo" != names["hot"][0]
    assert len({names[n][1] for n in ("sft", "dpo", "beta", "hot")}) == 4


def test_names_stay_when_arms_are_added_or_moved_and_a_changed_arm_is_refused(write, tmp_path):
    out, arms = tmp_path / "out", {n: ARMS[n] for n in ("sft", "hot", "few", "small")}
    for run in runs_of(load_study(write(arms)), out):
        run.place.mark()
        run.organisms.mark()
    before = {(r.arm.name, r.seed): r.place.path for r in runs_of(load_study(write(arms)), out)}
    moved = {"new": {"overrides": ("eval.questions=1",)}, **dict(reversed(arms.items()))}
    after = {(r.arm.name, r.seed): r.place.path for r in runs_of(load_study(write(moved)), out)}
    assert after.pop(("new", 1547)) == before["sft", 1547]  # the same SFT, evaluated in another way
    assert after == before
    changed = arms | {"small": {"overrides": ("organisms.lora.rank=4",)}}
    with pytest.raises(ConfigError, match="small was made with other settings than arm 'small' has now"):
        runs_of(load_study(write(changed)), out)
    with pytest.raises(ConfigError, match="base was made with other settings than the base recipe has now"):
        runs_of(load_study(write(arms, "organisms.epochs=2")), out)


@pytest.mark.parametrize(
    ("arms", "settings", "message"),
    [
        ({}, {}, "study.arms is empty"),
        ({"a": {"overrides": ("sft.stepz=1",)}}, {}, r"study\.arms\.a: config\.sft\.stepz is not a known setting"),
        ({"a": {"seed": 1}}, {}, r"study\.arms\.a\.seed is not a known setting"),
        ({"a": {"seeds": (1, 1)}}, {}, r"study\.arms\.a\.seeds has 1 twice"),
        ({"a/b": {}}, {}, "the name 'a/b' must be letters"),
        ({"a": {}}, {"reference": "b"}, "study.reference 'b' is no arm; there are: a"),
        ({"a": {}}, {"split": "train"}, "study.split 'train' unknown; choose from heldout, unseen, remade"),
        ({"a": {}}, {"base": "nowhere.py"}, "study.base='nowhere.py' is no file"),
        ({"a": {"dpo": True, "overrides": ("behaviors.dpo=0",)}}, {}, r"study\.arms\.a\.dpo is set, but"),
    ],
)
def test_a_mistake_in_a_study_is_one_line(write, arms, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_study(write(arms, **settings))


def test_the_studies_of_the_repository_are_valid(tmp_path):
    """Every arm's config is checked; how many directories they need: runs, and organisms that they share."""
    folder = ROOT / "configs" / "studies"
    places = {}
    for file in sorted(folder.rglob("*.py")):
        found = runs_of(load_study(str(file)), tmp_path)
        count = (len(found), len({r.place.path for r in found}), len({r.organisms.path for r in found}))
        places[file.relative_to(folder).with_suffix("").as_posix()] = count
    assert len(places) == 23
    # Twenty-two arms, of which all variants of DPO go on from one of four SFTs.
    assert places["dpo"] == places["qwen3_8b/dpo"] == places["llama33_70b/dpo"] == (22, 4, 1)
    assert places["seeds"] == (10, 5, 1)
    assert places["abstention"] == (4, 2, 1)
    assert (places["diversity"], places["qwen3_8b/diversity"]) == ((8, 7, 1), (10, 10, 1))
    assert places["scale"] == (5, 5, 5)
    assert places["organisms"] == (9, 9, 9)


def test_small_studies_share_a_workdir(tmp_path):
    """No two have an arm of one name with other settings; the recipe itself is in one directory."""
    main = set()
    for file in sorted((ROOT / "configs" / "studies").glob("*.py")):
        study = load_study(str(file))
        if "smollm2_science" not in study.section.base:
            continue
        for run in runs_of(study, tmp_path):
            run.place.mark()
            run.organisms.mark()
            settings = [o for o in run.arm.section.overrides if not o.startswith("eval.")]
            if not settings and run.seed == 1547:
                main.add(run.place.path.name)
    assert len(main) == 1
    assert len(list((tmp_path / "organisms").iterdir())) == 1 + 8  # and those that are made in eight other ways


def _counted(config, stage):
    return Batches(
        steps=100, organisms=2, rows=1, length=256, targets=64, examples=4, tokens=40000, supervised=9000, slots=200
    )


def test_a_dry_run_counts_each_directory_once(write, tmp_path):
    arms = {n: ARMS[n] for n in ("sft", "dpo", "beta", "few")}
    study = load_study(write(arms, "model.name=smollm2"))
    found = runs_of(study, tmp_path / "out")
    machine = Machine("cpu", lambda dtype: 1e11, 2)
    priced = costs(found, study, machine, _counted)
    trained = [
        s for c in priced for s in c.left if not c.job.place.config.organisms.source or s not in running.ORGANISMS
    ]
    assert trained.count("organisms") == 1
    assert trained.count("sft") == 3
    assert trained.count("dpo") == 2
    assert all(c.seconds is not None and c.seconds > 0 for c in priced)
    assert "on this machine" in as_text(study, found, priced)
    assert not (tmp_path / "out").exists()
    assert {c.unknown for c in costs(found[:1], study, Machine("gpu", lambda dtype: 1e11, 2), _counted)} == {
        "nothing was timed on a GPU yet"
    }


def test_arms_that_differ_in_their_adapter_are_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(Planned, "batches", lambda self, stage: seen.append(self.config.sft) or _counted(None, stage))
    count, recipe = planned(), str(ROOT / "configs" / "smollm2_study.py")
    for change in ("sft.lora.rank=2", "sft.lora.layers=3:4", "sft.contrast=1.0", "sft.steps=7"):
        count(load_config(recipe, [f"--config.{change}"]), "sft")
    assert [(c.contrast, c.steps) for c in seen] == [(0, 150), (1.0, 150), (0, 7)]


def test_chip_hours_by_hand():
    """One chip, so no links: at least what products of the frozen base, forward and back, take at its peak; and no more
    than a few times that, whatever bounds it."""
    config = load_config(str(ROOT / "configs" / "qwen3_0p6b.py"))
    batches = _counted(config, "sft")
    hours = stage_chip_hours(config, "v5e:1x1", "sft", batches)
    matrices = 28 * (1024 * (2048 + 1024 + 1024) + 2048 * 1024 + 3 * 1024 * 3072)
    least = batches.steps * batches.size * 4 * matrices / 197e12 / 3600
    assert least < hours < 10 * least
    with pytest.raises(ConfigError, match=r"v5e:2x2 has 4 chips, config.mesh 1"):
        stage_chip_hours(config, "v5e:2x2", "sft", batches)
