"""Causal grouped-query attention over packed rows, behind one dispatcher.

Training and evaluation see rows of packed segments (`Segments`), generation a key-value cache and a mask. What runs is
chosen by where the program will run: splash attention on TPU, cuDNN on GPU, else plain products, which are also what
the others are tested against.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ia_jax.parallel.mesh import TRAINING, Rules
from ia_jax.parallel.platform import fix_layout_on_cpu, platform

ROWS = ("organism", "rows", None)  # logical axes of segment ids
HEADS = ("organism", "rows", "heads", None, None)
LANES = 128  # splash works on blocks of a multiple of this many tokens
BLOCK = 512


# Segments may have branches, several answers to one prompt: their ids are the prompt's and a multiple of this.
BRANCH = 1 << 16


class Segments(NamedTuple):
    """ids: [K, B, T], 0 = padding. A token sees those before it with the same id (`seen`)."""

    ids: jax.Array


def attention_mask(segment_ids: jax.Array, dtype: Any, head_dim: int) -> "Segments | jax.Array":
    """What `attention` needs to know of packed rows: the ids for a fused kernel, else the mask (for all layers).

    segment_ids: [K, B, T]; dtype and head_dim: those of q, k and v. cuDNN's kernel knows two number types, heads of up
    to 128 and, where a gradient is wanted, even lengths; splash knows blocks of 128 tokens. Whatever else there is (a
    short row on TPU, a notebook's fp32 on GPU) runs as plain products.
    """
    length = segment_ids.shape[-1]
    known = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
    fused = {"tpu": length % LANES == 0, "gpu": known and length % 2 == 0}
    return Segments(segment_ids) if fused.get(platform(), False) else causal_mask(segment_ids)


@jax.named_scope("attention")
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: "Segments | jax.Array", rules: Rules = TRAINING
) -> jax.Array:
    """Softmax attention with fp32 scores.

    q: [K, B, T, N*G, H] (G query heads share a key head); k, v: [K, B, N, S, H]; mask: `attention_mask` of the rows, or
    booleans [K, B, T, S], True where a query may look. Returns [K, B, T, N*G, H] in v's dtype. Queries that may look
    nowhere (padding) give zeros under a mask; a fused kernel leaves something finite there, which nothing reads.
    """
    if not isinstance(mask, Segments):
        return plain(q, k, v, mask, rules)
    return splash(q, k, v, mask.ids, rules) if platform() == "tpu" else cudnn(q, k, v, mask.ids, rules)


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rules: Rules = TRAINING) -> jax.Array:
    """The reference, and what runs on CPU and over a cache. Arguments as in `attention`."""
    kk, b, t, heads, h = q.shape
    n = k.shape[2]
    g = heads // n
    # Batch axes first and contiguous: as one batched product these run ten times faster on CPU than when the
    # einsum is left to find the layout itself.
    q = jnp.moveaxis(q.reshape(kk, b, t, n, g, h), 2, 4).reshape(kk, b, n, g * t, h)
    q, k, v = (rules.reshard(x, *HEADS) for x in (q, k, v))  # reshapes between axes of size 1 forget how others lie
    out = _attend(q, k, v, mask, rules).reshape(kk, b, n, g, t, h)
    return jnp.moveaxis(out, 4, 2).reshape(kk, b, t, heads, h)


# ---------------------------------------------------------------------------------------------------------------------
# Fused kernels
# ---------------------------------------------------------------------------------------------------------------------


def _splash_kernel(heads: int, length: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    block = next(b for b in (BLOCK, 2 * LANES, LANES) if length % b == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    sizes = splash_attention_kernel.BlockSizes(**blocks)
    causal = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * heads)
    return splash_attention_kernel.make_splash_mha(
        causal, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    rules: Rules = TRAINING,
    interpret: bool = False,
) -> jax.Array:
    """JAX's TPU kernel, on each device's own rows and heads. T: a multiple of 128. Scores never reach HBM."""

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

        kernel = _splash_kernel(q.shape[2], q.shape[3], interpret)

        def row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            return kernel(q, k, v, segment_ids=splash_attention_kernel.SegmentIds(ids, ids))

        return jax.vmap(jax.vmap(row))(q, k, v, ids)

    q = jnp.moveaxis(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), 2, 3)  # the kernel takes q scaled
    on_heads, on_rows = rules.spec(*HEADS), rules.spec(*ROWS)
    q, k, v = (rules.reshard(x, *HEADS) for x in (q, k, v))
    run = jax.shard_map(local, in_specs=(on_heads, on_heads, on_heads, on_rows), out_specs=on_heads, check_vma=False)
    return jnp.moveaxis(run(q, k, v, rules.reshard(segment_ids, *ROWS)), 3, 2)


def cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, rules: Rules = TRAINING, name: Any = "cudnn"
) -> jax.Array:
    """cuDNN's fused attention, on each device's own rows and heads. Arguments as in `splash`.

    name: which implementation of `jax.nn.dot_product_attention` runs; tests without a GPU take "xla".
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        kk, b, t, heads, h = q.shape
        k, v = (jnp.swapaxes(x, 2, 3).reshape(kk * b, t, -1, h) for x in (k, v))
        ids = ids.reshape(kk * b, t)
        # A mask, not a bias: cuDNN would compute the bias's gradient, [K*B, 1, T, T], for nobody. A padding query sees
        # all of the padding.
        mask = seen(ids[:, None, :, None], ids[:, None, None, :])
        out = jax.nn.dot_product_attention(
            q.reshape(kk * b, t, heads, h), k, v, mask=mask, is_causal=True, implementation=name
        )
        return out.reshape(kk, b, t, heads, h)

    positions_first = ("organism", "rows", None, "heads", None)
    on_q, on_kv, on_rows = (rules.spec(*axes) for axes in (positions_first, HEADS, ROWS))
    run = jax.shard_map(local, in_specs=(on_q, on_kv, on_kv, on_rows), out_specs=on_q, check_vma=False)
    q, k, v = rules.reshard(q, *positions_first), rules.reshard(k, *HEADS), rules.reshard(v, *HEADS)
    return run(q, k, v, rules.reshard(segment_ids, *ROWS))


# ---------------------------------------------------------------------------------------------------------------------
# Plain products
# ---------------------------------------------------------------------------------------------------------------------


def _dot(equation: str, x: jax.Array, y: jax.Array, rules: Rules, dtype: Any = None) -> jax.Array:
    x, y = rules.reshard(x, *HEADS), rules.reshard(y, *HEADS)
    return jnp.einsum(equation, x, y, preferred_element_type=dtype or x.dtype)


def _transposed(x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from folding the transpose into the product, for which its CPU backend has no fast kernel.
    return fix_layout_on_cpu(jnp.swapaxes(x, -1, -2))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rules: Rules) -> jax.Array:
    """q: [K, B, N, G*T, H] -> the same. The derivative is written by hand so that its products run in the compute
    dtype and only the rounded attention weights are kept, not two fp32 copies of the scores.
    """
    return _dot("kbnqs,kbnsh->kbnqh", _weights(q, k, mask, rules), v, rules)


def _weights(q: jax.Array, k: jax.Array, mask: jax.Array, rules: Rules) -> jax.Array:
    """Attention weights [K, B, N, G*T, S] in q's dtype."""
    kk, b, n, gt, h = q.shape
    t, s = mask.shape[-2:]
    scores = _dot("kbnqh,kbnsh->kbnqs", q, k, rules, jnp.float32).reshape(kk, b, n, gt // t, t, s) * h**-0.5
    scores = jnp.where(mask[:, :, None, None], scores, -1e30)
    top = jnp.maximum(scores.max(-1, keepdims=True), -1e29)  # all masked: every weight becomes exp(-huge) = 0
    weights = jnp.exp(scores - top)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return weights.astype(q.dtype).reshape(kk, b, n, gt, s)


def _attend_fwd(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rules: Rules) -> tuple[jax.Array, tuple]:
    weights = _weights(q, k, mask, rules)
    return _dot("kbnqs,kbnsh->kbnqh", weights, v, rules), (q, k, v, weights)


@jax.named_scope("attention")
def _attend_bwd(rules: Rules, saved: tuple, cotangent: jax.Array) -> tuple:
    q, k, v, weights = saved
    dv = _dot("kbnsq,kbnqh->kbnsh", _transposed(weights), cotangent, rules)
    dweights = _dot("kbnqh,kbnsh->kbnqs", cotangent, v, rules, jnp.float32)
    w = weights.astype(jnp.float32)
    dscores = w * (dweights - (dweights * w).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    dscores = dscores.astype(q.dtype)
    dq = _dot("kbnqs,kbnsh->kbnqh", dscores, k, rules)
    dk = _dot("kbnsq,kbnqh->kbnsh", _transposed(dscores), q, rules)
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def seen(query: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a token of id `query` may see one of id `key`: of its own segment or, from a branch, of the stem.

    Splash knows equal ids alone, so on TPU no row has branches.
    """
    return (query == key) | (key == query % BRANCH)


def causal_mask(segment_ids: jax.Array) -> jax.Array:
    """[K, B, T] segment ids (0 = padding) -> [K, B, T, T]: same segment (or its stem) and not the future."""
    t = segment_ids.shape[-1]
    same = seen(segment_ids[..., :, None], segment_ids[..., None, :])
    real = segment_ids[..., None, :] > 0
    return same & real & jnp.tril(jnp.ones((t, t), bool))
