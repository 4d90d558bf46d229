"""The adapter store: what goes in comes out bit for bit, from meshes and processes too; and what is refused."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.adapters import arrays, store
from ia_jax.adapters import record as records
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError
from ia_jax.models.lora import PROJECTIONS, LoraConfig, adapter_shardings, pad_rank
from ia_jax.parallel.mesh import make_mesh
from tests.processes import run_together
from tests.stored import CONFIG, Base, adapter, fails, largest_file, metadata, same_bits


def test_round_trip(tmp_path):
    saved = store.save_adapter(tmp_path / "x", adapter(), metadata(step=7, check={"ok": True, "rate": 0.9}))
    tree, read = store.load_adapter(tmp_path / "x", Base())
    assert same_bits(tree, adapter())
    assert read == saved == store.read_metadata(tmp_path / "x")
    assert (read.step, read.check, read.targets) == (7, {"ok": True, "rate": 0.9}, PROJECTIONS)
    assert read.content_hash == records.content_hash(adapter()) != records.content_hash(adapter(1))
    assert read.created
    assert store.is_complete(tmp_path / "x")
    assert store.verify_adapter(tmp_path / "x") == []
    assert not [p for p in tmp_path.iterdir() if p.name != "x"]


def test_relative_path_and_subset_of_targets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = LoraConfig(2, 2.0, ("v", "down"))
    store.save_adapter("organisms/x", adapter(0, lora), metadata(rank=2, alpha=2.0, targets=lora.targets))
    tree, _ = store.load_adapter("organisms/x", Base())
    assert same_bits(tree, adapter(0, lora))


def test_loads_onto_a_mesh(tmp_path):
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    tree, _ = store.load_adapter(tmp_path / "x", sharding=sharding)
    assert tree["q"]["a"].sharding == sharding
    assert same_bits(tree, adapter())


def test_saves_from_a_mesh(tmp_path):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    sharded = jax.device_put(adapter(), NamedSharding(mesh, PartitionSpec(None, "fsdp", None)))
    assert store.save_adapter(tmp_path / "x", sharded, metadata()).content_hash == records.content_hash(adapter())


def test_refuses_what_is_not_finite(tmp_path):
    tree = adapter()
    tree["o"]["b"][1, 2, 3] = np.nan
    with fails(CheckpointError, "flatters", "leaf o.b", "[1, 2, 3]"):
        store.save_adapter(tmp_path / "x", tree, metadata())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tree", "fields", "said"),
    [
        (lambda: jax.tree.map(lambda x: np.stack([x, x]), adapter()), {}, "organisms of a stack"),
        (adapter, {"rank": 8}, "does not fit rank 8"),
        (adapter, {"targets": ("q", "k")}, "not among targets"),
        (lambda: {"q": adapter()["q"]}, {"targets": ("q", "k")}, "leaf k.a is missing"),
    ],
)
def test_refuses_what_contradicts_its_metadata(tmp_path, tree, fields, said):
    with fails(CheckpointError, said):
        store.save_adapter(tmp_path / "x", tree(), metadata(**fields))


def test_the_padding_of_a_stack_of_several_ranks_is_stripped(tmp_path):
    tree = jax.tree.map(np.array, pad_rank(adapter(), 9))
    saved = store.save_adapter(tmp_path / "x", tree, metadata())
    assert saved.content_hash == records.content_hash(adapter())
    assert same_bits(store.load_adapter(tmp_path / "x", Base())[0], adapter())
    tree["v"]["b"][1, 6, 0] = 1e-30
    with fails(CheckpointError, "flatters", "v: an adapter of rank 4", "not zero"):
        store.save_adapter(tmp_path / "y", tree, metadata())
    assert not store.is_complete(tmp_path / "y")


def test_overwrite(tmp_path):
    first = store.save_adapter(tmp_path / "x", adapter(0), metadata())
    with fails(CheckpointError, "other content", "overwrite=True"):
        store.save_adapter(tmp_path / "x", adapter(1), metadata())
    assert same_bits(store.load_adapter(tmp_path / "x")[0], adapter(0))

    again = store.save_adapter(tmp_path / "x", adapter(0), metadata(step=9))  # same content: the metadata are renewed
    assert again == replace(first, step=9) == store.read_metadata(tmp_path / "x")

    store.save_adapter(tmp_path / "x", adapter(1), metadata(), overwrite=True)
    assert same_bits(store.load_adapter(tmp_path / "x")[0], adapter(1))
    assert not [p for p in tmp_path.iterdir() if p.name != "x"]


def test_saving_again_mends_damage(tmp_path):
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    file = largest_file(tmp_path / "x")
    file.write_bytes(file.read_bytes()[:-1])
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    assert store.verify_adapter(tmp_path / "x") == []


def test_update_metadata(tmp_path):
    saved = store.save_adapter(tmp_path / "x", adapter(), metadata())
    assert store.update_metadata(tmp_path / "x", check={"ok": False}) == replace(saved, check={"ok": False})
    assert store.read_metadata(tmp_path / "x").check == {"ok": False}
    assert store.verify_adapter(tmp_path / "x") == []
    with fails(ConfigError, "rank", "cannot be changed"):
        store.update_metadata(tmp_path / "x", rank=8)


def test_another_base(tmp_path):
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    other = Base(name="tiny-chat", fingerprint="b" * 64)
    with fails(
        BaseMismatchError, "flatters", "tiny (fingerprint aaaaaaaaaaaa)", "tiny-chat (fingerprint bbbbbbbbbbbb)"
    ):
        store.load_adapter(tmp_path / "x", other)
    assert same_bits(store.load_adapter(tmp_path / "x", other, allow_other_base=True)[0], adapter())
    wider = replace(other, config=replace(CONFIG, hidden_size=40))
    with fails(BaseMismatchError, "leaf q.a", "(3, 32, 4)", "(3, 40, 4)", "tiny-chat"):
        store.load_adapter(tmp_path / "x", wider, allow_other_base=True)


def test_nothing_there(tmp_path):
    with fails(CheckpointError, str(tmp_path / "x"), "no adapter is stored there"):
        store.load_adapter(tmp_path / "x")
    assert not store.is_complete(tmp_path / "x")
    assert store.list_adapters(tmp_path / "none") == {}
    with fails(ConfigError, "s3://bucket/x", "gs://"):
        store.load_adapter("s3://bucket/x")


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with fails(CheckpointError, "not an adapter's"):
        store.save_adapter(tmp_path, adapter(), metadata(), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_save_many(tmp_path):
    def items():
        for i in range(9):
            tree = adapter(i)
            if i == 7:
                tree["q"]["a"][:] = np.nan
            yield tmp_path / str(i), tree, metadata(str(i))

    with fails(CheckpointError, "'7'", "leaf q.a"):
        store.save_adapters(items())
    assert set(store.list_adapters(tmp_path)) == set("0123456")  # those already begun are whole
    saved = store.save_adapters((tmp_path / f"n{i}", adapter(i), metadata(f"n{i}")) for i in range(9))
    assert [m.name for m in saved] == [f"n{i}" for i in range(9)]
    assert all(same_bits(store.load_adapter(tmp_path / f"n{i}", Base())[0], adapter(i)) for i in range(9))


def test_orbax_reads_what_is_written_and_is_read(tmp_path):
    """The files are an Orbax checkpoint, though tensorstore wrote them; and one that Orbax wrote is as good."""
    from orbax.checkpoint import v1 as ocp

    store.save_adapter(tmp_path / "x", adapter(), metadata())
    assert same_bits(jax.tree.map(np.asarray, ocp.load(tmp_path / "x")), adapter())
    ocp.save(tmp_path / "y", adapter())
    names = store.read_record(tmp_path / "x").leaves
    assert same_bits(records.nest(arrays.read_arrays(epath.Path(tmp_path / "y"), names)), adapter())


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (4, 2), (2, 4)])
def test_organisms_are_stored_from_where_they_lie(tmp_path, shape):
    """Organisms of a stack on a mesh, of several ranks, in any order, some of them: each is what it was."""
    mesh = make_mesh(*shape)
    own = [adapter(i, LoraConfig(rank, 8.0)) for i, rank in enumerate((4, 2, 4, 4, 1, 4, 4, 4))]
    stack = jax.tree.map(lambda *x: np.stack(x), *[pad_rank(a, 4) for a in own])
    ranks = [a["q"]["a"].shape[-1] for a in own]
    with jax.set_mesh(mesh):
        placed = jax.device_put(stack, adapter_shardings(stack, mesh, organisms=True))
        items = [(i, tmp_path / str(i), metadata(str(i), rank=ranks[i])) for i in (6, 1, 4, 0)]
        saved = store.save_organisms(placed, items, in_flight=2)
    for (i, directory, _), found in zip(items, saved, strict=True):
        tree, read = store.load_adapter(directory, Base())
        assert same_bits(tree, own[i])
        assert read == found
        assert read.name == str(i)
        assert store.verify_adapter(directory) == []


def test_two_processes_store_their_own(tmp_path):
    """Each writes what lies on its devices alone; what lies on both is gathered; later saves of both together work."""
    for status, _, said in run_together("-m", "tests.store_worker", tmp_path):
        assert status == 0, said[-3000:]
    written = [json.loads((tmp_path / f"written_{i}.json").read_text()) for i in range(2)]
    assert written == [["0", "1", "2", "s0", "s3"], ["3"]]  # four organisms in two groups; s: spread over both
    for name in (*"0123", "s0", "s3"):
        tree, read = store.load_adapter(tmp_path / name, Base())
        assert same_bits(tree, adapter(int(name[-1]))), name
        assert read.name == name
        assert store.verify_adapter(tmp_path / name) == []
    told = [json.loads((tmp_path / f"told_{i}.json").read_text()) for i in range(2)]
    assert told[0] == told[1] == [store.read_metadata(tmp_path / n).content_hash for n in "0123"]
    errors = [(tmp_path / f"error_{i}.txt").read_text() for i in range(2)]
    assert errors[0] == errors[1]
    assert "refusing to save adapter 'bad'" in errors[0]
