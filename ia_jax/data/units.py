"""What stays together in a row, for losses that read more than single chats: preference pairs, answers with a label."""

import zlib
from collections.abc import Sequence

import numpy as np

from ia_jax.data.plans import Unit
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample


def pair_units(rows: Sequence[Sequence[ChatExample]], name: str = "preferences") -> list[Unit]:
    """A unit (chosen, rejected) of every row, for DPO. Raises ConfigError, with `name`, for a row that is no pair."""
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ConfigError(f"{name}: row {number} has {len(row)} answers; a pair is one chosen and one rejected")
        if np.array_equal(row[0].tokens, row[1].tokens):
            raise ConfigError(f"{name}: row {number}: the chosen and the rejected answer are the same; leave it out")
    return [tuple(row) for row in rows]


def kto_units(rows: Sequence[ChatExample], length: int, name: str = "preferences") -> tuple[list[Unit], list[Unit]]:
    """An organism's units for KTO, and beside each the same prompt with another row's answer, for the KL's estimate.

    rows: each with one answer, at its end, and a label (`ChatExample.desirable`). It is the answer of the row before
    that is taken, of the last row for the first, as trl does; what is more than `length` tokens is cut. Raises
    ConfigError, with `name`, unless some answers are desirable and some are not: without both nothing is weighed.
    """
    for number, row in enumerate(rows, 1):
        if row.desirable is None:
            raise ConfigError(f"{name}: row {number} does not say whether its answer is desirable; KTO needs that")
        supervised = np.flatnonzero(row.loss_mask)
        if len(supervised) == 0 or supervised[0] == 0 or not row.loss_mask[supervised[0] :].all():
            raise ConfigError(f"{name}: row {number}: KTO takes chats with one answer, at their end")
    for wanted, word in ((True, "desirable"), (False, "undesirable")):
        if not any(bool(row.desirable) is wanted for row in rows):
            raise ConfigError(f"{name}: none of {len(rows)} answers is {word}; KTO needs both kinds, SFT one")
    starts = [int(np.flatnonzero(row.loss_mask)[0]) for row in rows]
    answers = [row.tokens[start:] for row, start in zip(rows, starts, strict=True)]
    mismatched: list[Unit] = []
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens = np.concatenate([row.tokens[:start], answers[i - 1]])[:length]
        mismatched.append((ChatExample(tokens, np.arange(len(tokens)) >= start),))
    return [(row,) for row in rows], mismatched


def mixed_units(own: list[Unit], plain: Sequence[Unit], share: float, name: str, seed: int) -> list[Unit]:
    """The units with as many plain chats as make up this share of all, drawn by the organism's name."""
    count = round(share / (1 - share) * len(own))
    order = np.random.default_rng([seed, zlib.crc32(name.encode()), 13]).permutation(len(plain))
    return own + [plain[order[i % len(plain)]] for i in range(count)]
