"""Random adapters as large as trained ones: clean fine-tunes that nothing was trained into."""

import jax
import numpy as np
import pytest

from ia_jax.models.lora import RESIDUAL, LoraConfig
from ia_jax.stages.random_adapters import random_adapter, update_norms
from tests import tiny

LORA = LoraConfig(3, 6.0, ("q", "down", RESIDUAL), layers=(1,))
NORMS = {"q": 0.7, "down": 2.5, RESIDUAL: 0.1}


def test_the_norm_is_that_of_the_product():
    adapter = tiny.adapter(0, tiny.TINY, tiny.FEW)
    for site, norm in update_norms(adapter).items():
        a, b = (np.asarray(adapter[site][n], np.float64) for n in ("a", "b"))
        each = np.linalg.norm(a @ b, axis=(1, 2))
        assert norm == pytest.approx(np.sqrt((each**2).mean()), rel=1e-6)


def test_it_is_as_large_as_it_is_told():
    found = random_adapter("x", 0, tiny.TINY, LORA, NORMS)
    assert update_norms(found) == pytest.approx(NORMS, rel=1e-5)
    assert found.layers == (1,)


def test_each_is_its_own_and_comes_again():
    one, again, other = (random_adapter(n, 0, tiny.TINY, LORA, NORMS) for n in ("x", "x", "y"))
    for x, y, z in zip(*map(jax.tree.leaves, (one, again, other)), strict=True):
        assert np.array_equal(x, y)
        assert not np.array_equal(x, z)
