"""Rotary positions: inverse frequencies, tables of angles, and the rotation."""

import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig


def rope_frequencies(cfg: ModelConfig) -> jax.Array:
    """Inverse frequencies [H/2], with Llama 3's or linear scaling where the config says so (fp32)."""
    inv = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    s = cfg.rope_scaling
    if s is None:
        return inv
    if s.kind == "linear":
        return inv / s.factor
    if s.kind != "llama3":
        raise ConfigError(f"rope scaling {s.kind!r} is not implemented; known: linear, llama3")
    wavelength = 2 * jnp.pi / inv
    smooth = s.original_max_position_embeddings / wavelength - s.low_freq_factor
    smooth = jnp.clip(smooth / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
    return inv * (smooth + (1 - smooth) / s.factor)


def rope_tables(positions: jax.Array, cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position's angles: [K, B, T] -> two of [K, B, T, H/2] (fp32)."""
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(cfg)
    return jnp.cos(angles), jnp.sin(angles)


@jax.named_scope("rope")
def apply_rope(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Half-split rotation (Hugging Face's layout). x: [K, B, T, heads, H]; the result in fp32."""
    cos, sin = (r[..., None, :] for r in rope)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
