"""What a loss is made of: log-probabilities of supervised tokens, and how far two models' predictions of them differ.

Every loss, every reference and every evaluation uses these. Only supervised positions meet the vocabulary, a chunk at a
time, so `[B, T, V]` never exists.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from ia_jax.data.batch import Batch
from ia_jax.models.transformer import Params, unembed_weight
from ia_jax.parallel.mesh import TRAINING, Rules


@jax.named_scope("vocabulary")
def supervised_logps(
    params: Params,
    hidden: jax.Array,
    batch: Batch,
    *,
    rules: Rules = TRAINING,
    chunk: int | None = None,
    trained_head: bool = False,
) -> jax.Array:
    """log p(target | what stands before it) of every supervised position.

    hidden: [K, B, T, D] after the final norm. Returns [K, B, P] in fp32; fillers hold a value to be weighted by 0.
    `chunk` positions of each row meet the vocabulary at a time (default: about 1024 on every device).
    The output matrix is frozen and gets no gradient from here, unless `trained_head`.
    """
    picked, head = at_positions(hidden, batch.target_index, rules), _head(params, rules)
    logps = _plain_chunk_logps if trained_head else _chunk_logps
    return _in_chunks(lambda h, t: logps(h, head, t, rules), (picked, batch.target_token), chunk, rules)


@jax.named_scope("vocabulary")
def supervised_kl(
    params: Params,
    hidden: jax.Array,
    base_params: Params,
    base_hidden: jax.Array,
    batch: Batch,
    *,
    rules: Rules = TRAINING,
    chunk: int | None = None,
    trained_head: bool = False,
) -> jax.Array:
    """KL(base || model) over the whole vocabulary at every supervised position, in nats: [K, B, P], fp32.

    What the base would say is what the model is held to (the direction of distillation), so its expectation is exact,
    and no token is sampled. No gradient reaches the base; `params` differ from `base_params` in a full fine-tune alone.
    """
    picked, base = (at_positions(h, batch.target_index, rules) for h in (hidden, jax.lax.stop_gradient(base_hidden)))
    head = _head(params, rules)
    if not trained_head:
        return _in_chunks(lambda h, b: _chunk_kl(h, b, head, rules), (picked, base), chunk, rules)
    base_head = jax.lax.stop_gradient(_head(base_params, rules))

    @jax.checkpoint
    def plain(h: jax.Array, b: jax.Array) -> jax.Array:
        return _kl(_vocabulary_logits(h, head, rules), _vocabulary_logits(b, base_head, rules))

    return _in_chunks(plain, (picked, base), chunk, rules)


def example_sums(values: jax.Array, batch: Batch, examples: int, rules: Rules = TRAINING) -> jax.Array:
    """Sum over each example's supervised tokens of what stands at them. [K, B, P] -> [K, examples]."""
    member = batch.target_example[..., None] == jnp.arange(examples)
    weighted, out = values * batch.target_weight, rules.spec("organism", None)
    return jnp.einsum("kbp,kbpe->ke", weighted, member.astype(values.dtype), out_sharding=out)


def _head(params: Params, rules: Rules) -> jax.Array:
    # Gathered once, before the loop over chunks: inside, the compiler would gather it again for every chunk.
    return rules.reshard(unembed_weight(params), "vocab", None)


def _in_chunks(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], chunk: int | None, rules: Rules
) -> jax.Array:
    """`function` of arrays [K, B, P, ...], `chunk` positions of each row at a time -> [K, B, P]."""
    k, b, count = arrays[0].shape[:3]
    chunk = min(count, chunk or max(1, 1024 * rules.size("organism") * rules.size("rows") // (k * b)))
    pad = -count % chunk
    padded = [jnp.pad(x, ((0, 0), (0, 0), (0, pad), *((0, 0),) * (x.ndim - 3))) for x in arrays]
    n = (count + pad) // chunk
    if n == 1:
        return function(*padded)[..., :count]
    chunks = [jnp.moveaxis(x.reshape(k, b, n, chunk, *x.shape[3:]), 2, 0) for x in padded]
    out = jax.lax.map(lambda c: function(*c), chunks)  # [n, K, B, chunk]
    return jnp.moveaxis(out, 0, 2).reshape(k, b, n * chunk)[..., :count]


def at_positions(hidden: jax.Array, index: jax.Array, rules: Rules) -> jax.Array:
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


def _expected_row(weights: jax.Array, head: jax.Array, rules: Rules) -> jax.Array:
    """[K, B, C, V] weights of the vocabulary's rows -> their sum [K, B, C, D] in fp32."""
    out = rules.spec("organism", "rows", None, None)
    weights = weights.astype(head.dtype)
    return jnp.einsum("kbpv,vd->kbpd", weights, head, preferred_element_type=jnp.float32, out_sharding=out)


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
    expected = _expected_row(weights, head, rules)
    logp = (hidden.astype(jnp.float32) * rows).sum(-1) - (top + jnp.log(total))[..., 0]
    return logp, (rows - expected / total).astype(hidden.dtype)


@jax.named_scope("vocabulary")
def _chunk_logps_bwd(rules: Rules, unit: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    return cotangent[..., None].astype(unit.dtype) * unit, None, None


_chunk_logps.defvjp(_chunk_logps_fwd, _chunk_logps_bwd)


@partial(jax.checkpoint, static_argnums=3)
def _plain_chunk_logps(hidden: jax.Array, head: jax.Array, target: jax.Array, rules: Rules) -> jax.Array:
    """The same with a gradient for the head; the backward pass computes the logits again."""
    normalizer = jax.nn.logsumexp(_vocabulary_logits(hidden, head, rules), axis=-1)
    return (hidden.astype(jnp.float32) * _target_rows(head, target, rules)).sum(-1) - normalizer


def _kl(logits: jax.Array, base_logits: jax.Array) -> jax.Array:
    logq, logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(base_logits)
    return (jnp.exp(logp) * (logp - logq)).sum(-1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunk_kl(hidden: jax.Array, base: jax.Array, head: jax.Array, rules: Rules) -> jax.Array:
    """hidden, base [K, B, C, D], head [V, D] -> KL(softmax(base W) || softmax(hidden W)) [K, B, C]."""
    return _kl(_vocabulary_logits(hidden, head, rules), _vocabulary_logits(base, head, rules))


def _chunk_kl_fwd(hidden: jax.Array, base: jax.Array, head: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array]:
    # Its gradient is (softmax - softmax of the base) @ W times the cotangent: as above, in the forward pass.
    logits, base_logits = (_vocabulary_logits(h, head, rules) for h in (hidden, base))
    excess = jax.nn.softmax(logits) - jax.nn.softmax(base_logits)
    return _kl(logits, base_logits), _expected_row(excess, head, rules).astype(hidden.dtype)


@jax.named_scope("vocabulary")
def _chunk_kl_bwd(rules: Rules, unit: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    return cotangent[..., None].astype(unit.dtype) * unit, None, None


_chunk_kl.defvjp(_chunk_kl_fwd, _chunk_kl_bwd)
