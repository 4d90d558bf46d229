"""Log-probabilities of supervised tokens, and the losses that are functions of them.

SFT, DPO, its reference and evaluation all use `supervised_logps`. Only supervised positions meet the vocabulary, a
chunk at a time, so `[B, T, V]` never exists.
"""

import jax
import jax.numpy as jnp

from ia_jax.data.batch import Batch
from ia_jax.models.transformer import Params, unembed_weight
from ia_jax.parallel.mesh import axis_size, constrain_to, reshard


def supervised_logps(params: Params, hidden: jax.Array, batch: Batch, *, chunk: int | None = None) -> jax.Array:
    """log p(target | what stands before it) of every supervised position.

    hidden: [K, B, T, D] after the final norm. Returns [K, P] in fp32; fillers hold a value to be weighted by 0.
    `chunk` positions of each organism meet the vocabulary at a time (default: about 1024 on every device).
    The output matrix is frozen: it gets no gradient from here.
    """
    k, b, t, d = hidden.shape
    picked = _pick(hidden.reshape(k, b * t, d), batch.target_index)
    # Gathered once, before the loop over chunks: inside, the compiler would gather it again for every chunk.
    head = reshard(unembed_weight(params), "vocab", None)
    count = batch.target_index.shape[1]
    chunk = min(count, chunk or max(1, 1024 * axis_size("organism") // k))
    pad = -count % chunk
    picked = jnp.pad(picked, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(batch.target_token, ((0, 0), (0, pad)))
    n = (count + pad) // chunk
    if n == 1:
        return _chunk_logps(picked, head, targets)[:, :count]
    chunks = jnp.moveaxis(picked.reshape(k, n, chunk, d), 1, 0), jnp.moveaxis(targets.reshape(k, n, chunk), 1, 0)
    logps = jax.lax.map(lambda c: _chunk_logps(c[0], head, c[1]), chunks)  # [n, K, chunk]
    return jnp.moveaxis(logps, 0, 1).reshape(k, n * chunk)[:, :count]


def _pick(flat: jax.Array, index: jax.Array) -> jax.Array:
    """flat [K, N, D], index [K, P] -> [K, P, D]. Each device picks from its own organisms: left to find that out by
    itself, the compiler gathers the hidden states of all.
    """

    def local(flat: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(flat, index[..., None], axis=1)

    rows, whole = constrain_to("organism", None), constrain_to("organism", None, None)
    if rows is not None:
        flat, index = reshard(flat, "organism", None, None), reshard(index, "organism", None)
        return jax.shard_map(local, in_specs=(whole, rows), out_specs=whole)(flat, index)
    return local(flat, index)


def _vocabulary_logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    out = constrain_to("organism", None, "vocab")
    return jnp.einsum("kpd,vd->kpv", hidden, head, preferred_element_type=jnp.float32, out_sharding=out)


def _target_rows(head: jax.Array, target: jax.Array) -> jax.Array:
    return head.at[target].get(out_sharding=constrain_to("organism", None, None)).astype(jnp.float32)


@jax.custom_vjp
def _chunk_logps(hidden: jax.Array, head: jax.Array, target: jax.Array) -> jax.Array:
    """hidden [K, C, D], head [V, D], target [K, C] -> log-probabilities [K, C]."""
    normalizer = jax.nn.logsumexp(_vocabulary_logits(hidden, head), axis=-1)
    return (hidden.astype(jnp.float32) * _target_rows(head, target)).sum(-1) - normalizer


def _chunk_logps_fwd(hidden: jax.Array, head: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A target's logp is one number, so its gradient is (W[target] - softmax @ W) times the cotangent: computed now,
    # with the logits at hand, in two products instead of the three that rematerialisation would take.
    logits = _vocabulary_logits(hidden, head)
    top = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    rows = _target_rows(head, target)
    expected = jnp.einsum(
        "kpv,vd->kpd",
        weights.astype(head.dtype),
        head,
        preferred_element_type=jnp.float32,
        out_sharding=constrain_to("organism", None, None),
    )
    logp = (hidden.astype(jnp.float32) * rows).sum(-1) - (top + jnp.log(total))[..., 0]
    return logp, (rows - expected / total).astype(hidden.dtype)


def _chunk_logps_bwd(unit: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    return cotangent[..., None].astype(unit.dtype) * unit, None, None


_chunk_logps.defvjp(_chunk_logps_fwd, _chunk_logps_bwd)


def sft_loss(logps: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean negative log-probability over each organism's own supervised tokens. [K, P], [K, P] -> [K]."""
    return -(logps * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1.0)


def example_logps(logps: jax.Array, batch: Batch, examples: int) -> jax.Array:
    """Sum of a batch's token log-probabilities by example. [K, P] -> [K, examples]."""
    member = batch.target_example[..., None] == jnp.arange(examples)
    return jnp.einsum("kp,kpe->ke", logps * batch.target_weight, member.astype(logps.dtype))


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    beta: float,
) -> jax.Array:
    """-log sigmoid(beta * margin) for every pair, from summed log-probabilities (Rafailov 2023, eq. 7).

    The loss is log 2 where policy and reference agree, as they do at step 0.
    """
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)
