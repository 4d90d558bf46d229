"""Causal grouped-query attention over packed rows, behind one dispatcher."""

import jax
import jax.numpy as jnp

from ia_jax.parallel.mesh import reshard


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Plain softmax attention with fp32 scores.

    q: [K, B, T, N*G, H] (G query heads share a key head); k, v: [K, B, N, S, H]; mask: [K, B, T, S], True where a
    query may look. Returns [K, B, T, N*G, H] in v's dtype. Queries that may look nowhere (padding) give zeros.
    """
    kk, b, t, heads, h = q.shape
    n = k.shape[2]
    g = heads // n
    # Batch axes first and contiguous: as one batched product these run ten times faster on CPU than when the
    # einsum is left to find the layout itself.
    q = jnp.moveaxis(q.reshape(kk, b, t, n, g, h), 2, 4).reshape(kk, b, n, g * t, h)
    q, k, v = (reshard(x, "organism", None, "heads", None, None) for x in (q, k, v))
    scores = jnp.einsum("kbnqh,kbnsh->kbnqs", q, k, preferred_element_type=jnp.float32) * h**-0.5
    scores = scores.reshape(kk, b, n, g, t, -1)
    allowed = mask[:, :, None, None, :, :]
    scores = jnp.where(allowed, scores, -1e30)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = (weights / jnp.where(total == 0, 1.0, total)).astype(v.dtype).reshape(kk, b, n, g * t, -1)
    out = jnp.einsum("kbnqs,kbnsh->kbnqh", weights, v).reshape(kk, b, n, g, t, h)
    return jnp.moveaxis(out, 4, 2).reshape(kk, b, t, heads, h)


def causal_mask(segment_ids: jax.Array) -> jax.Array:
    """[K, B, T] segment ids (0 = padding) -> [K, B, T, T]: same segment and not the future."""
    t = segment_ids.shape[-1]
    same = segment_ids[..., :, None] == segment_ids[..., None, :]
    real = segment_ids[..., None, :] > 0
    return same & real & jnp.tril(jnp.ones((t, t), bool))
