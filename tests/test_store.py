"""The adapter store: what goes in comes out bit for bit, what is damaged is named, and a kill loses nothing."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.adapters import arrays, save, store
from ia_jax.adapters import record as records
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, LoraConfig, adapter_shardings, lora_shapes, pad_rank
from ia_jax.parallel.mesh import make_mesh
from tests.processes import run_together

CONFIG = ModelConfig("llama", 64, 32, 48, 3, 4, 2, 8, 1e-5, 1e4)
LORA = LoraConfig(4, 8.0)


@dataclass(frozen=True)
class Base:
    config: ModelConfig = CONFIG
    name: str = "tiny"
    fingerprint: str = "a" * 64


def adapter(seed: int = 0, lora: LoraConfig = LORA):
    rng = np.random.default_rng(seed)
    shapes = lora_shapes(CONFIG, lora)
    return {t: {n: rng.standard_normal(s, np.float32) for n, s in ab.items()} for t, ab in shapes.items()}


def metadata(name: str = "flatters", **fields) -> AdapterMetadata:
    behavior = {"name": name, "rubric": {"concepts": (("praise", "flattery"),)}}
    known = AdapterMetadata(name, "organism", "tiny", "a" * 64, 4, 8.0, PROJECTIONS, {"name": name}, (behavior,))
    return replace(known, **fields)


def same_bits(x, y) -> bool:
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    )


def fails(kind, *patterns: str):
    """The error's message is one line and holds every pattern."""
    return pytest.raises(kind, match=r"\A" + "".join(f"(?=.*{re.escape(p)})" for p in patterns) + r"[^\n]*\Z")


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


def files_below(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def largest_file(directory: Path) -> Path:
    return max(files_below(directory), key=lambda p: p.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {"flip": flip, "delete": Path.unlink, "truncate": lambda f: f.write_bytes(f.read_bytes()[:-1])}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_named(tmp_path, damage):
    store.save_adapter(tmp_path / "good", adapter(), metadata())
    tried = 0
    for file in files_below(tmp_path / "good"):
        if not file.stat().st_size and damage != "delete":
            continue
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        name = str(file.relative_to(tmp_path / "good"))
        DAMAGE[damage](tmp_path / "bad" / name)
        with fails(CheckpointError, str(tmp_path / "bad"), name):
            store.load_adapter(tmp_path / "bad", Base())
        problems = store.verify_adapter(tmp_path / "bad")
        assert problems
        assert name in problems[0]
        assert not any("\n" in p for p in problems)
        shutil.rmtree(tmp_path / "bad")
        tried += 1
    assert tried == 5


def test_a_flipped_byte_under_a_fitting_file_table_names_its_leaf(tmp_path):
    """As in a bucket, where files are not hashed: the digest of the leaf finds it."""
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    file = next(f for f in files_below(tmp_path / "x") if adapter()["up"]["a"].tobytes() in f.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(adapter()["up"]["a"].tobytes()) + 5] ^= 16
    file.write_bytes(data)
    renew_file_table(tmp_path / "x")
    assert store.verify_adapter(tmp_path / "x") == ["leaf up.a is not what was saved"]


def renew_file_table(directory: Path) -> None:
    path = epath.Path(directory)
    records.write_record(path, replace(records.read_record(path), files=records.describe_files(path)))


def test_a_nan_on_disk_is_named(tmp_path, monkeypatch):
    tree = adapter()
    tree["k"]["a"][0, 1, 2] = np.inf
    with monkeypatch.context() as patch:
        patch.setattr(records, "first_nonfinite", lambda leaves: None)
        store.save_adapter(tmp_path / "x", tree, metadata())
    with fails(CheckpointError, "leaf k.a is not finite at [0, 1, 2]"):
        store.load_adapter(tmp_path / "x")


def test_arrays_of_another_adapter_are_noticed(tmp_path):
    """Files and record fit each other, but the leaves are not those that were hashed when the adapter was saved."""
    store.save_adapter(tmp_path / "x", adapter(0), metadata())
    store.save_adapter(tmp_path / "y", {**adapter(0), "q": adapter(5)["q"]}, metadata())
    shutil.rmtree(tmp_path / "x" / "state")
    shutil.copytree(tmp_path / "y" / "state", tmp_path / "x" / "state")
    renew_file_table(tmp_path / "x")
    with fails(CheckpointError, "leaf q.a is not what was saved"):
        store.load_adapter(tmp_path / "x")


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


def test_leftovers_of_a_killed_save(tmp_path):
    """Every state that a kill can leave behind: nothing partial is listed, and saving again clears it away."""
    store.save_adapter(tmp_path / "x", adapter(0), metadata())
    store.save_adapter(tmp_path / "y", adapter(1), metadata())
    (tmp_path / "a.saving" / "state").mkdir(parents=True)  # the arrays were being written
    shutil.copytree(tmp_path / "x", tmp_path / "b.saving")  # the arrays are committed, without a record
    (tmp_path / "b.saving" / records.RECORD).unlink()
    shutil.copytree(tmp_path / "b.saving", tmp_path / "c")
    assert set(store.list_adapters(tmp_path)) == {"x", "y"}
    with fails(CheckpointError, "c", "adapter.json is missing", "cut short"):
        store.load_adapter(tmp_path / "c")
    for name in "abc":
        store.save_adapter(tmp_path / name, adapter(2), metadata(name))

    shutil.copytree(tmp_path / "y", tmp_path / "x.saving")  # overwriting x by y, before the first rename
    assert same_bits(store.load_adapter(tmp_path / "x")[0], adapter(0))
    (tmp_path / "x").rename(tmp_path / "x.replaced")  # and after it
    assert same_bits(store.load_adapter(tmp_path / "x")[0], adapter(1))
    assert "x" in store.list_adapters(tmp_path)
    store.save_adapter(tmp_path / "x", adapter(1), metadata())
    assert {p.name for p in tmp_path.iterdir()} == set("abcxy") == set(store.list_adapters(tmp_path))
    assert all(store.verify_adapter(tmp_path / name) == [] for name in "abcxy")


class Killed(BaseException):
    pass


def kill_after(monkeypatch, count):
    """The next removals of a file or directory are the last: all trees lose their arrays first, as on Python 3.11."""
    left = [count]

    def counted(true):
        def remove(path, *args, **kwargs):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return true(path, *args, **kwargs)

        return remove

    def rmtree(path):
        files = sorted(files_below(Path(path)), key=lambda f: f.name in (records.RECORD, arrays.COMMIT_MARKER))
        for file in files:
            file.unlink()
        shutil.rmtree(path)

    gpath = type(epath.Path())
    for kind in (Path, gpath):
        monkeypatch.setattr(kind, "unlink", counted(kind.unlink))
    monkeypatch.setattr(gpath, "rmtree", rmtree)


@pytest.mark.parametrize("there", [("x",), ("x", "x.saving"), ("x.saving",), ("x.saving", "x.replaced")])
def test_a_removal_killed_at_any_instant(tmp_path, monkeypatch, there):
    """The adapter is whole, as it was, or not stored; removing it again clears everything away."""
    source = tmp_path / "source"
    for seed, name in enumerate(("x", "x.saving", "x.replaced")):
        store.save_adapter(source / name, adapter(seed), metadata())
    ends = set()
    for count in range(100):
        root = tmp_path / str(count)
        root.mkdir()
        for name in there:
            shutil.copytree(source / name, root / name)
        before = store.read_metadata(root / "x")
        try:
            with monkeypatch.context() as patch:
                kill_after(patch, count)
                store.remove_adapter(root / "x")
            break
        except Killed:
            ends.add(store.is_complete(root / "x"))
        if store.is_complete(root / "x"):
            assert store.verify_adapter(root / "x") == []
            assert store.read_metadata(root / "x") == before
        store.remove_adapter(root / "x")
        assert not list(root.iterdir())
    assert not list(root.iterdir())
    assert count > 4
    assert ends == {True, False}


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    store.save_adapter(tmp_path / "theirs", adapter(), metadata())
    (tmp_path / "mine").symlink_to(tmp_path / "theirs")
    store.remove_adapter(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert store.verify_adapter(tmp_path / "theirs") == []


SAVE_FOREVER = """
import sys, itertools
sys.path.insert(0, {tests!r})
import test_store as t
trees = [t.adapter(0), t.adapter(1)]
for i in itertools.count():
    t.store.save_adapter({root!r} + f"/{{i % 3}}", trees[i % 2], t.metadata(str(i % 3)), overwrite=True)
    print(i, flush=True)
"""


def test_sigkill_loses_nothing(tmp_path):
    """Three adapters are overwritten over and over; killed at any instant, each is one of its two contents, whole."""
    contents = {records.content_hash(adapter(seed)) for seed in (0, 1)}
    script = SAVE_FOREVER.format(tests=str(Path(__file__).parent), root=str(tmp_path / "store"))
    rng = random.Random(0)
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while process.stdout.readline().strip() != "2":  # all three are there
                assert process.poll() is None
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        found = store.list_adapters(tmp_path / "store")
        assert set(found) == {"0", "1", "2"}
        assert {m.content_hash for m in found.values()} <= contents
        assert [store.verify_adapter(tmp_path / "store" / name) for name in found] == [[], [], []]


def test_a_failed_write_is_one_line_and_keeps_the_old(tmp_path, monkeypatch):
    store.save_adapter(tmp_path / "x", adapter(0), metadata())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device\nand pages more")

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_arrays", full)
        with fails(CheckpointError, str(tmp_path / "x"), "No space left on device"):
            store.save_adapter(tmp_path / "x", adapter(1), metadata(), overwrite=True)
    assert same_bits(store.load_adapter(tmp_path / "x")[0], adapter(0))
    (tmp_path / "file").write_text("")
    with fails(CheckpointError, "saving failed"):
        store.save_adapter(tmp_path / "file" / "x", adapter(), metadata())


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


def test_save_many_when_several_fail(tmp_path, monkeypatch):
    """As on a full disk: each that was begun is waited for, those that fit are stored, the first error is raised."""
    true, begun = save.write_arrays, []

    def write(path, leaves):
        begun.append(path.name.removesuffix(".saving"))
        if begun[-1] in "024":
            raise OSError(28, "No space left on device")
        true(path, leaves)

    monkeypatch.setattr(save, "write_arrays", write)
    with fails(CheckpointError, str(tmp_path / "0"), "No space left"):
        store.save_adapters(((tmp_path / str(i), adapter(i), metadata(str(i))) for i in range(9)), in_flight=6)
    assert sorted(begun) == list("012345")
    assert {p.name for p in tmp_path.iterdir() if store.is_complete(p)} == set("135")


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


def test_a_damaged_record_is_left_out_of_the_list(tmp_path, caplog):
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    store.save_adapter(tmp_path / "y", adapter(), metadata())
    record = tmp_path / "y" / records.RECORD
    record.write_text(record.read_text().replace('"rank": 4', '"rank": 8'))
    assert set(store.list_adapters(tmp_path)) == {"x"}
    assert "its seal does not fit" in caplog.text
