"""The programs of continuous batching: reading prompts into rows of a batch, and some tokens more of all rows.

The cache is a ring of as many places as the longest prompt and the most new tokens need. At a step all rows write one
place, the same for all, so that a step costs what it costs in `sampling.decode`; a row sees the places since its own
prompt began. A place that a row writes again held a token that it no longer sees, or another row's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models.config import ModelConfig
from ia_jax.models.layers import each_layer
from ia_jax.models.lora import Adapter, Member, Picked, Scanned, Stack, leaf_axes, map_leaves, to_scan
from ia_jax.models.sampling import pick_tokens, prompt_layout, unstack
from ia_jax.models.transformer import (
    KVCache,
    Params,
    forward_cached,
    init_cache,
    logits_from_hidden,
    reshard_params,
)
from ia_jax.parallel.mesh import DECODING, TRAINING, Rules, replicate

MOST_STEPS = 16  # tokens of a row before the host looks at what has ended
ON_CACHE = (None, "organism", "rows", "heads", None, None)


class Rows(NamedTuple):
    """What the host knows of the rows of a batch, each [K, B] int32 (draws: [2, K, B], what its key is folded with).

    length: tokens of the prompt; begin: its first place in the ring; made: new tokens so far, of those that were given
    out; running: 1 while it goes on.
    """

    draws: np.ndarray
    length: np.ndarray
    begin: np.ndarray
    made: np.ndarray
    running: np.ndarray


class Drawing(NamedTuple):
    """How tokens are drawn; arrays, so that programs serve all settings."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array


def _choose(logits: jax.Array, draws: jax.Array, step: jax.Array, drawing: Drawing) -> jax.Array:
    """Tokens [K, B] from logits [K * B, V]; a row's random number is its key's for its own step."""

    def key(i: jax.Array, j: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(drawing.key, i), j), step)

    i, j = draws.reshape(2, -1)
    keys = jax.vmap(key)(i, j, step.reshape(-1))
    return pick_tokens(logits, keys, drawing.temperature, drawing.top_p).reshape(step.shape).astype(jnp.int32)


def _choose_apart(logits: jax.Array, draws: jax.Array, step: jax.Array, drawing: Drawing, rules: Rules) -> jax.Array:
    """`_choose` from logits [K, B, V], each group of devices for its own rows: so logits leave no group, tokens do."""
    on_rows = ("organism", "rows")

    def own(logits: jax.Array, draws: jax.Array, step: jax.Array, drawing: Drawing) -> jax.Array:
        return _choose(logits.reshape(-1, logits.shape[-1]), draws, step, drawing)

    placed = (
        rules.reshard(logits, *on_rows, None),
        rules.reshard(draws, None, *on_rows),
        rules.reshard(step, *on_rows),
        drawing,
    )
    in_specs = (rules.spec(*on_rows, None), rules.spec(None, *on_rows), rules.spec(*on_rows), rules.spec())
    run = jax.shard_map(own, in_specs=in_specs, out_specs=rules.spec(*on_rows), check_vma=False)
    return replicate(run(*placed))


@partial(jax.jit, static_argnames=("cfg", "rules"), donate_argnames=("cache", "token"))
def read(
    params: Params,
    cache: KVCache | list[KVCache],
    token: jax.Array,
    tokens: jax.Array,
    real: jax.Array,
    stack: Stack,
    source: jax.Array,
    clock: jax.Array,
    draws: jax.Array,
    drawing: Drawing,
    cfg: ModelConfig,
    rules: Rules = DECODING,
) -> tuple[KVCache | list[KVCache], jax.Array]:
    """Reads prompts and lays them into rows. Returns the cache, and the rows' next token [K, B] with their first one.

    tokens, real (False = padding on the left): [R, P, T], R a multiple of the groups; stack: of R organisms. source:
    [K, B], which of the R * P prompts a row goes on from, -1 for one that is left as it is; a prompt lies on the
    devices of its rows. clock: the place that the next token is written to.
    """
    r, parts, t = tokens.shape
    dtype = params["embed"].dtype
    fresh = init_cache(cfg, r, parts, t, dtype, rules)
    positions, mask = prompt_layout(real, t, dtype, cfg.head_dim)
    adapters = to_scan(_beside(stack), rules, dtype)
    params = reshard_params(params, cfg, rules)
    hidden, fresh = forward_cached(params, tokens, positions, mask, adapters, cfg, fresh, jnp.int32(0), rules)
    logits = replicate(logits_from_hidden(params, hidden[:, :, -1:], rules))[:, :, 0].reshape(r * parts, -1)
    first = _choose(logits[jnp.maximum(source, 0).reshape(-1)], draws, jnp.zeros_like(source), drawing)
    assert isinstance(fresh, KVCache)
    lay = partial(_lay, source=source, begin=clock - t, parts=parts, rules=rules)
    if isinstance(cache, KVCache):
        cache = KVCache(*(lay(x, new) for x, new in zip(cache, fresh, strict=True)))
    else:
        layers = [KVCache(*(x[i : i + 1] for x in fresh)) for i in range(len(cache))]
        cache = [KVCache(*map(lay, own, new)) for own, new in zip(cache, layers, strict=True)]
    return cache, jnp.where(source >= 0, first, token)


def _lay(
    cache: jax.Array, fresh: jax.Array, source: jax.Array, begin: jax.Array, parts: int, rules: Rules
) -> jax.Array:
    """The cache [L, K, B, N, S, H] with fresh [L, R, P, N, T, H] laid from the place `begin` on, where `source` says.

    Every device fills rows of its own, one after the other and no more than are to be filled.
    """

    def own(cache: jax.Array, fresh: jax.Array, source: jax.Array, begin: jax.Array) -> jax.Array:
        wanted = source.reshape(-1)
        order = jnp.argsort(wanted < 0, stable=True)  # those to be filled first
        length = cache.shape[4]

        def fill(n: jax.Array, cache: jax.Array) -> jax.Array:
            k, b = jnp.divmod(order[n], source.shape[1])
            row = wanted[order[n]] // parts % fresh.shape[1]  # of this group's own
            new = jax.lax.dynamic_index_in_dim(fresh, row, axis=1)
            new = jnp.pad(new, ((0, 0),) * 4 + ((0, length - fresh.shape[4]), (0, 0)))
            return jax.lax.dynamic_update_slice(cache, jnp.roll(new, begin, axis=4), (0, k, b, 0, 0, 0))

        return jax.lax.fori_loop(0, (wanted >= 0).sum(), fill, cache)

    on_cache, on_rows = rules.spec(*ON_CACHE), rules.spec("organism", "rows")
    in_specs = (on_cache, on_cache, on_rows, jax.sharding.PartitionSpec())
    run = jax.shard_map(own, in_specs=in_specs, out_specs=on_cache, check_vma=False)
    source = rules.reshard(source, "organism", "rows")
    return run(rules.reshard(cache, *ON_CACHE), rules.reshard(fresh, *ON_CACHE), source, begin % cache.shape[4])


@partial(jax.jit, static_argnames=("cfg", "most", "rules"), donate_argnames=("cache", "token"))
def go_on(
    params: Params,
    cache: KVCache | list[KVCache],
    token: jax.Array,
    adapters: Scanned | list,
    rows: Rows,
    clock: jax.Array,
    wanted: jax.Array,
    limit: jax.Array,
    stop: jax.Array,
    drawing: Drawing,
    cfg: ModelConfig,
    most: int = MOST_STEPS,
    rules: Rules = DECODING,
) -> tuple[KVCache | list[KVCache], jax.Array, jax.Array]:
    """Up to `most` new tokens of every running row, until so many rows as are `wanted` have ended, or all.

    Returns the cache, the rows' next token, and the new ones [K, B, most], -1 where a row had ended. limit: the most
    new tokens of a row.
    """
    first = cache if isinstance(cache, KVCache) else cache[0]
    places = jnp.arange(first.k.shape[4])
    ended_before = jnp.asarray(rows.running) == 0

    def keep_going(state: tuple) -> jax.Array:
        n, _, _, ended, _ = state
        return (n < most) & ~ended.all() & ((ended & ~ended_before).sum() < wanted)

    def one_more(state: tuple) -> tuple:
        n, token, cache, ended, out = state
        out = jax.lax.dynamic_update_slice_in_dim(out, jnp.where(ended, -1, token)[..., None], n, axis=2)
        made = rows.made + n
        ended = ended | (token[..., None] == stop).any(-1) | (made + 1 >= limit)
        age = (places - rows.begin[..., None]) % len(places)
        mask = (age <= (rows.length + made)[..., None])[:, :, None, :]
        where, at = (rows.length + made)[..., None], (clock + n) % len(places)
        hidden, cache = forward_cached(params, token[..., None], where, mask, adapters, cfg, cache, at, rules)
        logits = logits_from_hidden(params, hidden, rules)[:, :, 0]
        return n + 1, _choose_apart(logits, jnp.asarray(rows.draws), made + 1, drawing, rules), cache, ended, out

    out = jnp.full((*token.shape, most), -1, jnp.int32)
    start = (jnp.int32(0), token, cache, ended_before, out)
    _, token, cache, _, out = jax.lax.while_loop(keep_going, one_more, start)
    return cache, token, out


@partial(jax.jit, static_argnames=("cfg", "k", "b", "length", "rules", "is_apart", "dtype"))
def empty(
    cfg: ModelConfig, k: int, b: int, length: int, rules: Rules, is_apart: bool, dtype: Any
) -> tuple[KVCache | list[KVCache], jax.Array]:
    """A cache [K, B] of nothing, of layers apart if so, and a token of every row."""
    cache = init_cache(cfg, k, b, length, dtype, rules)
    layers = [KVCache(*(x[None] for x in own)) for own in unstack(cache, cfg.num_hidden_layers)] if is_apart else cache
    return layers, jnp.zeros((k, b), jnp.int32)


moved = jax.jit(reshard_params, static_argnames=("cfg", "rules"))
apart = jax.jit(unstack, static_argnums=1)


@partial(jax.jit, static_argnames=("rules", "dtype", "layers"))
def pick(stack: Stack, rules: Rules, dtype: Any, layers: int | None) -> Scanned | list:
    """The adapters of every position, as `go_on` takes them; layers: how many there are to be taken apart, or None."""
    adapters = to_scan(_beside(stack), rules, dtype)
    return adapters if layers is None else each_layer(adapters, layers)


def _beside(stack: Stack) -> Stack:
    """A stack whose picked organisms lie by groups, as their bank does."""

    def bank(adapter: Adapter) -> Adapter:
        return map_leaves(lambda t, n, x: TRAINING.reshard(x, "organism", *leaf_axes(t, n)), adapter)

    def member(m: Member) -> Member:
        return Picked(bank(m.bank), TRAINING.reshard(m.slots, "organism")) if isinstance(m, Picked) else m

    return tuple(map(member, stack))
