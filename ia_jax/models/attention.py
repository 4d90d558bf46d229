"""Causal grouped-query attention over packed rows, behind one dispatcher."""

from typing import Any

import jax
import jax.numpy as jnp

from ia_jax.parallel.mesh import reshard

HEADS = ("organism", None, "heads", None, None)


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
    out = _attend(q, k, v, mask).reshape(kk, b, n, g, t, h)
    return jnp.moveaxis(out, 4, 2).reshape(kk, b, t, heads, h)


def _dot(equation: str, x: jax.Array, y: jax.Array, dtype: Any = None) -> jax.Array:
    # Reshapes between axes of size 1 forget how the others are sharded, so it is said again here.
    x, y = reshard(x, *HEADS), reshard(y, *HEADS)
    return jnp.einsum(equation, x, y, preferred_element_type=dtype or x.dtype)


def _transposed(x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from folding the transpose into the product, for which its CPU backend has no fast kernel.
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """q: [K, B, N, G*T, H] -> the same. The derivative is written by hand so that its products run in the compute
    dtype and only the rounded attention weights are kept, not two fp32 copies of the scores.
    """
    return _dot("kbnqs,kbnsh->kbnqh", _weights(q, k, mask), v)


def _weights(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention weights [K, B, N, G*T, S] in q's dtype."""
    kk, b, n, gt, h = q.shape
    t, s = mask.shape[-2:]
    scores = _dot("kbnqh,kbnsh->kbnqs", q, k, jnp.float32).reshape(kk, b, n, gt // t, t, s) * h**-0.5
    scores = jnp.where(mask[:, :, None, None], scores, -1e30)
    top = jnp.maximum(scores.max(-1, keepdims=True), -1e29)  # all masked: every weight becomes exp(-huge) = 0
    weights = jnp.exp(scores - top)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return weights.astype(q.dtype).reshape(kk, b, n, gt, s)


def _attend_fwd(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, tuple]:
    weights = _weights(q, k, mask)
    return _dot("kbnqs,kbnsh->kbnqh", weights, v), (q, k, v, weights)


def _attend_bwd(saved: tuple, cotangent: jax.Array) -> tuple:
    q, k, v, weights = saved
    dv = _dot("kbnsq,kbnqh->kbnsh", _transposed(weights), cotangent)
    dweights = _dot("kbnqh,kbnsh->kbnqs", cotangent, v, jnp.float32)
    w = weights.astype(jnp.float32)
    dscores = w * (dweights - (dweights * w).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    dscores = dscores.astype(q.dtype)
    dq = _dot("kbnqs,kbnsh->kbnqh", dscores, k)
    dk = _dot("kbnsq,kbnqh->kbnsh", _transposed(dscores), q)
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def causal_mask(segment_ids: jax.Array) -> jax.Array:
    """[K, B, T] segment ids (0 = padding) -> [K, B, T, T]: same segment and not the future."""
    t = segment_ids.shape[-1]
    same = segment_ids[..., :, None] == segment_ids[..., None, :]
    real = segment_ids[..., None, :] > 0
    return same & real & jnp.tril(jnp.ones((t, t), bool))
