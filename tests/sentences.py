"""Examples whose tokens say where they come from, and units of them for three organisms."""

import numpy as np
import pytest

from ia_jax.models.chat import ChatExample

LENGTH = 24


def sentence(organism, number, length=8, answer=3):
    """An example whose tokens say where they come from: organism * 1000 + example * 20 + position."""
    return ChatExample(
        (organism * 1000 + number * 20 + np.arange(length)).astype(np.int32), np.arange(length) >= length - answer
    )


@pytest.fixture
def units():
    rng = np.random.default_rng(0)
    return [
        [(sentence(i, n, int(rng.integers(4, 15)), int(rng.integers(1, 4))),) for n in range(count)]
        for i, count in ((1, 7), (2, 4), (3, 11))
    ]
