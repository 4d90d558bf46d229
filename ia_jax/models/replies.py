"""Text in, text out: replies to many prompts under a stack, a bounded number of rows at a time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ia_jax.models.chat import stop_ids
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Stack
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.slots import generate_in_slots
from ia_jax.models.weights import Model
from ia_jax.parallel.distributed import on_main_process

ROWS_AT_ONCE = 96  # rows of a generation batch; more gains nothing on a CPU and costs memory
MOST_ROWS = 1024  # on an accelerator, where a new token costs nearly the same for many rows
CACHE_SHARE = 8  # one part in so many of the devices' memory may be the keys and values of those rows


class Reply(NamedTuple):
    """A model's text, and whether it ended there by itself: else it was cut off at `max_new_tokens`."""

    text: str
    stopped: bool


def rows_that_fit(cfg: ModelConfig, tokens: int, memory: int) -> int:
    """Rows of a generation batch whose keys and values of so many tokens fit into `CACHE_SHARE` of all devices' memory
    (bytes; 0: not known): `ROWS_AT_ONCE` to `MOST_ROWS`.
    """
    each = 4 * cfg.num_hidden_layers * cfg.kv_size * tokens  # two arrays of two-byte numbers
    return min(MOST_ROWS, max(ROWS_AT_ONCE, memory // CACHE_SHARE // each))


def rows_at_once(cfg: ModelConfig, tokens: int) -> int:
    """`rows_that_fit` the devices there are, by those of process 0. Processors say nothing of their memory."""
    devices = jax.devices()
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in devices if d.process_index == jax.process_index()]
    return rows_that_fit(cfg, tokens, on_main_process(lambda: len(devices) * min(limits)))


def fits_at_once(cfg: ModelConfig, prompts: Sequence[Sequence[np.ndarray]], max_new_tokens: int) -> bool:
    """Whether all prompts, each organism with as many rows as the one that has most, are one generation batch."""
    tokens = max((len(x) for own in prompts for x in own), default=0) + max_new_tokens
    return len(prompts) * max(map(len, prompts)) <= rows_at_once(cfg, tokens)


def write_replies(
    model: Model,
    prompts: Sequence[Sequence[np.ndarray]],
    stack: Stack,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    draws: Sequence[int] | None = None,
    at_once: int | None = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[list[Reply]]:
    """Replies to prompts[i][j] (token ids) under organism i of the stack; one list for a stack without organism axis.

    Greedy at temperature 0, else sampled with `key` (and `draws`, as in `generate_tokens`). Where the prompts are no
    more than one batch, they are one. Else about `rows_at_once` rows, of about `at_once` organisms (default: all), are
    refilled as they end, so that memory does not grow with the number of prompts, which are sampled alike in any order.
    `on_done` is told now and then how many more replies are written.
    """
    tokenizer, stop = model.tokenizer, stop_ids(model.tokenizer)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    how |= {"key": key, "draws": draws}
    count = sum(map(len, prompts))
    if not count:
        return [[] for _ in prompts]
    args = (model.params, model.config, prompts, stack, stop)
    if len(prompts) <= (at_once or len(prompts)) and fits_at_once(model.config, prompts, max_new_tokens):
        found = generate_tokens(*args, **how)
        on_done(count)
    else:
        tokens = max(len(x) for own in prompts for x in own) + max_new_tokens
        rows = rows_at_once(model.config, tokens)
        found = generate_in_slots(*args, rows=rows, positions=at_once, on_done=on_done, **how)
    return [[Reply(str(tokenizer.decode(x, skip_special_tokens=True)).strip(), end) for x, end in own] for own in found]
