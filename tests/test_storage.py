"""Files that outlive a kill, and messages that name the line."""

import errno
import json
import os

import pytest

from ia_jax import storage
from ia_jax.errors import ConfigError


def test_rows_come_back_and_a_line_is_a_row(tmp_path):
    """Also with characters inside a text at which str.splitlines would cut."""
    rows = [{"a": "one\u2028two\u0085three\x1ddone"}, {"ä": [1, None, "\n"]}]
    path = tmp_path / "deep" / "rows.jsonl"
    storage.write_jsonl(path, rows)
    assert storage.read_jsonl(path, "") == rows
    assert path.read_bytes().count(b"\n") == 2
    assert "ä" in path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_rows_know_their_lines(tmp_path):
    (tmp_path / "r.jsonl").write_text('\n{"a": 1}\n \n\n{"a": 2}')
    assert storage.numbered_rows(tmp_path / "r.jsonl", "") == [(2, {"a": 1}), (5, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; make it"),
        (b'{"a": 1}\n\n{"a": \n', r"rows\.jsonl:3: not JSON \(Expecting value\); make it"),
        (b'{"a": 1}\n[1]\n', r"rows\.jsonl:2: must hold a JSON object, got list; make it"),
        (b'{"a": "\xff"}\n', r"rows\.jsonl is not UTF-8 text \(byte 7\); make it"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        storage.read_jsonl(tmp_path / "rows.jsonl", "make it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n]', r"v\.json:3: not JSON .*; mend it"),
        ('"text"', r"v\.json: must hold a JSON object, got str; mend it"),
    ],
)
def test_bad_json(tmp_path, text, message):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        storage.read_json(tmp_path / "v.json", "mend it")


def test_json_comes_back(tmp_path):
    storage.write_json(tmp_path / "v.json", {"ä": [1, 2]})
    assert storage.read_json(tmp_path / "v.json", "") == {"ä": [1, 2]}


@pytest.mark.parametrize("error", [TypeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "v.json"
    storage.write_json(path, {"a": 1})

    def fail():
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            assert json.loads(path.read_text()) == {"a": 1}
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert os.listdir(tmp_path) == ["v.json"]
    assert json.loads(path.read_text()) == {"a": 1}
    if isinstance(error, OSError):
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))


def test_rows_that_are_no_json_leave_the_old_file(tmp_path):
    storage.write_jsonl(tmp_path / "r.jsonl", [{"a": 1}])
    with pytest.raises(TypeError):
        storage.write_jsonl(tmp_path / "r.jsonl", [{"a": object()}])
    assert storage.read_jsonl(tmp_path / "r.jsonl", "") == [{"a": 1}]


def test_a_reader_that_has_the_old_file_open_keeps_it(tmp_path):
    storage.write_text(tmp_path / "t", "old")
    with (tmp_path / "t").open() as opened:
        storage.write_text(tmp_path / "t", "new")
        assert opened.read() == "old"
    assert (tmp_path / "t").read_text() == "new"


def test_a_directory_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        storage.write_text(tmp_path / "file" / "below", "x")
    assert raised.value.filename == str(tmp_path / "file" / "below")


@pytest.mark.parametrize("half", ['{"n": 2, "tex', '{"n": 2}', "\x80"])
def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path, half):
    path = tmp_path / "a.jsonl"
    storage.append_jsonl(path, [{"n": 0}])
    storage.append_jsonl(path, [{"n": 1}])
    with path.open("ab") as file:
        file.write(half.encode("latin-1"))
    assert storage.read_appended(path, "") == [{"n": 0}, {"n": 1}]
    storage.append_jsonl(path, [{"n": 2}])
    assert storage.read_jsonl(path, "") == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_nothing_appended_yet(tmp_path):
    assert storage.read_appended(tmp_path / "a.jsonl", "") == []


@pytest.fixture
def disk(monkeypatch):
    """What reached the disk, and which names were changed, in order: ("sync", path) and ("rename", from, to)."""
    told = []
    sync, replace, rename = os.fsync, os.replace, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (told.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))), sync(fd))[1]
    )
    for name, do in {"replace": replace, "rename": rename}.items():
        renamed = lambda a, b, do=do, **k: (told.append(("rename", str(a), str(b))), do(a, b, **k))[1]  # noqa: E731
        monkeypatch.setattr(os, name, renamed)
    return told


def test_contents_are_on_disk_before_a_name_leads_to_them_and_the_name_before_it_counts(tmp_path, disk):
    """After a power cut the old file is there or the new one: nothing is renamed that is not on disk."""
    path = tmp_path / "new" / "v.json"
    storage.write_json(path, {"a": 1})
    partial = f"{path}.partial"
    assert disk == [
        ("sync", str(tmp_path)),  # it leads to the new directory
        ("sync", partial),
        ("rename", partial, str(path)),
        ("sync", str(path.parent)),
    ]


def test_lines_are_on_disk_before_they_count(tmp_path, disk):
    storage.append_jsonl(tmp_path / "a.jsonl", [{"n": 0}])
    assert disk == [("sync", str(tmp_path / "a.jsonl")), ("sync", str(tmp_path))]


def test_an_adapter_is_on_disk_before_it_is_moved_into_its_place(tmp_path, disk):
    from ia_jax.adapters.store import save_adapter
    from tests.stored import adapter, metadata

    save_adapter(tmp_path / "x", adapter(), metadata())
    moved = disk.index(("rename", str(tmp_path / "x.saving"), str(tmp_path / "x")))
    there = {str(p.relative_to(tmp_path / "x")) for p in (tmp_path / "x").rglob("*")}
    before = {path for kind, path, *_ in disk[:moved] if kind == "sync"}
    assert {f"{tmp_path}/x.saving/{name}" for name in there} <= before
    assert disk[moved + 1] == ("sync", str(tmp_path))
