"""Generation for rows that have little in common: each with its own adapters, settings, seed and length.

What a server needs that answers whoever asks. A row's tokens depend on itself alone, not on what it is batched with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Stack
from ia_jax.models.sampling import Continuation, decode, taken_apart
from ia_jax.models.transformer import Params, decoding_rules, forward, logits_from_hidden, segment_positions
from ia_jax.parallel.mesh import TRAINING, replicate, to_host

FIRST_PROMPT, FIRST_NEW = 64, 32
# Lengths are rounded up, so that a few programs serve all. A row ends by its own limit, so more room for new tokens
# costs memory alone.
PROMPT_STEP, NEW_STEP = 2, 4


class Row(NamedTuple):
    """A prompt's token ids [T] and how it is continued: greedily at temperature 0, else drawn with the seed.

    begun: how many of the last ids were generated before: the row goes on as if it had not been interrupted (in bf16,
    where reading a text rounds otherwise than writing it, but nearly so).
    """

    tokens: np.ndarray
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    begun: int = 0


class TokenScores(NamedTuple):
    """Log-probabilities at temperature 1: of each new token [M], and of the likeliest tokens in its place [M, N]."""

    own: np.ndarray
    best: np.ndarray
    best_scores: np.ndarray


def rounded(length: int, first: int, step: int = PROMPT_STEP) -> int:
    """The least first × step^n that is not below the length."""
    while first < length:
        first *= step
    return first


def prompt_room(length: int) -> int:
    """The tokens that prompts of at most this length are padded to: a power of two from 64, or three quarters of it."""
    whole = rounded(length, FIRST_PROMPT)
    return whole * 3 // 4 if length <= whole * 3 // 4 else whole


def continue_rows(
    params: Params, cfg: ModelConfig, rows: Sequence[Sequence[Row]], stack: Stack, stop_ids: Sequence[int], width: int
) -> list[list[Continuation]]:
    """Continues rows[i][j] under position i of the stack (K = len(rows) must match its organism axis).

    width: rows that every position has room for, B. K × B and the lengths choose the compiled program. Row (i, j) draws
    from `key(seed)` alone.
    """
    filled = [(i, j, row) for i, own in enumerate(rows) for j, row in enumerate(own)]
    k, t = len(rows), prompt_room(max(len(r.tokens) for *_, r in filled))
    most = rounded(max(r.max_new_tokens for *_, r in filled), FIRST_NEW, NEW_STEP)
    rules = decoding_rules(params)
    width = -(-width // rules.size("rows")) * rules.size("rows")
    tokens, real = np.zeros((k, width, t), np.int32), np.zeros((k, width, t), bool)
    seeds, limits = np.zeros((k, width), np.uint32), np.ones((k, width), np.int32)
    heat, mass = np.zeros((k, width), np.float32), np.ones((k, width), np.float32)
    begun = np.zeros((k, width), np.int32)
    for i, j, row in filled:
        tokens[i, j, t - len(row.tokens) :] = row.tokens
        real[i, j, t - len(row.tokens) :] = True
        seeds[i, j], limits[i, j] = row.seed % 2**32, row.max_new_tokens
        heat[i, j], mass[i, j], begun[i, j] = row.temperature, row.top_p, row.begun
    out = decode(
        params,
        tokens,
        real,
        jax.vmap(jax.vmap(jax.random.key))(seeds),
        stack,
        np.asarray(stop_ids, np.int32),
        jnp.asarray(heat),
        jnp.asarray(mass),
        cfg,
        most,
        rules,
        taken_apart(params),
        jnp.asarray(limits),
        jnp.asarray(begun),
    )
    ended, found = set(stop_ids), to_host(out)
    replies: list[list[Continuation]] = [[] for _ in rows]
    for i, j, _ in filled:
        ids = [int(x) for x in found[i, j] if x >= 0]
        stopped = bool(ids) and ids[-1] in ended
        replies[i].append(Continuation(ids[: len(ids) - stopped], stopped))
    return replies


@jax.jit(static_argnames=("cfg", "new", "best"))
def _scores(
    params: Params, tokens: jax.Array, segments: jax.Array, stack: Stack, cfg: ModelConfig, new: int, best: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[K, B, new] log-probabilities of the last `new` tokens, and the `best` likeliest at each place."""
    hidden = forward(params, tokens, segments, segment_positions(segments), stack, cfg)[:, :, -new - 1 : -1]

    def at(place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        states, token = place  # [K, B, D], [K, B]
        logp = jax.nn.log_softmax(replicate(logits_from_hidden(params, states[:, :, None]))[:, :, 0], axis=-1)
        scores, ids = jax.lax.top_k(logp, best)
        return jnp.take_along_axis(logp, replicate(token)[..., None], -1)[..., 0], ids, scores

    places = (jnp.moveaxis(replicate(hidden), 2, 0), jnp.moveaxis(replicate(tokens[:, :, -new:]), 2, 0))
    return tuple(jnp.moveaxis(x, 0, 2) for x in jax.lax.map(at, places))  # pyright: ignore[reportReturnType]


def score_rows(
    params: Params,
    cfg: ModelConfig,
    rows: Sequence[Sequence[Row]],
    new: Sequence[Sequence[Sequence[int]]],
    stack: Stack,
    width: int,
    best: int,
) -> list[list[TokenScores]]:
    """Log-probabilities of new[i][j] after rows[i][j], by reading them once more. best: how many likeliest tokens."""
    k, m = len(rows), rounded(max(len(x) for own in new for x in own), FIRST_NEW, NEW_STEP)
    width = -(-width // TRAINING.size("rows")) * TRAINING.size("rows")
    t = prompt_room(max(len(r.tokens) for own in rows for r in own)) + m
    tokens, segments = np.zeros((k, width, t), np.int32), np.zeros((k, width, t), np.int32)
    for i, own in enumerate(rows):
        for j, row in enumerate(own):
            end = t - m + len(new[i][j])
            text = np.concatenate([row.tokens, np.asarray(new[i][j], np.int32)])
            tokens[i, j, end - len(text) : end] = text
            segments[i, j, end - len(text) : end] = 1
    found = [to_host(x) for x in _scores(params, tokens, segments, stack, cfg, m, max(1, best))]
    return [
        [TokenScores(*(x[i, j, : len(new[i][j])][..., slice(None)] for x in found)) for j in range(len(own))]
        for i, own in enumerate(rows)
    ]
