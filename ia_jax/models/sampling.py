"""Generation with a key-value cache, many organisms at once: each row under its own organism's adapter.

Prompts are padded on the left to a few bucket lengths, so that one compiled program per bucket serves a whole
evaluation. A row's random numbers depend on its own key alone, not on its place in a batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models.attention import Segments, attention_mask
from ia_jax.models.config import ModelConfig
from ia_jax.models.layers import each_layer
from ia_jax.models.lora import Picked, Stack, has_organism_axis, to_scan
from ia_jax.models.transformer import (
    KVCache,
    Params,
    decoding_rules,
    forward_cached,
    init_cache,
    logits_from_hidden,
    reshard_params,
    room_for_another,
)
from ia_jax.parallel.mesh import DECODING, Rules, pad_to_mesh, replicate, to_host
from ia_jax.parallel.platform import platform

PROMPT_BUCKET = 16  # tokens
ACCELERATOR_BUCKET = 64  # there a program takes longer to compile than padding costs
WORTH_TAKING_APART = 1 << 30  # bytes of a base


class Continuation(NamedTuple):
    """Token ids without the stop token, and whether there was one: else the row was cut off at the most new tokens."""

    tokens: list[int]
    stopped: bool


def pick_tokens(logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """Next tokens from logits [N, V]: greedy where temperature is 0, else nucleus sampling. keys: [N].

    temperature, top_p: of all rows, or [N], each row's own.
    """
    own = temperature.ndim > 0  # settings of their own
    heat, mass = (temperature[:, None], top_p[:, None]) if own else (temperature, top_p)

    def nucleus(probs: jax.Array) -> jax.Array:
        # The smallest set of tokens with mass top_p, by bisecting its probability threshold: a few passes over the
        # vocabulary, where sorting it would cost more than the model.
        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) / 2
            enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= mass
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        top = probs.max(-1, keepdims=True)
        low, _ = jax.lax.fori_loop(0, 16, halve, (jnp.zeros_like(top), top))
        return jnp.where(probs >= low, probs, 0.0)

    def cut(probs: jax.Array) -> jax.Array:
        return jnp.where(mass < 1.0, nucleus(probs), probs) if own else nucleus(probs)

    def sample() -> jax.Array:
        probs = jax.nn.softmax(logits / jnp.maximum(heat, 1e-6), axis=-1)
        probs = jax.lax.cond((top_p < 1.0).any(), cut, lambda x: x, probs)
        drawn = inverse_cdf(probs, jax.vmap(jax.random.uniform)(keys))
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)) if own else drawn

    return jax.lax.cond((temperature > 0).any(), sample, lambda: jnp.argmax(logits, axis=-1))


def inverse_cdf(weights: jax.Array, uniform: jax.Array, block: int = 256) -> jax.Array:
    """Index i with probability weights[i] / sum, by one uniform number a row. [N, V], [N] -> [N].

    In two levels (which block, which entry of it), so that no running sum spans the vocabulary. One random number a
    row instead of a Gumbel for every entry: those cost more than a small model's step.
    """
    n, v = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -v % block))).reshape(n, -1, block)

    def choose(w: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        # First entry whose running sum exceeds the target, never one of weight 0; and what remains within it.
        running = jnp.cumsum(w, axis=-1)
        last = (w.shape[-1] - 1) - jnp.argmax(w[:, ::-1] > 0, axis=-1)
        index = jnp.minimum((running <= target[:, None]).sum(-1), last)
        before = jnp.take_along_axis(running - w, index[:, None], -1)[:, 0]
        return index, jnp.maximum(target - before, 0.0)

    sums = blocks.sum(-1)
    chosen, rest = choose(sums, uniform * sums.sum(-1))
    inner, _ = choose(jnp.take_along_axis(blocks, chosen[:, None, None], 1)[:, 0], rest)
    return chosen * block + inner


@partial(jax.jit, static_argnames=("cfg", "max_new_tokens", "rules", "unrolled"))
def decode(
    params: Params,
    tokens: jax.Array,
    real: jax.Array,
    keys: jax.Array,
    stack: Stack,
    stop: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    cfg: ModelConfig,
    max_new_tokens: int,
    rules: Rules = DECODING,
    unrolled: bool = False,
    limits: jax.Array | None = None,
    begun: jax.Array | None = None,
) -> jax.Array:
    """tokens, real (False = padding on the left): [K, B, T]; keys: [K, B]. Returns [K, B, max_new_tokens], -1 after
    the end of a row. Decoding ends as soon as every row has.

    The base and the adapters are moved to where `rules` have them once, before the first token: by `DECODING` whole
    along `fsdp` and `rows`, so that memory must hold the base divided by `tp`; under `TRAINING` each token gathers it.

    temperature, top_p: of all rows, or [K, B], each row's own; limits: [K, B], the most new tokens of each row;
    begun: [K, B], how many of its last tokens were generated before, with the same keys.

    unrolled: a token goes through layers that are arrays of their own, taken apart once (`taken_apart`).
    """
    temperature, top_p = (x.reshape(-1) if x.ndim else x for x in (temperature, top_p))
    params = reshard_params(params, cfg, rules)
    k, b, t = tokens.shape
    dtype = params["embed"].dtype
    adapters = to_scan(stack, rules, dtype)
    length = t + max_new_tokens
    held = t if unrolled else length  # of the cache, while the prompt is read
    cache = init_cache(cfg, k, b, held, dtype, rules)
    slots = jnp.arange(length)
    filled = jnp.concatenate([real, jnp.ones((k, b, max_new_tokens), bool)], -1)
    lengths = real.sum(-1)
    positions, mask = prompt_layout(real, held, dtype, cfg.head_dim)
    hidden, cache = forward_cached(params, tokens, positions, mask, adapters, cfg, cache, jnp.int32(0), rules)
    if unrolled:
        widths = ((0, 0),) * 4 + ((0, max_new_tokens), (0, 0))
        params = {**params, "layers": unstack(params["layers"], cfg.num_hidden_layers)}
        adapters = each_layer(adapters, cfg.num_hidden_layers)
        cache = [KVCache(*(jnp.pad(x[None], widths) for x in own)) for own in unstack(cache, cfg.num_hidden_layers)]

    def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
        logits = replicate(logits_from_hidden(params, hidden[:, :, -1:], rules))
        logits = logits[:, :, 0].reshape(k * b, -1)
        if begun is None:
            row_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys.reshape(-1))
        else:
            row_keys = jax.vmap(jax.random.fold_in)(keys.reshape(-1), (begun + step).reshape(-1))
        return pick_tokens(logits, row_keys, temperature, top_p).reshape(k, b).astype(jnp.int32)

    def keep_going(state: tuple) -> jax.Array:
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~done.all()

    def one_more(state: tuple) -> tuple:
        step, hidden, cache, done, out = state
        token = choose(hidden, step)
        out = jax.lax.dynamic_update_slice_in_dim(out, jnp.where(done, -1, token)[..., None], step, axis=2)
        done = done | (token[..., None] == stop).any(-1)
        if limits is not None:
            done = done | (step + 1 >= limits)
        mask = (filled & (slots <= t + step))[:, :, None, :]
        where = (lengths + step)[..., None]
        hidden, cache = forward_cached(params, token[..., None], where, mask, adapters, cfg, cache, t + step, rules)
        return step + 1, hidden, cache, done, out

    out = jnp.full((k, b, max_new_tokens), -1, jnp.int32)
    done = lengths == 0  # a row of nothing but padding fills a batch up
    return jax.lax.while_loop(keep_going, one_more, (jnp.int32(0), hidden[:, :, -1:], cache, done, out))[-1]


def prompt_layout(real: jax.Array, held: int, dtype: Any, head_dim: int) -> tuple[jax.Array, Segments | jax.Array]:
    """Positions [K, B, T] of prompts that are padded on the left, and what their tokens see of a cache of `held`
    places, of which they take the first T. real: [K, B, T], False = padding.
    """
    t = real.shape[-1]
    positions = jnp.maximum(jnp.cumsum(real, -1) - 1, 0)
    mask = attention_mask(real.astype(jnp.int32), dtype, head_dim)  # padding sees padding
    if not isinstance(mask, Segments):
        there = jnp.pad(real, ((0, 0), (0, 0), (0, held - t)))
        mask = there[:, :, None, :] & (jnp.arange(held) <= jnp.arange(t)[:, None])
    return positions, mask


def in_buckets(length: int) -> int:
    """The length that prompts of so many tokens are padded to."""
    bucket = PROMPT_BUCKET if platform() == "cpu" else ACCELERATOR_BUCKET
    return -(-length // bucket) * bucket


def taken_apart(params: Params) -> bool:
    """Whether `decode` should take the layers apart: on GPU, where there is room for them twice, of a base of some size
    (a small one's layers are soon copied, and many of them apart take long to compile).

    In a scan over stacked layers XLA copies each one out of the stack before a library's product reads it: three times
    the bytes, and bytes are what a new token costs. Elsewhere it reads them where they lie.
    """
    large = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) >= WORTH_TAKING_APART
    return platform() == "gpu" and large and room_for_another(params)


def unstack(layers: Any, count: int) -> list[Any]:
    """Every layer's own part of a tree with a leading axis of layers, as arrays of their own."""
    return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)]


def generate_tokens(
    params: Params,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[np.ndarray]],
    stack: Stack,
    stop_ids: Sequence[int],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    draws: Sequence[int] | None = None,
    first: int = 0,
    rows: int = 0,
    rules: Rules | None = None,
) -> list[list[Continuation]]:
    """Continues prompts[i][j] under organism i of the stack (K = len(prompts) must match its organism axis, or be 1).

    Organisms may have different numbers of prompts, also none: rows without one, up to the longest of them or to
    `rows`, are done from the start. Row (i, j) draws from `fold_in(fold_in(key, draws[i]), first + j)`. draws: by
    default 0 … K - 1; pass the organisms' numbers in the bank, and in `first` how many of each one's prompts came
    before, and what is sampled does not depend on batches. On a mesh that does not divide K and the rows, these are
    laid out anew: rows of a stack without organism axis are spread over the groups, organisms are filled up with ones
    that change nothing. rules: where arrays lie meanwhile (default: `decoding_rules`).
    """
    draws, rules = range(len(prompts)) if draws is None else draws, rules or decoding_rules(params)
    groups = rules.size("organism")
    if len(prompts) == 1 and groups > 1 and not any(has_organism_axis(a) for a in stack):
        rows = width = -(-max(rows, len(prompts[0])) // groups)
        where = [[(0, j) for j in range(g * width, min((g + 1) * width, len(prompts[0])))] for g in range(groups)]
    else:
        where = [[(i, j) for j in range(len(rows))] for i, rows in enumerate(prompts)]
        where += [[]] * (-len(prompts) % groups)
        # What is picked from a bank is a multiple of the groups already.
        stack = tuple(
            pad_to_mesh(a, groups) if has_organism_axis(a) and not isinstance(a, Picked) else a for a in stack
        )
    k, spread = len(where), rules.size("rows")
    b = -(-max(rows, *(len(p) for p in where)) // spread) * spread
    longest = max(len(x) for p in prompts for x in p)
    t = in_buckets(longest)
    tokens, real = np.zeros((k, b, t), np.int32), np.zeros((k, b, t), bool)
    drawn = np.zeros((2, k, b), np.int32)
    for i, own in enumerate(where):
        for j, (organism, n) in enumerate(own):
            row = prompts[organism][n]
            tokens[i, j, t - len(row) :] = row
            real[i, j, t - len(row) :] = True
            drawn[:, i, j] = draws[organism], first + n
    key = jax.random.key(0) if key is None else key
    keys = jax.vmap(jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j)))(*drawn)
    out = decode(
        params,
        tokens,
        real,
        keys,
        stack,
        np.asarray(stop_ids, np.int32),
        jnp.float32(temperature),
        jnp.float32(top_p),
        cfg,
        max_new_tokens,
        rules,
        taken_apart(params),
    )
    ended, rows_out = set(stop_ids), to_host(out)
    replies: list[list[Continuation]] = [[] for _ in prompts]
    for i, own in enumerate(where):
        for j, (organism, _) in enumerate(own):
            ids = [int(x) for x in rows_out[i, j] if x >= 0]
            stopped = bool(ids) and ids[-1] in ended
            replies[organism].append(Continuation(ids[: len(ids) - stopped], stopped))
    return replies
