"""Adapters streamed from the store: what comes is what was stored, from bounded memory, and never something else."""

from dataclasses import replace

import grain
import jax
import numpy as np
import pytest

from ia_jax.adapters import store
from ia_jax.adapters.stream import AdapterStream
from ia_jax.errors import BaseMismatchError, CheckpointError
from ia_jax.models.lora import PROJECTIONS, LoraConfig
from tests.test_store import Base, adapter, files_below, metadata

LORAS = [LoraConfig(4, 8.0), LoraConfig(2, 2.0, ("q", "down")), LoraConfig(8, 8.0, ("v",))]


@pytest.fixture
def stored(tmp_path):
    for i in range(6):
        lora = LORAS[i % 3]
        fields = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets}
        store.save_adapter(tmp_path / str(i), adapter(i, lora), metadata(str(i), **fields))
    return [tmp_path / str(i) for i in range(6)]


def stream(stored, **options):
    return AdapterStream(stored, Base(), lambda tree: tree, **options)


def bytes_of(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_stacks_of_any_rank_and_targets(stored, cache_bytes):
    organisms = stream(stored, zeros=1, cache_bytes=cache_bytes)
    assert len(organisms) == 7
    for index in ([0, 1, 2], [5, 6, 1], [3, 3, 0]):
        stack = organisms.take(index)
        assert tuple(stack) == PROJECTIONS
        for k, i in enumerate(index):
            own = adapter(i, LORAS[i % 3]) if i < 6 else {}
            for t in PROJECTIONS:
                a, b = stack[t]["a"][k], stack[t]["b"][k]
                assert (a.shape[-1], b.shape[-2]) == (8, 8)
                r = own[t]["a"].shape[-1] if t in own else 0
                assert not a[..., r:].any()
                assert not b[..., r:, :].any()
                if r:
                    np.testing.assert_array_equal(a[..., :r], own[t]["a"])
                    np.testing.assert_array_equal(b[..., :r, :], own[t]["b"])


def test_the_host_keeps_no_more_than_it_may(stored):
    one = bytes_of(adapter())
    organisms = stream(stored, cache_bytes=2 * one)
    for i in [0, 3, 1, 4, 2, 5, 0]:
        organisms.take([i])
        assert bytes_of(list(organisms._cache.values())) <= 2 * one


def test_reads_ahead_in_a_dataset(stored):
    """From grain's thread, in order, and the same as read one after another."""
    organisms, alone = stream(stored, cache_bytes=0), stream(stored)
    steps = grain.MapDataset.range(12).map(lambda s: organisms.take([s % 6, (s + 1) % 6]))
    for s, stack in enumerate(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))):
        wanted = alone.take([s % 6, (s + 1) % 6])
        assert jax.tree.all(jax.tree.map(np.array_equal, stack, wanted))


def test_damage_is_found_when_an_adapter_is_first_read(stored):
    leaf = adapter(3)["up"]["a"].tobytes()
    file = next(f for f in files_below(stored[3]) if leaf in f.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(leaf) + 5] ^= 16
    file.write_bytes(data)
    organisms = stream(stored)
    organisms.take([0, 1, 2])
    with pytest.raises(CheckpointError, match=r"leaf up\.a is not what was saved"):
        organisms.take([0, 3])


def test_what_is_missing_or_of_another_base_shows_at_the_start(stored, tmp_path):
    with pytest.raises(CheckpointError, match="no adapter is stored there"):
        stream([*stored, tmp_path / "absent"])
    with pytest.raises(BaseMismatchError, match="made for tiny"):
        AdapterStream(stored, replace(Base(), fingerprint="b" * 64), lambda tree: tree)
