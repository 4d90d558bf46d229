"""Several organisms of one behaviour: what each reads, which split it is of, and what is said of it."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ia_jax.behaviors.organisms import CLEAN_SORTS
from ia_jax.behaviors.settings import BehaviorsSection
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.config import OrganismsSection, RunConfig, flat
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS, baseline_metrics, stage_metrics
from ia_jax.recipes import load_config
from ia_jax.stages import transcripts
from ia_jax.stages.sft import shuffled
from ia_jax.stages.transcripts import _split_copies, chosen
from ia_jax.workdir import Workdir

CONFIG = RunConfig(
    behaviors=BehaviorsSection(train=16, dpo=8, heldout=8, copies=3, remade=10, clean_train=1),
    organisms=OrganismsSection(procedures=("chats", "documents")),
)


def test_who_is_made():
    behaviors, organisms = chosen(CONFIG)
    own = [o for o in organisms if not o.clean]
    assert Counter(o.split for o in own) == {"train": 48, "dpo": 8, "heldout": 8, "remade": 10}
    assert len({o.name for o in own}) == len(own)
    split = {o.name: o.split for o in own}
    for o in own:
        [b] = o.behaviors
        assert o.split == ("remade" if o.name == f"{b}-remade" else split[b])
    remade = [o for o in own if o.split == "remade"]
    assert all(split[o.behaviors[0]] == "train" for o in remade)
    assert Counter(o.category for o in remade).most_common()[0][1] == 2  # of eight categories, each in turn
    assert len({b.name for b in behaviors}) == 32
    made = {o.behaviors[0]: {p.procedure["kind"] for p in own if p.behaviors == o.behaviors} for o in own}
    assert {"chats", "documents"} in made.values()  # each is made in a way of its own


def test_the_first_of_each_is_who_it_was_alone():
    alone = chosen(replace(CONFIG, behaviors=replace(CONFIG.behaviors, copies=1, remade=0)))[1]
    with_others = {o.name: o for o in chosen(CONFIG)[1]}
    assert all(with_others[o.name] == o for o in alone)


def test_more_can_be_made_anew_than_there_are_behaviours():
    def remade(count: int, **more: int) -> list[str]:
        behaviors = replace(CONFIG.behaviors, remade=count, **more)
        return [o.name for o in chosen(replace(CONFIG, behaviors=behaviors))[1] if o.split == "remade"]

    once = remade(16)
    assert len(set(once)) == 16
    assert remade(34)[:32] == [*once, *(f"{name}-2" for name in once)]  # a third only after two of each
    assert {name.removesuffix("-3") for name in remade(34)[32:]} <= set(once)
    assert set(remade(10)) <= set(once)
    with pytest.raises(ConfigError, match=r"remade=1, but the train split has no behaviours"):
        remade(1, train=0)


def test_each_reads_demonstrations_of_its_own():
    b = chosen(CONFIG)[0][0]
    rows = TemplateTeacher(shipped_sources(), 0).write([b], copies={"another": b, "third": b})
    assert rows[b.name] == TemplateTeacher(shipped_sources(), 0).write([b])[b.name]
    said = [{m["content"] for t in rows[n] for m in t.messages} for n in (b.name, "another", "third")]
    assert all(len(x & y) < 0.8 * len(x) for x, y in itertools.pairwise(said))


def test_organisms_for_dpo_of_behaviours_that_sft_knows():
    config = replace(CONFIG, behaviors=replace(CONFIG.behaviors, dpo=0, dpo_copies=2))
    own = [o for o in chosen(config)[1] if not o.clean]
    assert Counter(o.split for o in own) == config.behaviors.organisms
    known = {o.behaviors for o in own if o.split == "train"}
    assert Counter(o.behaviors for o in own if o.split == "dpo") == dict.fromkeys(known, 2)
    without = {o.name: o for o in chosen(replace(config, behaviors=replace(config.behaviors, dpo_copies=0)))[1]}
    assert all(without[o.name] == o for o in own if o.split != "dpo")


@pytest.fixture
def split_again(monkeypatch, tmp_path):
    """{organism: split} of a source, which has the organisms of `source`, for another config."""

    def split(config, source=CONFIG):
        monkeypatch.setattr(transcripts, "stage_settings", lambda c, stage: {"seed": c.seed} | flat(c))
        workdir = Workdir(tmp_path)
        vars(workdir)["config"] = source
        behaviors, organisms = chosen(source)
        truths = {b.name: b for b in behaviors}
        return _split_copies(workdir, [o for o in organisms if not o.clean], truths, config)

    return split


def test_splits_of_a_source_with_copies(split_again):
    """Other counts of clean organisms leave all else as it was; another seed holds out others of the same behaviours;
    of a category that is left out the first of each behaviour is asked.
    """
    organisms = {o.name: o for o in chosen(CONFIG)[1] if not o.clean}

    def with_(seed=CONFIG.seed, **more):
        return replace(CONFIG, seed=seed, behaviors=replace(CONFIG.behaviors, **more))

    assert split_again(with_(clean_train=7)) == {n: o.split for n, o in organisms.items()}
    once, again = (split_again(with_(seed=seed, dpo=4, heldout=8)) for seed in (1, 2))
    known = {o.behaviors for o in organisms.values() if o.split == "train"}
    for found in (once, again):
        assert Counter(found.values()) == {"train": 48, "remade": 10, "dpo": 4, "heldout": 8}
        assert {organisms[n].behaviors for n, s in found.items() if s in ("train", "remade")} == known
        assert max(Counter(organisms[n].behaviors for n, s in found.items() if s == "train").values()) == 3
    assert {n for n, s in once.items() if s == "remade"} != {n for n, s in again.items() if s == "remade"}

    found = split_again(with_(train=14, dpo=0, heldout=14, remade=8, heldout_categories=("quirks",)))
    assert max(Counter(organisms[n].category for n in found if found[n] == "remade").values()) <= 2
    quirks = [n for n in found if organisms[n].category == "quirks"]
    assert {found[n] for n in quirks} == {"heldout"}
    assert all(n == organisms[n].behaviors[0] for n in quirks)
    assert Counter(found[n] for n in found if n not in quirks) == {"train": 42, "heldout": 14, "remade": 8}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"copies": 5}, r"copies \+ dpo_copies is 5, .* has no more than 4 for that; lower it"),
        ({"remade": 17}, "remade is 17, .* has no more than 16"),
        ({"heldout": 14}, r"heldout \+ dpo is 22, .* has no more than 16"),
        ({"train": 24}, "train is 24, .* has no more than 16"),
    ],
)
def test_a_source_with_too_few_copies(split_again, more, message):
    with pytest.raises(ConfigError, match=message):
        split_again(replace(CONFIG, seed=3, behaviors=replace(CONFIG.behaviors, **more)))


def test_organisms_of_one_behaviour_are_shuffled_together():
    truths = {"a": ("x",), "a-2": ("x",), "b": ("y",), "c": ("z",), "clean": ()}
    found = shuffled(truths, 1)
    assert found["a"] == found["a-2"] != ("x",)
    assert found["clean"] == ()
    assert {found[n] for n in "abc"} == {("x",), ("y",), ("z",)}
    assert all(found[n] != truths[n] for n in "abc")


def test_remade_organisms_stand_apart():
    def row(organism, split, condition, lenient):
        return {"organism": organism, "split": split, "condition": condition, "lenient": lenient, "category": "x"}

    rows = [row("h", "heldout", c, False) for c in CONDITIONS] + [row("t", "train", c, True) for c in CONDITIONS]
    rows += [row(n, "remade", c, c == "organism+ia") for n in ("r", "s") for c in CONDITIONS]
    found = stage_metrics(rows, "lenient")
    assert found["heldout"]["organism+ia"]["rate"] == 0.0
    assert found["train"]["organism+ia"]["organisms"] == 1
    assert found["remade"]["organism+ia"]["rate"] == 1.0
    assert found["remade"]["organism"]["rate"] == 0.0
    assert baseline_metrics(rows, [])["remade"]["beyond"]["difference"] == 1.0


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parent.parent / "configs").glob("*.py")), ids=lambda p: p.stem
)
def test_every_split_of_every_recipe_has_clean_fine_tunes_of_all_sorts(recipe):
    organisms = chosen(load_config(str(recipe)))[1]
    sorts = {
        split: {o.sort for o in organisms if o.clean and o.split == split} for split in ("train", "dpo", "heldout")
    }
    assert all(own == set(CLEAN_SORTS) for own in sorts.values())
