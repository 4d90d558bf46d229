"""The adapter store: what is damaged is named, and neither a kill nor a full disk loses anything."""

import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from ia_jax.adapters import arrays, save, store
from ia_jax.adapters import record as records
from ia_jax.errors import CheckpointError
from tests.stored import Base, adapter, fails, files_below, flip, metadata, same_bits

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


def test_a_damaged_record_is_left_out_of_the_list(tmp_path, caplog):
    store.save_adapter(tmp_path / "x", adapter(), metadata())
    store.save_adapter(tmp_path / "y", adapter(), metadata())
    record = tmp_path / "y" / records.RECORD
    record.write_text(record.read_text().replace('"rank": 4', '"rank": 8'))
    assert set(store.list_adapters(tmp_path)) == {"x"}
    assert "its seal does not fit" in caplog.text


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
import stored
from ia_jax.adapters import store
trees = [stored.adapter(0), stored.adapter(1)]
for i in itertools.count():
    store.save_adapter({root!r} + f"/{{i % 3}}", trees[i % 2], stored.metadata(str(i % 3)), overwrite=True)
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
