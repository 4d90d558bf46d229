"""config.json: both spellings of RoPE, each family's own fields, and what is not implemented, by field and value."""

from dataclasses import replace

import pytest

from ia_jax.errors import ConfigError
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.transformer import weight_specs
from tests.base_files import LLAMA, QWEN2, QWEN3

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
