"""Continuous batching: generation in which a row that has ended makes room for a prompt that waits, of any organism.

`sampling.decode` runs a batch until its last row has ended. Here the same rows are decoded a few tokens at a time;
between, on the host, free rows are given to waiting prompts (`refill`), which are read and whose keys and values are
laid into the cache. A row's tokens are those that `decode` gives it: they depend on its prompt, adapters and key.

The cache is a ring of as many places as the longest prompt and the most new tokens need. At a step all rows write one
place, the same for all, so that a step costs what it costs in `decode`; a row sees the places since its own prompt
began. A place that a row writes again held a token that it no longer sees, or another row's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models.attention import Segments, attention_mask
from ia_jax.models.config import ModelConfig
from ia_jax.models.layers import each_layer
from ia_jax.models.lora import Adapter, Picked, Scanned, Stack, has_organism_axis, leaf_axes, map_leaves, to_scan
from ia_jax.models.refill import Refill, alike, shape_for
from ia_jax.models.sampling import Continuation, in_buckets, pick_tokens, taken_apart, unstack
from ia_jax.models.transformer import (
    KVCache,
    Params,
    decoding_rules,
    forward_cached,
    init_cache,
    logits_from_hidden,
    reshard_params,
)
from ia_jax.parallel.mesh import DECODING, TRAINING, Rules, pad_to_mesh, replicate, to_host

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

    keys = jax.vmap(key)(*draws.reshape(2, -1), step.reshape(-1))
    return pick_tokens(logits, keys, drawing.temperature, drawing.top_p).reshape(step.shape).astype(jnp.int32)


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
    positions = jnp.maximum(jnp.cumsum(real, -1) - 1, 0)
    mask = attention_mask(real.astype(jnp.int32), dtype, cfg.head_dim)  # padding sees padding
    if not isinstance(mask, Segments):
        mask = real[:, :, None, :] & (jnp.arange(t) <= jnp.arange(t)[:, None])
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
        logits = replicate(logits_from_hidden(params, hidden, rules))[:, :, 0].reshape(token.size, -1)
        return n + 1, _choose(logits, jnp.asarray(rows.draws), made + 1, drawing), cache, ended, out

    out = jnp.full((*token.shape, most), -1, jnp.int32)
    start = (jnp.int32(0), token, cache, ended_before, out)
    _, token, cache, _, out = jax.lax.while_loop(keep_going, one_more, start)
    return cache, token, out


@partial(jax.jit, static_argnames=("cfg", "k", "b", "length", "rules", "apart", "dtype"))
def _nothing(
    cfg: ModelConfig, k: int, b: int, length: int, rules: Rules, apart: bool, dtype: Any
) -> tuple[KVCache | list[KVCache], jax.Array]:
    cache = init_cache(cfg, k, b, length, dtype, rules)
    layers = [KVCache(*(x[None] for x in own)) for own in unstack(cache, cfg.num_hidden_layers)] if apart else cache
    return layers, jnp.zeros((k, b), jnp.int32)


_moved = jax.jit(reshard_params, static_argnames=("cfg", "rules"))
_apart = jax.jit(unstack, static_argnums=1)


@partial(jax.jit, static_argnames=("rules", "dtype", "layers"))
def _pick(stack: Stack, rules: Rules, dtype: Any, layers: int | None) -> Scanned | list:
    adapters = to_scan(_beside(stack), rules, dtype)
    return adapters if layers is None else each_layer(adapters, layers)


def _beside(stack: Stack) -> Stack:
    """A stack whose picked organisms lie by groups, as their bank does."""

    def bank(adapter: Adapter) -> Adapter:
        return map_leaves(lambda t, n, x: TRAINING.reshard(x, "organism", *leaf_axes(t, n)), adapter)

    return tuple(Picked(bank(m.bank), TRAINING.reshard(m.slots, "organism")) if isinstance(m, Picked) else m for m in stack)


class _Organisms:
    """A stack of which positions pick what they serve: `at([organism or None, …])`."""

    def __init__(self, stack: Stack, groups: int):
        self.members: list[tuple[Any, np.ndarray | None]] = []
        for member in stack:
            if isinstance(member, Picked):
                self.members.append((member.bank, to_host(member.slots)))
            elif has_organism_axis(member):
                padded: Any = pad_to_mesh(member, groups)
                count = jax.tree.leaves(padded)[0].shape[0]
                self.members.append((padded, np.arange(count, dtype=np.int32) % (count // groups)))
            else:
                self.members.append((member, None))

    def at(self, organisms: Sequence[int | None]) -> Stack:
        def pick(bank: Any, slots: np.ndarray | None) -> Any:
            if slots is None:
                return bank
            return Picked(bank, np.asarray([-1 if i is None else slots[i] for i in organisms], np.int32))  # pyright: ignore[reportArgumentType]

        return tuple(pick(*member) for member in self.members)


def generate_in_slots(
    params: Params,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[np.ndarray]],
    stack: Stack,
    stop_ids: Sequence[int],
    *,
    rows: int,
    positions: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    draws: Sequence[int] | None = None,
    rules: Rules | None = None,
    on_done: Callable[[int], object] = lambda count: None,
    on_work: Callable[[int, int], object] = lambda read, steps: None,
) -> list[list[Continuation]]:
    """What `generate_tokens` gives for the same prompts, keys and draws, by about `rows` rows that are refilled.

    positions: of how many organisms at once adapters are picked, about (default: as many as there are). on_done is told
    how many replies have ended since; on_work how many tokens of prompts were read and how many rows' steps were made,
    with padding and idle rows.
    """
    draws, rules = range(len(prompts)) if draws is None else draws, rules or decoding_rules(params)
    numbered = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]
    found: list[list[Continuation]] = [[Continuation([], False)] * len(own) for own in prompts]
    if not numbered:
        return found
    groups, parts, dtype = rules.size("organism"), rules.size("rows"), params["embed"].dtype
    if any(has_organism_axis(member) for member in stack):
        queues = [[(i, j) for j in range(len(own))] for i, own in enumerate(prompts)] + [[]] * (-len(prompts) % groups)
    else:
        queues = [numbered]  # all rows are of one set of adapters
    asks = [alike([prompts[i][j] for i, j in own]) for own in queues]
    counts = list(map(len, queues)) if len(queues) > 1 else [len(numbered) // groups] * groups
    shape = shape_for(counts, rows, len(prompts) if positions is None else positions, groups, parts)
    refill, organisms = Refill(asks, shape), _Organisms(stack, groups)
    longest = in_buckets(max(len(prompts[i][j]) for i, j in numbered))
    half = in_buckets(longest // 2)
    k, b, apart = shape.positions, shape.width, taken_apart(params)
    base = _moved(params, cfg, rules) if rules != TRAINING and TRAINING.size("embed") > 1 else params
    layers = {**base, "layers": _apart(base["layers"], cfg.num_hidden_layers)} if apart else base
    cache, token = _nothing(cfg, k, b, longest + max_new_tokens, rules, apart, dtype)
    drawing = Drawing(
        jax.random.key(0) if key is None else key, jnp.float32(temperature), jnp.float32(top_p)
    )
    now = Rows(np.zeros((2, k, b), np.int32), *(np.zeros((k, b), np.int32) for _ in range(4)))
    made: dict[tuple[int, int], list[int]] = {}
    clock, served, adapters, ended = 0, None, None, set(stop_ids)
    while True:
        refill.admit()
        while refill.is_due(int(now.running.sum())):
            entries = refill.entries()
            t = half if all(len(entry.tokens) <= half for entry in entries.values()) else longest
            tokens = np.zeros((shape.reads * groups, parts, t), np.int32)
            real, source = np.zeros(tokens.shape, bool), np.full((k, b), -1, np.int32)
            own: list[int | None] = [None] * len(tokens)
            for (row, part), entry in entries.items():
                size, own[row] = len(entry.tokens), entry.organism
                tokens[row, part, t - size :], real[row, part, t - size :] = entry.tokens, True
                for place, number in entry.rows.items():
                    i, j = queues[entry.organism][number]
                    source[place], now.draws[:, *place] = row * parts + part, (draws[i], j)
                    now.length[place], now.begin[place] = size, (clock - size) % (longest + max_new_tokens)
                    now.made[place], now.running[place], made[place] = 0, 1, []
            cache, token = read(
                base, cache, token, tokens, real, organisms.at(own), source, clock, now.draws.copy(), drawing, cfg, rules
            )
            on_work(tokens.size, 0)
        if not now.running.any():
            return found
        if served != refill.serves:
            served = list(refill.serves)
            adapters = _pick(organisms.at(served), rules, dtype, cfg.num_hidden_layers if apart else None)
        wanted = max(1, refill.enough - refill.unread) if any(refill.waiting) else k * b
        cache, token, out = go_on(
            layers,
            cache,
            token,
            adapters,
            now,
            clock,
            wanted,
            max_new_tokens,
            np.asarray(stop_ids, np.int32),
            drawing,
            cfg,
            MOST_STEPS,
            rules,
        )
        new = to_host(out)
        steps = int((new >= 0).any((0, 1)).sum())
        clock += steps
        on_work(0, steps * k * b)
        over = 0
        for place in list(made):
            own_new = [int(x) for x in new[place] if x >= 0]
            made[place] += own_new
            now.made[place] += len(own_new)
            stopped = made[place][-1] in ended
            if stopped or len(made[place]) >= max_new_tokens:
                organism, number = refill.rows.pop(place)
                i, j = queues[organism][number]
                ids = made.pop(place)
                found[i][j] = Continuation(ids[: len(ids) - stopped], stopped)
                now.running[place], over = 0, over + 1
        on_done(over)
