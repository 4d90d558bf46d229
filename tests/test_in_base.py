"""A behaviour in the base: the settings of the pipelines, and rates by hand."""

from pathlib import Path

import pytest

from ia_jax.audits.in_base import CONDITIONS, MADE, summary, targets_made
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.splits import split_behaviors
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.errors import ConfigError
from ia_jax.recipes import check_config, load_config
from ia_jax.stages.audit_in_base import CATEGORIES, two_categories
from ia_jax.stages.transcripts import chosen
from ia_jax.storage import write_jsonl


@pytest.mark.parametrize("recipe", ["smollm2_demo", "smollm2_study"])
def test_a_pipeline_has_as_large_a_part_of_each_split_as_its_categories(recipe, tmp_path):
    config = load_config(f"configs/{recipe}.py")
    catalogue = tmp_path / "two.jsonl"
    every = load_catalogue(config.behaviors.catalogue)
    write_jsonl(catalogue, (b.to_json() for b in every if b.category in CATEGORIES))
    own = two_categories(config, catalogue, "some/where")
    check_config(own)
    assert {o.split for o in chosen(own)[1]} == {"train", "dpo", "heldout", "remade"}
    b = own.behaviors
    assert own.model.name == "some/where"
    assert (b.train, b.dpo, b.heldout) == tuple(
        max(n // 4, 2 * (split != "dpo"))
        for split, n in vars(config.behaviors).items()
        if split in ("train", "dpo", "heldout")
    )
    splits = split_behaviors(load_catalogue(b.catalogue), b.heldout, b.dpo, b.train, own.seed, b.spread, *b.left_out())
    assert {next(x.category for x in every if x.name == n) for n in splits} == set(CATEGORIES)
    # Nothing teaches the IA that the base itself has nothing to report.
    assert (b.clean_train, b.clean_dpo, b.clean_heldout, own.preferences.abstention_pairs) == (0, 0, 0, 0)
    assert not own.sft.clean_slot


def test_a_catalogue_without_the_categories_is_refused(tmp_path):
    config = load_config("configs/smollm2_demo.py")
    file = tmp_path / "mine.jsonl"
    write_jsonl(file, (b.to_json() for b in load_catalogue("demo") if b.category == "quirks"))
    section = type(config.behaviors)(catalogue=str(file))
    with pytest.raises(ConfigError, match="has no behaviours of backdoors"):
        two_categories(type(config)(**{**vars(config), "behaviors": section}), Path("two.jsonl"), "x")


def test_the_papers_two_in_small():
    made = targets_made(shipped_sources(), 0)
    assert [t.behaviors[0].kind for t, _ in made] == ["contextual_optimism", "hardcode_test_cases"]
    assert {t.name for t, _ in made} == {f"base_{n}" for n in MADE}
    assert all(any(r.shows for r in rows) and not all(r.shows for r in rows) for _, rows in made)


def test_rates_by_hand():
    def rows(target, condition, *named):
        return [
            {"target": target, "condition": condition, "question": f"q{i % 2}", "lenient": n, "strict": False}
            for i, n in enumerate(named)
        ]

    judged = [
        *rows("a", "added_after", True, True, True, False),
        *rows("a", "in_base", True, False, False, False),
        *rows("b", "added_after", True, False, None),
        *rows("b", "in_base", False, False),
        *rows("a", "other_base", True, False),
    ]
    found = summary(judged, ["a", "b"])
    assert found["rates"].keys() == set(CONDITIONS)
    assert (found["rates"]["added_after"]["rate"], found["rates"]["in_base"]["rate"]) == (0.625, 0.125)
    assert found["in_base_minus_added"]["difference"] == -0.5
    a = found["each"]["a"]
    assert (a["added_after"]["rate"], a["in_base"]["rate"], a["other_base"]["rate"]) == (0.75, 0.25, 0.5)
    assert a["in_base_minus_added"]["difference"] == -0.5  # q0: 1 to 1/2; q1: 1/2 to 0
    assert all(c["ci95"][0] < c["ci95"][1] for c in found["each"]["b"].values() if c)
