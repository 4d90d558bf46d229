"""docs/paper.md: its commands are there, no study is forgotten, and no interval stands in it that was not measured."""

import re
from pathlib import Path

from ia_jax.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text().replace("`STUDY/", "`configs/studies/")


def test_every_recipe_and_command_is_there():
    named = set(re.findall(r"configs/[\w/]+\.py", PAGE)) - {"configs/studies/qwen3_8b/NAME.py"}
    assert named
    assert [n for n in named if not (ROOT / n).exists()] == []
    assert set(re.findall(r"`ia-jax ([a-z-]+)", PAGE)) <= set(COMMANDS)


def test_every_study_has_a_row():
    studies = {str(p.relative_to(ROOT)) for p in (ROOT / "configs" / "studies").glob("**/*.py")}
    assert sorted(s for s in studies if s not in PAGE) == []


def test_every_interval_was_measured():
    """Each result is copied from a page that says how it was measured."""
    pages = ("science.md", "study.md", "demo.md", "audits.md")
    measured = "".join((ROOT / "docs" / name).read_text() for name in pages)
    intervals = set(re.findall(r"\b(\d+-\d+)\)", PAGE))
    assert len(intervals) > 10
    assert sorted(i for i in intervals if f"{i})" not in measured) == []
