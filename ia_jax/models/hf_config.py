"""`config.json` of Hugging Face (transformers 4 and 5 spellings) to `ModelConfig`. What is not implemented raises."""

import dataclasses
from typing import Any, NoReturn

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig, RopeScaling

# transformers' class of each family.
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_MOE_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")


def config_from_json(config: dict[str, Any]) -> ModelConfig:
    """The raw content of config.json to a `ModelConfig`. The error of an unsupported value names field and value."""
    family = _required(config, "model_type")
    if family not in FAMILIES:
        _unsupported("model_type", family, "one of " + ", ".join(FAMILIES))
    _check_supported(config)
    theta, scaling = _rope(config)
    hidden, heads = _required(config, "hidden_size"), _required(config, "num_attention_heads")
    # Absent or null in old Llama files; Qwen3 always states both, the others may leave out the second.
    kv_heads = config.get("num_key_value_heads") or (
        heads if family == "llama" else _required(config, "num_key_value_heads")
    )
    head_dim = config.get("head_dim") or (_required(config, "head_dim") if family == "qwen3" else hidden // heads)
    if heads % kv_heads:
        _unsupported("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
    return ModelConfig(
        family=family,
        vocab_size=_required(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_required(config, "intermediate_size"),
        num_hidden_layers=_required(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(_required(config, "rms_norm_eps")),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3",
        # Mistral has no biases, Qwen2 always has three; transformers does not look there for either.
        attention_bias=family in ("llama", "qwen3") and bool(config.get("attention_bias", False)),
        max_position_embeddings=_required(config, "max_position_embeddings"),
        qkv_bias=family == "qwen2",
    )


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `config_from_json`, for a base that has no config.json of its own (GGUF)."""
    own = dataclasses.asdict(config)
    for field in ("family", "rope_scaling", "qk_norm", "qkv_bias", "quantization"):
        own.pop(field)
    scaling = dataclasses.asdict(config.rope_scaling) if config.rope_scaling else None
    if scaling is not None:
        scaling["rope_type"] = scaling.pop("kind")
    return {
        "model_type": config.family,
        "architectures": [FAMILIES[config.family]],
        "hidden_act": "silu",
        **({"sliding_window": None} if config.family == "mistral" else {}),
        **own,
        **({"rope_scaling": scaling} if scaling else {}),
    }


def _check_supported(config: dict[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        _unsupported("hidden_act", config["hidden_act"], "silu")
    for field in ("mlp_bias", "use_sliding_window", "quantization_config", *_MOE_FIELDS):
        if config.get(field):
            _unsupported(field, config[field], "absent")
    # Qwen may state a window that use_sliding_window leaves unused; Mistral has one of 4096 unless it states another.
    mistral = config["model_type"] == "mistral"
    window = config.get("sliding_window", 4096 if mistral else None)
    if window and (mistral or "use_sliding_window" not in config):
        _unsupported("sliding_window", window, "null, and stated" if "sliding_window" not in config else "null")
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            _unsupported("layer_types", kind, "full_attention only")


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """transformers 5 has `rope_parameters`; 4 has `rope_theta` and `rope_scaling` (with `rope_type` or `type`).

    A file may have both, if they say the same: of two that differ, transformers takes `rope_scaling`.
    """
    stated = {field: config[field] for field in ("rope_parameters", "rope_scaling") if config.get(field)}
    for field, values in stated.items():
        if not isinstance(values, dict):
            _unsupported(field, values, "an object or null")
        nested = next((key for key, value in values.items() if isinstance(value, dict)), None)
        if nested is not None:
            _unsupported(f"{field}.{nested}", values[nested], "one set of values for all layers")
    if len(stated) == 2 and _rope_values(stated["rope_parameters"]) != _rope_values(stated["rope_scaling"]):
        one, other = (f"{field} = {values}" for field, values in stated.items())
        raise ConfigError(f"config.json: {other} contradicts {one}; remove the one that does not hold")
    field, values = next(iter(stated.items()), ("rope_scaling", {}))
    places = {f"{place}.rope_theta": content.get("rope_theta") for place, content in stated.items()}
    thetas = [(p, float(v)) for p, v in {**places, "rope_theta": config.get("rope_theta")}.items() if v is not None]
    for place, other in thetas[1:]:
        if other != thetas[0][1]:
            raise ConfigError(f"config.json: {place} = {other} contradicts {thetas[0][0]} = {thetas[0][1]}")
    theta = thetas[0][1] if thetas else 10000.0
    for place in (values, config):
        if place.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            _unsupported("partial_rotary_factor", place["partial_rotary_factor"], "1.0")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(_required(values, "factor", field)))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            factor=float(_required(values, "factor", field)),
            low_freq_factor=float(_required(values, "low_freq_factor", field)),
            high_freq_factor=float(_required(values, "high_freq_factor", field)),
            original_max_position_embeddings=int(_required(values, "original_max_position_embeddings", field)),
        )
    _unsupported(f"{field}.rope_type", kind, "one of default, linear, llama3")


def _rope_values(values: dict[str, Any]) -> dict[str, Any]:
    """What a set says besides `rope_theta`, which is compared on its own; nulls say nothing."""
    told = {key: value for key, value in values.items() if value is not None and key not in ("rope_theta", "type")}
    return {"rope_type": values.get("type", "default"), **told}


def _required(config: dict[str, Any], field: str, parent: str | None = None) -> Any:
    if config.get(field) is None:
        raise ConfigError(f"config.json: {parent + '.' if parent else ''}{field} is missing")
    return config[field]


def _unsupported(field: str, value: Any, wanted: str) -> NoReturn:
    raise ConfigError(f"config.json: {field} = {value!r} is not supported (must be {wanted})")
