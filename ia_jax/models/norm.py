"""Root-mean-square normalisation."""

from functools import partial

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * weight over the last axis; the statistics in fp32, the result in x's dtype.

    Of an x that is no fp32 a backward pass would keep a copy that is; its statistics are computed again instead.
    """
    again = partial(jax.checkpoint, static_argnums=(2,))
    return (_rms_norm if x.dtype == jnp.float32 else again(_rms_norm))(x, weight, eps)


@jax.named_scope("norm")
def _rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    inv = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inv).astype(x.dtype) * weight.astype(x.dtype)
