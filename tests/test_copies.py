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
from ia_jax.config import OrganismsSection, RunConfig
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS, baseline_metrics, stage_metrics
from ia_jax.recipes import load_config
from ia_jax.stages.sft import shuffled
from ia_jax.stages.transcripts import _with_copies, chosen

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


def test_splits_of_a_source_with_copies():
    everyone = [o for o in chosen(CONFIG)[1] if not o.clean]
    one = next(o for o in everyone if o.split == "remade").behaviors[0]
    found = _with_copies(everyone, {one: "train"})
    assert found == {one: "train", f"{one}-2": "train", f"{one}-3": "train", f"{one}-remade": "remade"}
    assert _with_copies(everyone, {one: "heldout"}) == {one: "heldout"}
    assert _with_copies(everyone, {one: "dpo"}) == {one: "dpo"}
    assert _with_copies(everyone, {}) == {}


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
