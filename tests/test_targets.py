"""Targets: their lines, and their adapters wherever these lie: what each adds is worked out from the file by hand."""

import json

import numpy as np
import pytest

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import load_adapter, read_metadata, save_adapter
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
from ia_jax.behaviors.organisms import clean_organism
from ia_jax.behaviors.records import Behavior, Rubric
from ia_jax.errors import BaseMismatchError, ConfigError
from ia_jax.models.lora import LoraConfig
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir
from tests.test_peft import QV, Base, adapter, factors, fails, module, write

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


# ------------------------------------------------------------------------------------------ adapters, wherever they lie


def store(directory, seed=0, base=None, name="x", rank=4):
    base = base or Base()
    lora = LoraConfig(rank, 2.0 * rank)
    metadata = AdapterMetadata(name, "organism", base.name, base.fingerprint, rank, lora.alpha, lora.targets)
    save_adapter(directory, adapter(seed, rank), metadata)
    return directory


def delta(tree, projection, layer):
    return np.asarray(tree[projection]["a"][layer]) @ np.asarray(tree[projection]["b"][layer])


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ({"r": 64, "lora_alpha": 128}, 64, 2.0),  # as AuditBench's are on the hub
        ({"r": 128, "lora_alpha": 128}, 128, 1.0),  # their sums with the hardening
        ({"r": 16, "lora_alpha": 32, "use_rslora": True}, 16, 8.0),  # 32 / sqrt(16)
    ],
)
def test_rank_and_scale_are_read_from_each_adapter(tmp_path, settings, rank, scale):
    tensors = factors(QV, rank)
    write(tmp_path / "theirs", tensors, **settings)
    [tree] = load_stack(Target("t", stack=(str(tmp_path / "theirs"),), null="clean"), Base())
    for t, layer in (("q", 0), ("v", 2)):
        stem = f"base_model.model.{module(t, layer)}.lora_"
        wanted = scale * (tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]).T
        np.testing.assert_allclose(delta(tree, t, layer), wanted, rtol=2e-5, atol=2e-5)


def test_a_stack_is_read_in_order_and_stored_once(tmp_path):
    workdir = Workdir(tmp_path / "w")
    one, two = write(tmp_path / "one", factors(QV, 4)), write(tmp_path / "two", factors(QV, 8), r=8, lora_alpha=8)
    store(tmp_path / "ours" / "adapter", seed=3)
    target = Target("t", stack=(str(one), str(tmp_path / "ours"), str(two)), null="clean")
    trees = load_stack(target, Base(), workdir)
    assert [t["q"]["a"].shape[-1] for t in trees] == [4, 4, 8]
    directories = stored_stack(target, Base(), workdir, tmp_path / "cache")
    assert directories[1] == tmp_path / "ours" / "adapter"
    for directory, tree in zip(directories, trees, strict=True):
        stored, _ = load_adapter(directory, Base())
        np.testing.assert_array_equal(delta(stored, "q", 1), delta(tree, "q", 1))
    assert read_metadata(directories[2]).rank == 8
    times = [d.stat().st_mtime_ns for d in directories]
    assert stored_stack(target, Base(), workdir, tmp_path / "cache") == directories
    assert [d.stat().st_mtime_ns for d in directories] == times


def test_an_organism_of_the_workdir_comes_before_a_directory(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "w")
    organism = clean_organism(0, Base().name, "heldout", "own_answers")
    write_jsonl(workdir.behaviors_file, [])
    write_jsonl(workdir.organisms_file, [organism.to_json()])
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "clean_0", factors(QV))
    with fails(ConfigError, "organism clean_0 is not stored", "ia-jax organisms"):
        find_adapters("clean_0", workdir)
    store(workdir.path / "organisms" / "clean_0", name="clean_0")
    assert [f.format for f in find_adapters("clean_0", workdir)] == ["orbax"]
    assert [f.format for f in find_adapters("clean_0")] == ["peft"]
    # Below the workdir before the current directory.
    assert find_adapters("organisms/clean_0", workdir)[0].source == workdir.path / "organisms" / "clean_0"
    target = organism_target(workdir, "clean_0")
    assert (target.null, target.stack, target.made_by) == ("clean", ("clean_0",), "chats")


def test_hub_ids_carry_their_revision(monkeypatch):
    assert find_adapters("owner/some_adapter@0a1b2c") == [("owner/some_adapter", "peft", "0a1b2c")]
    assert find_adapters("owner/some-adapter.v2") == [("owner/some-adapter.v2", "peft", None)]
    asked = []
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda source, **k: asked.append((source, k["revision"])) or 1 / 0
    )
    with pytest.raises(Exception, match="owner/some_adapter: cannot be fetched"):
        load_found(find_adapters("owner/some_adapter@0a1b2c")[0], Base())
    assert asked == [("owner/some_adapter", "0a1b2c")]


def test_what_is_no_adapter_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with fails(ConfigError, "holds no adapter", str(tmp_path / "empty")):
        find_adapters(str(tmp_path / "empty"))
    with fails(ConfigError, "a/b/c", "neither an organism"):
        find_adapters("a/b/c")
    other = Base(name="org/other", fingerprint="b" * 64)
    store(tmp_path / "x", base=other)
    with fails(BaseMismatchError, "org/other"):
        load_stack(Target("t", stack=(str(tmp_path / "x"),), null="clean"), Base())
    with fails(ConfigError, "target t is of org/other", Base().name):
        load_stack(Target("t", base="org/other", null="clean"), Base())
