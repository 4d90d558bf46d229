"""The floors of pyproject.toml hold, and an import that looks up is found. And files can be read in a sitting."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")  # a tool of development, as ruff is

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "ia_jax", tmp_path / "ia_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(directory):
    code = "import sys; from importlinter.cli import lint_imports_command as lint; sys.path.insert(0, '.'); lint()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=directory, env={"COLUMNS": "200"}, capture_output=True, text=True)


def test_the_floors_hold(copy):
    found = lint(copy)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout


@pytest.mark.parametrize(
    ("file", "line", "chain"),
    [
        ("models/config.py", "from ia_jax.data import plans", "ia_jax.models.config -> ia_jax.data.plans"),
        # Inside a function, and for a type's name alone, it is an upward import too.
        ("claude/calls.py", "def f():\n    import ia_jax.stages.order", "ia_jax.claude.calls -> ia_jax.stages.order"),
        (
            "judging/protocol.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ia_jax.workdir import Workdir",
            "ia_jax.judging.protocol -> ia_jax.workdir",
        ),
    ],
)
def test_an_import_that_looks_up_is_found(copy, file, line, chain):
    path = copy / "ia_jax" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = lint(copy)
    assert found.returncode == 1
    assert chain in found.stdout


def test_a_new_package_has_to_say_where_it_stands(copy):
    (copy / "ia_jax" / "helpers").mkdir()
    (copy / "ia_jax" / "helpers" / "__init__.py").touch()
    found = lint(copy)
    assert found.returncode == 1
    assert "helpers" in found.stdout


def test_files_can_be_read_in_a_sitting():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("ia_jax", "benchmarks", "configs", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert long == {}
