"""docs/architecture.md names what is there: the floors that are checked, and files and names that exist."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_floors_are_those_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [re.split(r"[|:]", floor) for floor in contracts[0]["layers"]]
    there = [[m for part in floor if (m := part.strip()) and not m.startswith("(")] for floor in checked]
    table = re.search(r"\| floor \|.*?\n\n", PAGE, re.DOTALL)
    assert table is not None
    shown = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table[0].strip().splitlines()[2:]]
    assert [f for f in shown if f] == [f for f in there if f]


def test_files_and_names_exist():
    paths = set(re.findall(r"`((?:ia_jax|configs)/[\w/.]*)`", PAGE)) - {"ia_jax/stages/NAME.py"}
    assert len(paths) > 20
    assert [p for p in paths if not (ROOT / p).exists()] == []
    named = re.findall(r"`(\w+)`(?:, `(\w+)` and `(\w+)`)? (?:in|of) `(ia_jax/[\w/]+\.py)`", PAGE)
    assert len(named) >= 8
    missing = [
        (name, file) for *names, file in named for name in filter(None, names) if name not in (ROOT / file).read_text()
    ]
    assert missing == []
