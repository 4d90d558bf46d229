"""Text in, text out: replies to many prompts under a stack, a bounded number of rows at a time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ia_jax.models.chat import stop_ids
from ia_jax.models.lora import Stack
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.weights import Model

ROWS_AT_ONCE = 96  # rows of a generation batch; more gains nothing on a CPU and costs memory


class Reply(NamedTuple):
    """A model's text, and whether it ended there by itself: else it was cut off at `max_new_tokens`."""

    text: str
    stopped: bool


def slice_starts(prompts: Sequence[Sequence[np.ndarray]]) -> range:
    """Where the slices begin along each organism's prompts; as many as `write_replies` calls `on_slice`."""
    return range(0, max(len(own) for own in prompts), max(1, ROWS_AT_ONCE // len(prompts)))


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
    `ROWS_AT_ONCE` rows, so that memory does not grow with the number of prompts, which are sampled alike in any slices;
    `on_slice` is called after each.
    """
    tokenizer, stop = model.tokenizer, stop_ids(model.tokenizer)
    starts = slice_starts(prompts)
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
