"""PEFT directories without torch: what is read, what goes out and comes back bit for bit, what is refused."""

import json
import re
import struct
from dataclasses import dataclass, replace

import jax
import ml_dtypes
import numpy as np
import pytest

from ia_jax.adapters.peft import export_peft, import_peft, read_peft_config
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError, IAError
from ia_jax.models.combine import concatenate_ranks
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, LoraConfig, layers_of, lora_shapes, projection_sizes

CONFIG = ModelConfig("llama", 64, 32, 48, 3, 4, 2, 8, 1e-5, 1e4)
SIZES = projection_sizes(CONFIG)
BLOCK = dict(zip(PROJECTIONS, ["self_attn"] * 4 + ["mlp"] * 3, strict=True))


@dataclass(frozen=True)
class Base:
    config: ModelConfig = CONFIG
    name: str = "org/tiny"
    fingerprint: str = "a" * 64


def adapter(seed=0, rank=4, targets=PROJECTIONS):
    rng = np.random.default_rng(seed)
    shapes = lora_shapes(CONFIG, LoraConfig(rank, 1.0, targets))
    return {t: {n: rng.standard_normal(s, np.float32) for n, s in ab.items()} for t, ab in shapes.items()}


def module(t, layer):
    return f"model.layers.{layer}.{BLOCK[t]}.{t}_proj"


def factors(modules, rank=4, dtype=np.float32, pattern="base_model.model.{}.lora_{}.weight"):
    """lora_A and lora_B of modules given as (projection, layer), as PEFT names and shapes them."""
    rng = np.random.default_rng(1)
    out = {}
    for t, i in modules:
        for factor, shape in (("A", (rank, SIZES[t][0])), ("B", (SIZES[t][1], rank))):
            out[pattern.format(module(t, i), factor)] = rng.standard_normal(shape, np.float32).astype(dtype)
    return out


def write(directory, tensors, **config):
    """A PEFT directory written byte by byte, so that no library's idea of the format is shared with the reader."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    header, data = {}, b""
    for name, x in tensors.items():
        end = len(data) + x.nbytes
        header[name] = {"dtype": names[str(x.dtype)], "shape": x.shape, "data_offsets": [len(data), end]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    directory.mkdir(exist_ok=True)
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    known = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**known, **config}))
    return directory


QV = [(t, i) for t in "qv" for i in range(3)]


def same_bits(x, y):
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    )


def fails(kind, *patterns):
    return pytest.raises(kind, match=r"\A" + "".join(f"(?=.*{re.escape(p)})" for p in patterns) + r"[^\n]*\Z")


@pytest.mark.parametrize(
    ("lora", "alpha"),
    [
        (LoraConfig(4, 8.0), 8),  # 2: exact, so the file says what was trained
        (LoraConfig(4, 1.0), 1),
        (LoraConfig(4, 6.8), 4),  # 1.7 would lose bits of b: the scale stays in it
        (LoraConfig(8, 16.0), 8),  # an adapter of another rank with this scale
        (None, 4),
    ],
)
def test_export_and_back_is_bit_equal(tmp_path, lora, alpha):
    export_peft(adapter(), tmp_path, Base(), lora)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == alpha
    tree = import_peft(tmp_path, Base())
    assert same_bits(tree, adapter())
    export_peft(tree, tmp_path, Base(), lora)
    assert same_bits(import_peft(tmp_path, Base()), adapter())


def test_export_keeps_subnormal_numbers(tmp_path):
    tree = adapter()
    tree["q"]["b"][0, 0, 0] = 1.5e-45  # halved, it would vanish
    export_peft(tree, tmp_path, Base(), LoraConfig(4, 8.0))
    assert same_bits(import_peft(tmp_path, Base()), tree)


def test_export_of_a_subset_with_its_card(tmp_path):
    tree = adapter(targets=("v", "down"))
    export_peft(tree, tmp_path / "new" / "dir", Base(), base_model_name_or_path="org/real", card="# Flatters\n\nA lot.")
    assert same_bits(import_peft(tmp_path / "new" / "dir", Base()), tree)
    config = read_peft_config(tmp_path / "new" / "dir")
    assert (config.target_modules, config.base_model_name_or_path) == (("v_proj", "down_proj"), "org/real")
    card = (tmp_path / "new" / "dir" / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/real\nlibrary_name: peft\n")
    assert "# Flatters" in card
    assert "rank 4" in card


def test_export_refuses(tmp_path):
    with fails(ConfigError, "organism axis"):
        export_peft(jax.tree.map(lambda x: x[None], adapter()), tmp_path, Base())
    with fails(BaseMismatchError, "leaf q.a", "(3, 32, 4)", "(3, 40, 4)", "org/tiny"):
        export_peft(adapter(), tmp_path, Base(replace(CONFIG, hidden_size=40)))
    tree = adapter()
    tree["gate"]["a"][2, 1, 0] = np.nan
    with fails(CheckpointError, "leaf gate.a", "[2, 1, 0]"):
        export_peft(tree, tmp_path, Base())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pattern",
    [
        "base_model.model.{}.lora_{}.weight",
        "base_model.model.{}.lora_{}.default.weight",
        "{}.lora_{}.weight",
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_names_and_dtypes(tmp_path, pattern, dtype):
    tensors = factors(QV, dtype=dtype, pattern=pattern)
    tree = import_peft(write(tmp_path, tensors), Base())
    assert set(tree) == {"q", "v"}
    for (t, i), names in zip(QV, zip(*[iter(tensors)] * 2, strict=True), strict=True):
        a, b = (tensors[n].astype(np.float32) for n in names)
        np.testing.assert_array_equal(tree[t]["a"][i], a.T)
        np.testing.assert_array_equal(tree[t]["b"][i], 2 * b.T)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(tree))


def test_names_of_a_bare_decoder(tmp_path):
    tensors = {k.replace("model.model.", "model."): v for k, v in factors(QV).items()}
    assert "base_model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert set(import_peft(write(tmp_path, tensors), Base())) == {"q", "v"}


@pytest.mark.parametrize(
    ("config", "covered"),
    [
        ({"target_modules": ["q_proj"]}, [("q", 0), ("q", 1), ("q", 2)]),
        ({"target_modules": ["self_attn.o_proj", "nonexistent"]}, [("o", 0), ("o", 1), ("o", 2)]),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, [("up", 1)]),
        (
            {"target_modules": r".*layers\.[02]\.mlp\.(gate|down)_proj"},
            [(t, i) for t in ("gate", "down") for i in (0, 2)],
        ),
        ({"target_modules": "all-linear"}, [(t, i) for t in PROJECTIONS for i in range(3)]),
        ({"layers_to_transform": [0, 2]}, [("q", 0), ("q", 2), ("v", 0), ("v", 2)]),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, [("q", 1), ("v", 1)]),
        ({"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, [("q", 1), ("v", 1)]),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, [("q", 1), ("q", 2), ("v", 0), ("v", 1), ("v", 2)]),
        ({"exclude_modules": r".*\.1\..*"}, [("q", 0), ("q", 2), ("v", 0), ("v", 2)]),
    ],
)
def test_coverage(tmp_path, config, covered):
    """Untouched layers and projections are absent, and the file must hold exactly the targeted modules."""
    tree = import_peft(write(tmp_path, factors(covered), **config), Base())
    assert set(tree) == {t for t, _ in covered}
    layers = layers_of(tree) or (0, 1, 2)
    assert set(layers) == {i for _, i in covered}
    for t, ab in tree.items():
        for row, i in enumerate(layers):
            assert all(bool(np.any(x[row])) == ((t, i) in covered) for x in ab.values())
    write(tmp_path, factors(covered[:-1]), **config)
    with fails(IAError, module(*covered[-1]) if covered[1:] else "lora_A"):
        import_peft(tmp_path, Base())
    extra = next((t, i) for t in PROJECTIONS for i in range(3) if (t, i) not in covered or t == "down")
    if extra not in covered:
        write(tmp_path, factors([*covered, extra]), **config)
        with fails(ConfigError, "does not target", module(*extra)):
            import_peft(tmp_path, Base())


@pytest.mark.parametrize("use_rslora", [False, True])
def test_rank_and_alpha_patterns(tmp_path, use_rslora):
    tensors = factors([("q", 0), ("q", 2), ("v", 0), ("v", 1), ("v", 2)]) | factors([("q", 1)], rank=9)
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 9}, "alpha_pattern": {"v_proj": 3, "q_proj": 5}}
    tree = import_peft(write(tmp_path, tensors, use_rslora=use_rslora, **patterns), Base())
    assert tree["q"]["a"].shape == (3, 32, 9)
    assert tree["v"]["b"].shape == (3, 9, 16)
    for t, i, rank, alpha in (("q", 0, 4, 5), ("q", 1, 9, 5), ("v", 1, 4, 3)):
        a, b = (tensors[f"base_model.model.{module(t, i)}.lora_{f}.weight"] for f in "AB")
        scale = alpha / (rank**0.5 if use_rslora else rank)
        np.testing.assert_allclose(tree[t]["a"][i] @ tree[t]["b"][i], scale * (b @ a).T, rtol=1e-4, atol=1e-5)
        assert not np.any(tree[t]["a"][i, :, rank:])
        assert not np.any(tree[t]["b"][i, rank:])
    export_peft(tree, tmp_path / "again", Base())
    assert same_bits(import_peft(tmp_path / "again", Base()), tree)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"some_future_option": {"x": 1}}, "some_future_option"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"target_modules": None}, "malformed"),
        ({"target_modules": "(q_proj"}, "malformed"),
        ({"r": 0}, "malformed"),
    ],
)
def test_refused_by_name(tmp_path, config, said):
    write(tmp_path, factors(QV), **config)
    with fails(ConfigError, str(tmp_path / "adapter_config.json"), said):
        read_peft_config(tmp_path)
    with fails(ConfigError, said):
        import_peft(tmp_path, Base())


def test_options_without_effect_are_accepted(tmp_path):
    harmless = {
        "use_dora": False,
        "modules_to_save": None,
        "lora_dropout": 0.05,
        "loftq_config": {},
        "eva_config": None,
    }
    harmless |= {"init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "some_future_option": None}
    assert set(import_peft(write(tmp_path, factors(QV), **harmless), Base())) == {"q", "v"}


def test_tensors_that_do_not_fit(tmp_path):
    magnitude = {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": np.ones(32, np.float32)}
    with fails(ConfigError, "lora_magnitude_vector"):
        import_peft(write(tmp_path, factors(QV) | magnitude), Base())
    head = {"base_model.model.lm_head.lora_A.weight": np.ones((4, 32), np.float32)}
    with fails(ConfigError, "lm_head.lora_A.weight"):
        import_peft(write(tmp_path, factors(QV) | head), Base())
    with fails(ConfigError, "twice"):
        both = factors(QV) | factors(QV, pattern="base_model.model.{}.lora_{}.default.weight")
        import_peft(write(tmp_path, both), Base())
    with fails(CheckpointError, "q_proj.lora_A.weight", "(4, 32)", "(8, 32)"):
        import_peft(write(tmp_path, factors(QV), r=8), Base())
    with fails(ConfigError, "F64"):
        import_peft(write(tmp_path, factors(QV, dtype=np.float64)), Base())
    bad = factors(QV)
    bad["base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"][3, 1] = np.inf
    with fails(CheckpointError, "layers.2.self_attn.v_proj.lora_B.weight", "[3, 1]"):
        import_peft(write(tmp_path, bad), Base())


def test_an_adapter_of_another_base(tmp_path):
    write(tmp_path, factors(QV), base_model_name_or_path="org/other")
    assert import_peft(tmp_path, Base())  # the name alone is a hint
    with fails(BaseMismatchError, "layers.2.self_attn.q_proj.lora_A.weight", "org/tiny", "org/other"):
        import_peft(tmp_path, Base(replace(CONFIG, num_hidden_layers=2)))
    with fails(CheckpointError, "layers.3.self_attn.q_proj", "fewer layers"):
        import_peft(tmp_path, Base(replace(CONFIG, num_hidden_layers=4)))
    with fails(BaseMismatchError, "q_proj.lora_A.weight", "(4, 32)", "(4, 40)", "org/other"):
        import_peft(tmp_path, Base(replace(CONFIG, hidden_size=40)))
    with fails(BaseMismatchError, "v_proj.lora_B.weight", "(16, 4)", "(32, 4)"):
        import_peft(tmp_path, Base(replace(CONFIG, num_key_value_heads=4)))


def test_files_that_are_not_there_or_broken(tmp_path):
    with fails(ConfigError, "neither a PEFT directory nor"):
        import_peft(tmp_path / "none", Base())
    with fails(ConfigError, "adapter_config.json and adapter_model.safetensors missing"):
        import_peft(tmp_path, Base())
    write(tmp_path, factors(QV))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with fails(CheckpointError, str(file), "truncated"):
        import_peft(tmp_path, Base())
    file.rename(tmp_path / "adapter_model.bin")
    with fails(ConfigError, "pickle"):
        import_peft(tmp_path, Base())
    (tmp_path / "adapter_config.json").write_text("{")
    write_config = tmp_path / "adapter_model.safetensors"
    write_config.write_bytes(b"")
    with fails(ConfigError, "adapter_config.json", "not a PEFT configuration"):
        read_peft_config(tmp_path)
    with fails(IAError, "org/absent", "cannot be fetched"):
        import_peft("org/absent", Base())  # tests are offline


def test_a_hub_id_is_fetched_at_its_revision(tmp_path, monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append((repo, options["revision"], set(options["allow_patterns"])))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    write(tmp_path, factors(QV))
    assert same_bits(import_peft("org/adapter", Base(), "0a1b2c"), import_peft(tmp_path, Base()))
    assert asked == [("org/adapter", "0a1b2c", {"adapter_config.json", "adapter_model.safetensors"})]


@pytest.mark.parametrize("organisms", [(), (2,)])
def test_concatenated_ranks_are_the_sum(organisms):
    x, y = adapter(0, 4, ("q", "v")), adapter(1, 2, ("v", "down"))
    x, y = (jax.tree.map(lambda leaf: np.broadcast_to(leaf, (*organisms, *leaf.shape)), z) for z in (x, y))
    both = concatenate_ranks(x, y)
    assert list(both) == ["q", "v", "down"]
    assert all(ab["a"].shape[-1] == ab["b"].shape[-2] == 6 for ab in both.values())
    for t, ab in both.items():
        want = sum(z[t]["a"] @ z[t]["b"] for z in (x, y) if t in z)
        np.testing.assert_allclose(ab["a"] @ ab["b"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(both["v"]["a"][..., :4], x["v"]["a"])
    np.testing.assert_array_equal(both["v"]["b"][..., 4:, :], y["v"]["b"])
