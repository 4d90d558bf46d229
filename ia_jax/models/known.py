"""The published `config.json` of the models that recipes name: `ia-jax plan` needs no checkpoint and no network.

Loading never reads this table: a checkpoint's own file decides. Source: the `config.json` of each hub repository.
"""

import dataclasses
from functools import cache
from pathlib import Path

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig, RopeScaling


def _qwen3(d: int, f: int, layers: int, heads: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        vocab_size=151936,
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        qk_norm=True,
        max_position_embeddings=40960,
    )


def _qwen2(d: int, f: int, layers: int, heads: int, kv_heads: int, tied: bool) -> ModelConfig:
    """Qwen2.5's instruct models; the larger ones have a longer table of tokens."""
    return ModelConfig(
        family="qwen2",
        vocab_size=151936 if tied else 152064,
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=d // heads,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        qkv_bias=True,
        max_position_embeddings=32768,
    )


KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 2, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 11008, 36, 16, 2, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 4, tied=False),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2(5120, 13824, 48, 40, 8, tied=False),
    "Qwen/Qwen2.5-32B-Instruct": _qwen2(5120, 27648, 64, 40, 8, tied=False),
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(8192, 29568, 80, 64, 8, tied=False),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
    "meta-llama/Llama-3.3-70B-Instruct": ModelConfig(
        family="llama",
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        tie_word_embeddings=False,
        max_position_embeddings=131072,
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": ModelConfig(
        family="mistral",
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=False,
        max_position_embeddings=32768,
    ),
}


def architecture(name: str, quantization: str = "") -> ModelConfig:
    """The architecture of a model by name: from the table, a checkpoint directory, a GGUF file or the hub."""
    if quantization:
        return dataclasses.replace(architecture(name), quantization=quantization)
    if name in KNOWN:
        return KNOWN[name]
    from ia_jax.models.sources import EMBEDDED, read_architecture

    try:
        return _embedded() if name == EMBEDDED else read_architecture(name)
    except ConfigError as error:
        raise ConfigError(f"{error} (without a checkpoint, plan knows: {', '.join(KNOWN)})") from error


@cache
def _embedded() -> ModelConfig:
    """Its file comes with the package and stays as it is; reading it takes a second."""
    from ia_jax.models.sources import EMBEDDED, read_architecture

    return read_architecture(EMBEDDED)


def local_architecture(name: str) -> ModelConfig | None:
    """The architecture of a model, if neither the hub nor a file that is not there has to be asked."""
    from ia_jax.models.sources import EMBEDDED

    return architecture(name) if name in (EMBEDDED, *KNOWN) or Path(name).expanduser().exists() else None
