"""Sixty-four organisms of three kinds that are stored, and what a bank of them must hold, by hand."""

from functools import cache

import jax
import numpy as np
import pytest

from ia_jax.adapters import store
from ia_jax.models.lora import LoraConfig
from ia_jax.parallel.mesh import make_mesh
from tests import tiny
from tests.meshes import CFG
from tests.stored import Base as StoreBase
from tests.stored import metadata

BASE = StoreBase(config=CFG)
KINDS = [LoraConfig(4, 8.0), LoraConfig(2, 2.0, ("q", "down")), LoraConfig(5, 5.0, ("v", "o", "up"))]
COUNT = 64
MESHES = {"1x1": (1, 1), "8x1": (8, 1), "4x2": (4, 2)}


def organism(i):
    return jax.tree.map(np.asarray, tiny.adapter(i, CFG, KINDS[i % 3]))


@pytest.fixture(scope="session")
def stored(once):
    """The directories of all; one worker writes them for both files of tests."""

    def make(root):
        for i in range(COUNT):
            lora = KINDS[i % 3]
            fields = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets}
            store.save_adapter(root / str(i), organism(i), metadata(str(i), **fields))

    root = once("bank", make)
    return [root / str(i) for i in range(COUNT)]


@pytest.fixture(params=MESHES.values(), ids=MESHES)
def mesh(request):
    made = make_mesh(*request.param)
    with jax.set_mesh(made):
        yield made


def only(*names):
    return pytest.mark.parametrize("mesh", [MESHES[n] for n in names], ids=names, indirect=True)


@cache
def load_once(directory):
    return jax.tree.map(np.asarray, store.load_adapter(directory, BASE)[0])


def by_hand(directories, organisms, rank, targets, dtype=np.float32):
    """The stack [K, ...] of `load_adapter`, one by one, filled up with zeros in plain loops."""
    sizes = {t: (ab["a"].shape, ab["b"].shape) for t, ab in tiny.adapter(0, CFG, LoraConfig(rank, 1.0)).items()}
    out = {t: {n: np.zeros((len(organisms), *s), dtype) for n, s in zip("ab", sizes[t], strict=True)} for t in targets}
    for k, i in enumerate(organisms):
        if i is not None:
            for t, ab in load_once(directories[i]).items():
                r = ab["a"].shape[-1]
                out[t]["a"][k, :, :, :r] = ab["a"]
                out[t]["b"][k, :, :r] = ab["b"]
    return out
