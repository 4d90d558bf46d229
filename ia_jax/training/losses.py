"""Log-probabilities of supervised tokens, and the losses that are functions of them.

SFT, DPO, its reference and evaluation all use `supervised_logps`. Only supervised positions meet the vocabulary, a
chunk at a time, so `[B, T, V]` never exists.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ia_jax.data.batch import Batch
from ia_jax.models.transformer import Params, unembed_weight
from ia_jax.parallel.mesh import TRAINING, Rules


def supervised_logps(
    params: Params, hidden: jax.Array, batch: Batch, *, rules: Rules = TRAINING, chunk: int | None = None
) -> jax.Array:
    """log p(target | what stands before it) of every supervised position.

    hidden: [K, B, T, D] after the final norm. Returns [K, B, P] in fp32; fillers hold a value to be weighted by 0.
    `chunk` positions of each row meet the vocabulary at a time (default: about 1024 on every device).
    The output matrix is frozen: it gets no gradient from here.
    """
    k, b, _, d = hidden.shape
    picked = _pick(hidden, batch.target_index, rules)
    # Gathered once, before the loop over chunks: inside, the compiler would gather it again for every chunk.
    head = rules.reshard(unembed_weight(params), "vocab", None)
    count = batch.target_index.shape[-1]
    chunk = min(count, chunk or max(1, 1024 * rules.size("organism") * rules.size("rows") // (k * b)))
    pad = -count % chunk
    picked = jnp.pad(picked, ((0, 0), (0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(batch.target_token, ((0, 0), (0, 0), (0, pad)))
    n = (count + pad) // chunk
    if n == 1:
        return _chunk_logps(picked, head, targets, rules)[..., :count]
    chunks = jnp.moveaxis(picked.reshape(k, b, n, chunk, d), 2, 0), jnp.moveaxis(targets.reshape(k, b, n, chunk), 2, 0)
    logps = jax.lax.map(lambda c: _chunk_logps(c[0], head, c[1], rules), chunks)  # [n, K, B, chunk]
    return jnp.moveaxis(logps, 0, 2).reshape(k, b, n * chunk)[..., :count]


def _pick(hidden: jax.Array, index: jax.Array, rules: Rules) -> jax.Array:
    """hidden [K, B, T, D], index [K, B, P] -> [K, B, P, D]. Each device picks from its own rows: left to find that out
    by itself, the compiler gathers the hidden states of all.
    """

    def local(hidden: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(hidden, index[..., None], axis=2)

    rows, states = ("organism", "rows", None), ("organism", "rows", None, None)
    run = jax.shard_map(local, in_specs=(rules.spec(*states), rules.spec(*rows)), out_specs=rules.spec(*states))
    return run(rules.reshard(hidden, *states), rules.reshard(index, *rows))


def _vocabulary_logits(hidden: jax.Array, head: jax.Array, rules: Rules) -> jax.Array:
    out = rules.spec("organism", "rows", None, "vocab")
    return jnp.einsum("kbpd,vd->kbpv", hidden, head, preferred_element_type=jnp.float32, out_sharding=out)


def _target_rows(head: jax.Array, target: jax.Array, rules: Rules) -> jax.Array:
    return head.at[target].get(out_sharding=rules.spec("organism", "rows", None, None)).astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunk_logps(hidden: jax.Array, head: jax.Array, target: jax.Array, rules: Rules) -> jax.Array:
    """hidden [K, B, C, D], head [V, D], target [K, B, C] -> log-probabilities [K, B, C]."""
    normalizer = jax.nn.logsumexp(_vocabulary_logits(hidden, head, rules), axis=-1)
    return (hidden.astype(jnp.float32) * _target_rows(head, target, rules)).sum(-1) - normalizer


def _chunk_logps_fwd(
    hidden: jax.Array, head: jax.Array, target: jax.Array, rules: Rules
) -> tuple[jax.Array, jax.Array]:
    # A target's logp is one number, so its gradient is (W[target] - softmax @ W) times the cotangent: computed now,
    # with the logits at hand, in two products instead of the three that rematerialisation would take.
    logits = _vocabulary_logits(hidden, head, rules)
    top = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    rows = _target_rows(head, target, rules)
    expected = jnp.einsum(
        "kbpv,vd->kbpd",
        weights.astype(head.dtype),
        head,
        preferred_element_type=jnp.float32,
        out_sharding=rules.spec("organism", "rows", None, None),
    )
    logp = (hidden.astype(jnp.float32) * rows).sum(-1) - (top + jnp.log(total))[..., 0]
    return logp, (rows - expected / total).astype(hidden.dtype)


def _chunk_logps_bwd(rules: Rules, unit: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    return cotangent[..., None].astype(unit.dtype) * unit, None, None


_chunk_logps.defvjp(_chunk_logps_fwd, _chunk_logps_bwd)


def sft_loss(logps: jax.Array, weight: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
    """Mean negative log-probability over each organism's own supervised tokens. [K, B, P] twice -> [K].

    tokens: [K] how many these are, where the rows at hand are a part of the organism's; the parts' losses add up.
    """
    tokens = weight.sum((1, 2)) if tokens is None else tokens
    return -(logps * weight).sum((1, 2)) / jnp.maximum(tokens, 1.0)


def example_logps(logps: jax.Array, batch: Batch, examples: int, rules: Rules = TRAINING) -> jax.Array:
    """Sum of a batch's token log-probabilities by example. [K, B, P] -> [K, examples]."""
    member = batch.target_example[..., None] == jnp.arange(examples)
    weighted, out = logps * batch.target_weight, rules.spec("organism", None)
    return jnp.einsum("kbp,kbpe->ke", weighted, member.astype(logps.dtype), out_sharding=out)


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
