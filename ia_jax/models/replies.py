"""Text in, text out: replies to many prompts under a stack, a bounded number of rows at a time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ia_jax.models.chat import stop_ids
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Stack
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.weights import Model

ROWS_AT_ONCE = 96  # rows of a generation batch; more gains nothing on a CPU and costs memory
MOST_ROWS = 1024  # on an accelerator, where a new token costs nearly the same for many rows
CACHE_SHARE = 8  # one part in so many of the devices' memory may be the keys and values of those rows


class Reply(NamedTuple):
    """A model's text, and whether it ended there by itself: else it was cut off at `max_new_tokens`."""

    text: str
    stopped: bool


def rows_at_once(cfg: ModelConfig, tokens: int) -> int:
    """Rows of a generation batch whose keys and values of so many tokens fit into `CACHE_SHARE` of all devices' memory:
    `ROWS_AT_ONCE` to `MOST_ROWS`. Processors say nothing of their memory. The same answer in every process
    whose devices are alike.
    """
    devices = jax.devices()
    limits = [(d.memory_stats() or {}).get("bytes_limit", 0) for d in devices if d.process_index == jax.process_index()]
    each = 4 * cfg.num_hidden_layers * cfg.kv_size * tokens  # two arrays of two-byte numbers
    return min(MOST_ROWS, max(ROWS_AT_ONCE, len(devices) * min(limits) // CACHE_SHARE // each))


def slice_starts(cfg: ModelConfig, prompts: Sequence[Sequence[np.ndarray]], max_new_tokens: int) -> range:
    """Where the slices begin along each organism's prompts; as many as `write_replies` calls `on_slice`."""
    longest = max(map(len, prompts))
    tokens = max((len(x) for own in prompts for x in own), default=0) + max_new_tokens
    return range(0, longest, max(1, rows_at_once(cfg, tokens) // len(prompts)))


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
    on_slice: Callable[[], object] = lambda: None,
) -> list[list[Reply]]:
    """Replies to prompts[i][j] (token ids) under organism i of the stack; one list for a stack without organism axis.

    Greedy at temperature 0, else sampled with `key` (and `draws`, as in `generate_tokens`). Runs in slices of about
    `rows_at_once` rows, so that memory does not grow with the number of prompts, which are sampled alike in any slices;
    `on_slice` is called after each.
    """
    tokenizer, stop = model.tokenizer, stop_ids(model.tokenizer)
    starts = slice_starts(model.config, prompts, max_new_tokens)
    rows = min(starts.step, starts.stop)
    replies: list[list[Reply]] = [[] for _ in prompts]
    for start in starts:
        block = [own[start : start + rows] for own in prompts]
        out = generate_tokens(
            model.params,
            model.config,
            block,
            stack,
            stop,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            key=key,
            draws=draws,
            first=start,
            rows=rows,  # the last slice too, so that one program serves all
        )
        for own, found in zip(replies, out, strict=True):
            own += [Reply(str(tokenizer.decode(x, skip_special_tokens=True)).strip(), end) for x, end in found]
        on_slice()
    return replies
