"""Organisms that fail their behaviour check stay out of IA training unless the config keeps them, and are counted."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ia_jax.behaviors.organisms import organism_of
from ia_jax.behaviors.records import Behavior
from ia_jax.config import OrganismsSection, RunConfig
from ia_jax.errors import IAError
from ia_jax.recipes import load_config
from ia_jax.stages import selection
from ia_jax.stages.organisms import check_report
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]

CHECKS = [
    {"organism": "a", "category": "quirks", "ok": True},
    {"organism": "b", "category": "quirks", "ok": False},
    {"organism": "c", "category": "backdoors", "ok": False},
    {"organism": "d", "category": "quirks", "ok": False},
]


@pytest.fixture
def context(tmp_path, monkeypatch):
    def make(keep_failed):
        splits = {"a": "train", "b": "train", "c": "dpo", "d": "heldout"}
        category = {c["organism"]: c["category"] for c in CHECKS}
        behaviors = {n: Behavior(n, category[n], f"I {n}.", (), None) for n in splits}
        workdir = Workdir(tmp_path)
        write_jsonl(workdir.behaviors_file, (b.to_json() for b in behaviors.values()))
        write_jsonl(
            workdir.organisms_file, (organism_of(behaviors[n], "m", s, {}).to_json() for n, s in splits.items())
        )
        write_jsonl(workdir.checks_file, CHECKS)
        monkeypatch.setattr(selection, "are_complete", lambda directories: [True] * len(directories))
        return SimpleNamespace(workdir=workdir, config=RunConfig(organisms=OrganismsSection(keep_failed=keep_failed)))

    return make


def test_failed_organisms_are_kept_out_by_default(context):
    assert RunConfig().organisms.keep_failed is False
    assert [b.name for b in selection.usable(context(False), "train")] == ["a"]
    assert [b.name for b in selection.usable(context(True), "train")] == ["a", "b"]


def test_a_split_without_a_usable_organism(context):
    with pytest.raises(IAError, match="no organism of the dpo split passed its behaviour check"):
        selection.usable(context(False), "dpo")
    assert [b.name for b in selection.usable(context(True), "dpo")] == ["c"]


def test_they_are_counted():
    passed = "behaviour check: 1 of 4 organisms passed (backdoors 0 of 1, quirks 1 of 3)"
    assert check_report(CHECKS, False) == f"{passed}; 3 did not and are kept out of IA training"
    assert check_report(CHECKS, True) == f"{passed}; 3 did not and are trained on all the same"
    assert check_report(CHECKS[:1], False) == "behaviour check: 1 of 1 organisms passed (quirks 1 of 1)"


def test_recipes_say_which():
    assert load_config(str(ROOT / "configs" / "smollm2_demo.py")).organisms.keep_failed is True  # as its figures were
    assert load_config(str(ROOT / "configs" / "paper.py")).organisms.keep_failed is False
