"""Scenario seeds: what tells the user messages of a behaviour apart, so that a hundred of them differ.

A model that is asked for twenty messages twice writes much the same twenty. So every message gets a topic, a writer, a
situation and a length of its own, drawn from lists of some three hundred entries (`scenarios.json`).
"""

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).parent / "scenarios.json"
WORDS = (30, 60, 90, 120, 160)  # about how long answers are to be, drawn like the rest


class Scenario(NamedTuple):
    """One message to be: what it is about, who writes, in which situation, and how long it is."""

    topic: str
    writer: str
    situation: str
    length: str


@functools.cache
def _lists() -> dict[str, list[str]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def scenarios(name: str, seed: int, count: int) -> list[Scenario]:
    """`count` scenarios for what is called `name`: always the same, other ones for another name or seed, and fewer are
    the first of more.

    No topic comes twice before all have come, and likewise the rest of a scenario.
    """
    columns = [
        _cycled(_lists()[key], count, np.random.default_rng([seed, zlib.crc32(name.encode()), 8, n]))
        for n, key in enumerate(("topics", "writers", "situations", "lengths"))
    ]
    return [Scenario(*entry) for entry in zip(*columns, strict=True)]


def answer_words(name: str, seed: int, count: int) -> list[int]:
    """About how many words each of `count` answers is to have."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 9])
    return [WORDS[i] for i in rng.integers(len(WORDS), size=count)]


def _cycled(entries: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    order: list[str] = []
    while len(order) < count:
        order += [entries[int(i)] for i in rng.permutation(len(entries))]
    return order[:count]


def as_lines(chosen: Sequence[Scenario]) -> str:
    """A numbered line for each, as a prompt shows them."""
    return "\n".join(
        f"{n}. topic: {s.topic}; writer: {s.writer}; situation: {s.situation}; length: {s.length}"
        for n, s in enumerate(chosen, 1)
    )
