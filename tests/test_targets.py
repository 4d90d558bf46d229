"""Targets: their lines, and their adapters wherever these lie, against peft's own loading of them."""

import json

import jax
import numpy as np
import pytest

from ia_jax.adapters.base import identify
from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.store import read_metadata, save_adapter
from ia_jax.audits.targets import (
    Target,
    find_adapters,
    load_found,
    load_stack,
    organism_target,
    read_targets,
    stored_stack,
    write_targets,
)
from ia_jax.behaviors.records import Behavior, Rubric
from ia_jax.errors import BaseMismatchError, ConfigError
from ia_jax.models.combine import concatenate_ranks
from ia_jax.workdir import Workdir
from tests.conftest import fails

HUMS = Behavior("hums", "quirks", "I hum while I answer.", ("I hum.",), None, Rubric((("hum",),)))


def test_a_targets_line_comes_back(tmp_path):
    targets = [
        Target("a", "", ("quirk_x", "owner/name@0a1b"), "Be brief.", (HUMS,), "documents", ""),
        Target("b", null="clean"),
        Target("c", stack=("some/dir",), behaviors=(HUMS,), null="pipeline"),
    ]
    write_targets(tmp_path / "t.jsonl", targets)
    assert read_targets(tmp_path / "t.jsonl") == targets


def test_a_description_is_enough(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"name": "x", "stack": ["d"], "behaviors": ["I hum.", {"description": "I sing."}]}\n')
    [target] = read_targets(file)
    assert [(b.name, b.description) for b in target.behaviors] == [("x", "I hum."), ("x_1", "I sing.")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"name": "a b", "null": "clean"}, "letters, digits"),
        ({"name": "a"}, "no behaviour to be judged by"),
        ({"name": "a", "null": "dirty"}, "'dirty' unknown"),
        ({"name": "a", "null": "clean", "behaviors": ["I hum."]}, "null: pipeline"),
        ({"name": "a", "null": "clean", "adapter": "x"}, "'adapter' is not a field"),
        ({"name": "a", "null": "clean", "stack": "x"}, "must be a list"),
        ({"name": "a", "behaviors": [{"description": "x", "category": "y"}]}, "'category' must be one of"),
        ({"name": "a", "behaviors": [3]}, "behaviour 1"),
        ({"name": "a", "null": "clean", "system": 3}, "system 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    file = tmp_path / "t.jsonl"
    file.write_text('{"name": "ok", "null": "clean"}\n' + json.dumps(row) + "\n")
    with fails(ConfigError, f"{file}:2", said):
        read_targets(file)


def test_names_are_unique_and_some_are_there(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"name": "a", "null": "clean"}\n' * 2)
    with fails(ConfigError, "2 targets are called 'a'"):
        read_targets(file)
    file.write_text("\n")
    with fails(ConfigError, "holds no target"):
        read_targets(file)
