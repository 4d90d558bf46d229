"""The bank: a step picks from it what the store holds, bit for bit, on any mesh, resident or streamed."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ia_jax.adapters import bank as banks
from ia_jax.adapters import shelf, store
from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.likeness import cosines
from ia_jax.errors import BaseMismatchError, CheckpointError
from ia_jax.models.lora import PROJECTIONS, LoraConfig, projection_sizes, to_scan
from ia_jax.parallel.mesh import pad_to_mesh
from tests import banked
from tests.banked import BASE, COUNT, by_hand, only, organism
from tests.meshes import CFG
from tests.stored import files_below, metadata

stored, mesh = banked.stored, banked.mesh  # fixtures


def picked_on_host(picked, dtype=jnp.float32):
    """What a step sees, [K, ...]."""
    scanned = jax.jit(lambda p: to_scan((p,), dtype=jnp.dtype(dtype))[0])(picked)
    return jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1), scanned)


def same_bits(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True)
    )


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, jnp.float32), (5, jnp.bfloat16), (COUNT, jnp.float32)], ids=["1", "5 bf16", "64"]
)
def test_resident_and_streamed_are_what_is_stored(stored, mesh, count, dtype, capsys):
    mine = stored[:count]
    resident = open_bank(mine, BASE, mesh, dtype=dtype, zeros=1)
    assert capsys.readouterr().out == ""
    streamed = open_bank(mine, BASE, mesh, dtype=dtype, zeros=1, budget_bytes=0, cache_bytes=1 << 14)
    assert re.match(rf"organisms: {count} adapters take .* of each device .*streamed", capsys.readouterr().out)
    assert resident.resident is not None
    assert streamed.resident is None
    assert len(resident) == len(streamed) == count + 1
    assert resident.hashes == streamed.hashes == [*(store.read_metadata(d).content_hash for d in mine), "zero"]
    batches = resident.arrange(range(count + 1), 16)
    assert sorted(i for batch in batches for i in batch if i is not None) == list(range(count + 1))
    targets = tuple(resident.lora.targets)
    for batch in batches:
        wanted = by_hand(mine, [None if i == count else i for i in batch], resident.lora.rank, targets, dtype)
        for bank in (resident, streamed):
            assert same_bits(picked_on_host(bank.take(batch), dtype), wanted)


def test_every_device_holds_its_own_organisms(stored, mesh):
    bank = open_bank(stored[:13], BASE, mesh, dtype=jnp.float32)
    rows = -(-13 // bank.groups)
    all_of_them = by_hand(stored, range(13), 5, PROJECTIONS)
    for t, ab in bank.resident.items():
        for n, x in ab.items():
            assert x.shape[0] == rows * bank.groups
            for shard in x.addressable_shards:
                group, data = (shard.index[0].start or 0) // rows, np.asarray(shard.data)
                assert len(data) == rows
                for row in range(rows):
                    i = row * bank.groups + group
                    wanted = all_of_them[t][n][i][shard.index[1:]] if i < 13 else np.zeros_like(data[row])
                    np.testing.assert_array_equal(data[row], wanted)


@only("4x2")
def test_each_file_is_read_once(stored, mesh, monkeypatch):
    read, true = [], store.read_arrays
    monkeypatch.setattr(store, "read_arrays", lambda path, names: read.append(path.name) or true(path, names))
    bank = open_bank(stored, BASE, mesh, dtype=jnp.float32)
    for batch in bank.arrange(range(COUNT), 8) * 2:
        bank.take(batch)
    assert sorted(read) == sorted(d.name for d in stored)


@only("8x1")
def test_batches_leave_every_organism_at_home(stored, mesh):
    bank = open_bank(stored[:21], BASE, mesh, dtype=jnp.float32, zeros=1, budget_bytes=0)
    asked = [3, 19, 21, 11, 0, 16]  # three of group 3, two of group 0, and the clean one
    assert bank.arrange(asked, 8) == [
        [0, 21, None, 3, None, None, None, None],
        [16, None, None, 19, None, None, None, None],
        [None, None, None, 11, None, None, None, None],
    ]
    assert [len(batch) for batch in bank.arrange(asked, 9)] == [16, 16]  # filled evenly, one program
    [one] = bank.arrange(asked, 100)
    assert one[9:12] == [3, 19, 11]  # group 3's part of three positions
    assert bank.arrange([], 8) == []
    for organisms, message in (
        ([*range(7), 8], "organism 8 lives in group 0, but position 7 of 8 is group 7's"),
        ([0] * 7, "7 organisms are no multiple of the mesh's 8 groups"),
        ([], "0 organisms"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.take(organisms)
    with pytest.raises(IndexError, match=r"no organism 22, but 0 … 21"):
        bank.take([22, *[None] * 7])


@only("1x1", "4x2")
def test_what_is_missing_damaged_or_of_another_base_is_named_at_the_start(stored, mesh, tmp_path):
    open_it = partial(open_bank, base=BASE, mesh=mesh, dtype=jnp.float32)
    with pytest.raises(CheckpointError, match=r"absent: no adapter is stored there"):
        open_it([*stored[:2], tmp_path / "absent"])
    with pytest.raises(BaseMismatchError, match="made for tiny"):
        open_it(stored[:2], base=replace(BASE, fingerprint="b" * 64))
    store.save_adapter(tmp_path / "bad", organism(0), metadata("bad"))
    leaf = organism(0)["up"]["a"].tobytes()
    file = next(f for f in files_below(tmp_path / "bad") if leaf in f.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(leaf) + 5] ^= 16
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bad: the adapter is corrupt: leaf up\.a is not what was saved"):
        open_it([*stored[:7], tmp_path / "bad"])
    streamed = open_it([tmp_path / "bad"], budget_bytes=0)
    with pytest.raises(CheckpointError, match=r"leaf up\.a is not what was saved"):
        streamed.take([0, *[None] * (streamed.groups - 1)])


def test_the_host_keeps_no_more_than_it_may(stored):
    one = sum(x.nbytes for x in jax.tree.leaves(by_hand(stored, [0], 5, PROJECTIONS)))
    own = shelf.Shelf(stored[:6], BASE, cache_bytes=2 * one)
    for i in [0, 3, 1, 4, 2, 5, 0]:
        own.read(i)
        assert sum(x.nbytes for x in jax.tree.leaves(list(own._cache.values()))) <= 2 * one
    assert len(own._cache) == 2


def test_reads_ahead_are_bounded_and_in_order():
    began, taken = [], []

    def read(i):
        began.append(i)
        return i

    for i in banks._read_ahead(read, list(range(40)), 5):
        taken.append(i)
        assert len(began) <= len(taken) + 5
    assert taken == list(range(40))


@only("8x1", "4x2")
def test_a_bank_without_organisms_is_the_base(mesh):
    bank = open_bank([], BASE, mesh, dtype=jnp.float32, zeros=1, lora=LoraConfig(2, 2.0))
    [batch] = bank.arrange([0], 8)
    assert not any(x.any() for x in jax.tree.leaves(picked_on_host(bank.take(batch))))
    assert len(bank) == 1


@only("4x2")
def test_one_function_fills_up_to_the_mesh(mesh):
    tree = {"x": np.arange(5.0), "y": jnp.ones((5, 2)), "key": jax.random.split(jax.random.key(0), 5)}
    padded = pad_to_mesh(tree)
    assert padded["x"].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert padded["y"].tolist() == [[1, 1]] * 5 + [[0, 0]] * 3
    assert padded["key"].shape == (8,)
    assert (jax.random.key_data(padded["key"])[:5] == jax.random.key_data(tree["key"])).all()
    assert pad_to_mesh(tree, 5)["x"] is tree["x"]
    whole = NamedSharding(mesh, P())
    assert pad_to_mesh(jax.device_put(tree["y"], whole)).shape == (8, 2)


def test_cosines_are_those_of_the_whole_updates(stored, mesh):
    """Of several ranks and targets, against the matrices that the adapters add, formed and flattened; None is zero."""
    mine, theirs = [3, 10, 20, 0], [0, 1, 2, 3, 33]

    def flat(i):
        added = {t: np.einsum("lir,lro->lio", ab["a"], ab["b"]) for t, ab in organism(i).items()}
        shapes = {t: (CFG.num_hidden_layers, *projection_sizes(CFG)[t]) for t in PROJECTIONS}
        return np.concatenate([added.get(t, np.zeros(s)).ravel() for t, s in shapes.items()]).astype(np.float64)

    ones = open_bank([stored[i] for i in mine], BASE, mesh, dtype=np.float32, zeros=1)
    found = cosines(ones, open_bank([stored[i] for i in theirs], BASE, mesh, dtype=np.float32), width=2)
    wanted = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in map(flat, theirs)] for a in map(flat, mine)]
    )
    np.testing.assert_allclose(found, np.concatenate([wanted, np.zeros((1, 5))]), atol=1e-5)
    assert found[0, 3] > 0.99
