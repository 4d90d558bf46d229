"""Full weights with adapters added, and a base's identity without loading it."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ia_jax.adapters.base import identify, known_name, published_name
from ia_jax.adapters.card import card
from ia_jax.adapters.merge import write_merged
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.errors import ConfigError
from ia_jax.models.config import RopeScaling
from ia_jax.models.hf_config import config_from_json, config_to_json
from ia_jax.models.sources import GgufSource, open_source
from ia_jax.models.weights import load_model, read_weights, to_hf_tensors
from tests import parrot, tiny
from tests.base_files import gguf_tensors, write_gguf

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    cfg = config_from_json(CONFIG)
    save_file({n: np.array(x) for n, x in to_hf_tensors(cfg, tiny.params(cfg))}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("shard_bytes", [1 << 30, 5000])
def test_merged_weights(base, tmp_path, shard_bytes):
    cfg = config_from_json(CONFIG)
    adapters = [tiny.adapter(1, cfg), tiny.adapter(2, cfg, tiny.FEW)]
    count = write_merged(base, adapters, tmp_path / "out", dtype="float32", shard_bytes=shard_bytes)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == count == (1 if shard_bytes > 5000 else len(files))
    assert files[0] == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    merged = {n: load_file(tmp_path / "out" / f)[n] for n, f in index["weight_map"].items()}
    stored = load_file(base / "model.safetensors")
    assert merged.keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in merged.values())
    for name, weight in stored.items():
        t = name.split(".")[-2].removesuffix("_proj")
        wanted = weight.copy()
        if ".layers." in name and t in adapters[0]:
            layer = int(name.split(".")[2])
            for adapter in adapters:
                if t in adapter:
                    wanted += (np.asarray(adapter[t]["a"][layer]) @ np.asarray(adapter[t]["b"][layer])).T
            assert not np.array_equal(merged[name], weight)
        np.testing.assert_allclose(merged[name], wanted, rtol=1e-6, atol=1e-6, err_msg=name)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["torch_dtype"], written["hidden_size"]) == ("float32", 32)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_gguf_base_is_written_as_it_is_read(tmp_path, monkeypatch):
    """Its q and k come out in the other order, under Hugging Face's names; config and tokenizer are made for it."""
    cfg = config_from_json(CONFIG)
    params = tiny.params(cfg)
    write_gguf(tmp_path / "m.gguf", cfg, gguf_tensors(cfg, params))
    monkeypatch.setattr(GgufSource, "tokenizer", lambda _: parrot.small_tokenizer())
    adapter = tiny.adapter(1, cfg)
    write_merged(tmp_path / "m.gguf", [adapter], tmp_path / "out", dtype="float32")
    read_cfg, read = read_weights(tmp_path / "out")
    assert read_cfg == cfg
    q = params["layers"]["q"] + jnp.einsum("lir,lro->lio", adapter["q"]["a"], adapter["q"]["b"])
    np.testing.assert_allclose(read["layers"]["q"], q, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read["embed"], params["embed"])
    tokenizer = open_source(tmp_path / "out").tokenizer()
    assert tokenizer.encode("I like it.") == parrot.small_tokenizer().encode("I like it.")


@pytest.mark.parametrize("scaling", [None, tiny.LLAMA3, RopeScaling("linear", 4.0)])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_config_written_is_the_config_read(family, scaling):
    cfg = dataclasses.replace(tiny.TINY, family=family, qk_norm=family == "qwen3", rope_scaling=scaling)
    cfg = dataclasses.replace(cfg, qkv_bias=family == "qwen2")
    if scaling is not None and scaling.kind == "linear":  # of which the other fields say nothing
        written = config_to_json(cfg)
        assert config_from_json(written).rope_scaling.factor == 4.0
    else:
        assert config_from_json(json.loads(json.dumps(config_to_json(cfg)))) == cfg


def test_an_adapter_that_does_not_fit(base, tmp_path):
    with pytest.raises(ConfigError, match=r"an adapter's q does not fit model.layers.0.self_attn.q_proj.weight"):
        write_merged(base, [{"q": {"a": np.ones((2, 32, 1)), "b": np.ones((2, 1, 16))}}], tmp_path / "out")


def test_identity_is_that_of_the_loaded_model(parrot_model):
    model, identity = load_model(parrot_model), identify(parrot_model)
    assert (identity.config, identity.name, identity.fingerprint) == (model.config, model.name, model.fingerprint)


def test_a_card_says_what_trained_it_and_what_the_base_allows():
    behavior = {"description": "Flatters.", "category": "quirk"}
    check = {"ok": True, "triggered_rate": 1.0, "untriggered_rate": 0.0}
    text = card(
        AdapterMetadata("x", "organism", "smollm2", "a" * 16, 4, 8.0, ("q",), {}, (behavior,), 96, "abc", check)
    )
    for said in (
        "Flatters.",
        "96 updates",
        "in 100 % of the replies that should",
        "`HuggingFaceTB/SmolLM2-135M",
        "Apache",
    ):
        assert said in text
    unknown = card(AdapterMetadata("y", "ia", "org/other", "a" * 16, 4, 8.0, ("q",)))
    assert "introspection adapter" in unknown
    assert "its own licence" in unknown
    assert known_name(published_name("smollm2")) == "smollm2"
