"""The arrays of one step: packed rows of K organisms, and which of their positions are supervised."""

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from ia_jax.data.plans import Plan, Shared, Slot, Unit
from ia_jax.errors import ConfigError
from ia_jax.models.attention import BRANCH
from ia_jax.models.chat import ChatExample
from ia_jax.parallel.mesh import TRAINING, Rules

Array = Any  # a numpy array while a batch is being built, a jax array in a step


@flax.struct.dataclass
class Batch:
    """B rows of T tokens of each of K organisms, and up to P positions of each row that are supervised.

    tokens, segment_ids, positions: [K, B, T] (segment 0 is padding; a row may hold several examples, of one organism).
    target_index: [K, B, P] position in the row whose *next* token is supervised.
    target_token: [K, B, P] that next token. target_weight: [K, B, P] 1.0, or 0.0 for filling.
    target_example: [K, B, P] which of the organism's examples in this batch (over all its rows) the target belongs to.
    desirable: [K, B, P] 1.0 where that example is one to imitate, 0.0 where to avoid; None where examples do not say.
    """

    tokens: Array
    segment_ids: Array
    positions: Array
    target_index: Array
    target_token: Array
    target_weight: Array
    target_example: Array
    desirable: Array | None = None


@flax.struct.dataclass
class Beside:
    """What some losses read beside a step's batch.

    reference: [K, E] summed log-probability of each of the batch's examples without what is trained (DPO, KTO).
    mismatched: other rows' answers to the batch's prompts (KTO); mismatched_reference: [K, E'] as `reference`, of them.
    plain: chats on which the model is held to what it is without what is trained (`kl_weight`).
    """

    reference: Array | None = None
    mismatched: Batch | None = None
    mismatched_reference: Array | None = None
    plain: Batch | None = None


def build_batch(step: Sequence[Slot], plan: Plan, units: Sequence[Sequence[Unit]]) -> Batch:
    """The arrays of one step: [K, B, T] tokens and [K, B, P] targets. Examples are numbered in the order they stand."""
    k, b, t, p = len(step), plan.rows, plan.length, plan.targets
    labelled = any(e.desirable is not None for own in units for unit in own[:1] for e in unit)
    tokens, segments, positions = (np.zeros((k, b, t), np.int32) for _ in range(3))
    index, token, example = (np.zeros((k, b, p), np.int32) for _ in range(3))
    weight, desirable = (np.zeros((k, b, p), np.float32) for _ in range(2))
    for i, slot in enumerate(step):
        number = 0
        for r, row in enumerate(slot.rows):
            start = n = segment = first = 0
            for unit in (units[slot.organism][u] for u in row):
                stem = 0  # tokens of a prompt that stands there already
                for branch, chat in enumerate(unit):
                    if stem == 0:
                        first, segment = start, segment + 1
                    end = start + len(chat.tokens) - stem
                    tokens[i, r, start:end] = chat.tokens[stem:]
                    segments[i, r, start:end] = segment
                    positions[i, r, start:end] = np.arange(stem, len(chat.tokens))
                    # The token at position j is predicted from position j - 1.
                    where = np.flatnonzero(chat.loss_mask)
                    if len(where) == 0 or where[0] == 0:
                        raise ConfigError(
                            f"organism {slot.organism}: an example has no supervised token after its prompt"
                        )
                    if isinstance(unit, Shared):
                        stem = len(unit[0].prompt)
                        answer = end - (len(chat.tokens) - stem)
                        segments[i, r, answer:end] += BRANCH * (branch + 1)
                        before = np.where(where > stem, answer + where - stem, first + stem) - 1
                    else:
                        before = start + where - 1
                    m = n + len(where)
                    index[i, r, n:m], token[i, r, n:m] = before, chat.tokens[where]
                    weight[i, r, n:m], example[i, r, n:m] = 1.0, number
                    desirable[i, r, n:m] = bool(chat.desirable)
                    n, number, start = m, number + 1, end
    return Batch(tokens, segments, positions, index, token, weight, example, desirable if labelled else None)


def shared_rows(examples: Sequence[ChatExample], length: int) -> list[list[int]]:
    """Examples by rows of up to `length` tokens (more where one alone is longer), each with one prompt and as many of
    the answers to it as fit behind.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for i, e in enumerate(examples):
        by_prompt.setdefault(e.prompt.tobytes(), []).append(i)
    rows: list[list[int]] = []
    for own in by_prompt.values():
        room = 0
        for i in own:
            prompt, whole = len(examples[i].prompt), len(examples[i].tokens)
            if whole - prompt > room:
                rows.append([])
                room = max(length, whole) - prompt
            rows[-1].append(i)
            room -= whole - prompt
    return rows


def batch_shardings(batch: Batch | Beside, mesh: Mesh, rules: Rules = TRAINING) -> Any:
    """A NamedSharding for every array of a batch: by organism and, within each, by row."""

    def leaf(x: Any) -> Any:
        return rules.sharding(mesh, "organism", *(("rows", None) if x.ndim == 3 else (None,)))

    return jax.tree.map(leaf, batch)


def token_counts(batch: Batch) -> dict[str, jax.Array]:
    """How much a batch holds: tokens and supervised tokens, both without padding, and the share of it that is real."""
    tokens = (batch.segment_ids > 0).sum()
    return {
        "tokens": tokens,
        "supervised_tokens": batch.target_weight.sum(),
        "fill": tokens / math.prod(batch.segment_ids.shape),
    }
