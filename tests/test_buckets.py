"""A workdir in a bucket, over HTTP: requests that fail, answers that are lost, processes killed, a second run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ia_jax import storage
from ia_jax.errors import ConfigError, IAError
from ia_jax.storage import bucket, lease, parts
from tests.bucket_server import bucket_service  # noqa: F401

pytestmark = pytest.mark.usefixtures("bucket_service")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def service(bucket_service):  # noqa: F811
    return bucket_service


def at(name):
    return storage.path_of(f"gs://bucket/{name}")


# ------------------------------------------------------------------------------------------------------------- objects


def test_a_path_in_a_bucket_does_what_a_local_one_does(tmp_path, service):
    """Said of both: what is there, what is in a directory, what a pattern finds."""
    service.page_size = 2
    told = []
    for root in (tmp_path / "w", at("w")):
        for name in ("a.json", "deep/b.json", "deep/er/metrics.json", "metrics.json", "deep.er/c.json"):
            storage.write_text(root / name, f"{{{json.dumps(name)}: 1}}")
        (root / "deep.er" / "c.json").unlink()
        told.append(
            {
                "exists": [(root / n).exists() for n in ("a.json", "deep", "deep/er", "dee", "deep.er/c.json", "x")],
                "dirs": [(root / n).is_dir() for n in ("a.json", "deep", "x")],
                "files": [(root / n).is_file() for n in ("a.json", "deep", "x")],
                "names": sorted(p.name for p in root.iterdir() if p.name != "deep.er"),
                "directories": [d for d in storage.directories(root) if d != "deep.er"],
                "glob": sorted(str(p.relative_to(root)) for p in root.glob("**/metrics.json")),
                "star": sorted(str(p.relative_to(root)) for p in root.glob("deep/*.json")),
                "rglob": sorted(str(p.relative_to(root)) for p in root.rglob("*.json")),
                "text": (root / "a.json").read_text(),
                "present": storage.present([root / "deep" / "b.json", root / "deep" / "x.json"]),
                "age": abs(storage.modified(root / "a.json") - time.time()) < 60,
                "joined": str(storage.below(root, "organisms/x")).removeprefix(str(root)),
                "absolute": [str(storage.below(root, p)) for p in ("/elsewhere/x", "gs://other/x")],
            }
        )
    assert told[0] == told[1]
    assert sorted(told[0]["exists"], reverse=True) == [True, True, True, False, False, False]


@pytest.mark.parametrize("what", [503, 429, "lost", "cut", 0.3])
def test_requests_that_fail_are_made_again(service, monkeypatch, what):
    """Every third request goes wrong; what is there in the end is what would be there if none did."""
    monkeypatch.setattr(bucket, "TIMEOUT", 0.15)
    seen = iter(range(10**6))
    service.faults = lambda method, name: what if next(seen) % 3 == 1 else None
    for n in range(4):
        storage.append_jsonl(at("w/rows.jsonl"), [{"n": n}])
        storage.write_json(at("w/state.json"), {"n": n})
    at("w/gone.json").write_text("x")
    at("w/gone.json").unlink()
    bucket.copy_tree(at("w"), at("copy"))
    bucket.remove_tree(at("w"))
    service.faults = lambda method, name: None
    assert storage.read_jsonl(at("copy/rows.jsonl"), "") == [{"n": n} for n in range(4)]
    assert storage.read_json(at("copy/state.json"), "") == {"n": 3}
    assert service.names("w") == []
    assert not at("copy/gone.json").exists()


def test_of_two_that_write_at_once_one_is_told(service):
    path = at("w/state.json")
    storage.write_text(path, "old")

    def meanwhile(method, name):
        if method == "POST":
            service.faults = lambda method, name: None
            bucket.write(path, b"theirs")

    service.faults = meanwhile
    with pytest.raises(IAError, match=r"gs://bucket/w/state.json was written by another run meanwhile"):
        storage.write_text(path, "ours")
    assert path.read_text() == "theirs"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (403, r"gs://bucket/w/x: not allowed \(.*role Storage Object Admin"),
        (401, r"gs://bucket/w/x: (not allowed|no Google credentials)"),
        (503, r"gs://bucket/w/x: the bucket does not answer"),
        (429, r"gs://bucket/w/x: a quota of the bucket is used up \(asked for by a test"),
    ],
)
def test_a_bucket_that_does_not_serve_is_one_line(service, monkeypatch, fault, message):
    monkeypatch.setattr(bucket, "PATIENCE", 0.1)
    service.faults = lambda method, name: fault
    with pytest.raises(IAError, match=message) as raised:
        storage.write_text(at("w/x"), "x")
    assert "\n" not in str(raised.value)


def test_bad_places():
    with pytest.raises(IAError, match="there is no bucket nowhere"):
        storage.write_text(storage.path_of("gs://nowhere/w/x"), "x")
    with pytest.raises(ConfigError, match="names no bucket"):
        storage.path_of("gs://")
    with pytest.raises(ConfigError, match="s3://b/x: files lie in a local directory or in a bucket"):
        storage.path_of("s3://b/x")
    with pytest.raises(ConfigError, match=r"gs://bucket/w/x.jsonl does not exist; make it"):
        storage.read_jsonl(at("w/x.jsonl"), "make it")


# --------------------------------------------------------------------------------------------------------------- parts


def test_what_is_appended_is_read_in_order_and_stays_few_objects(service, monkeypatch):
    monkeypatch.setattr(parts, "MOST_PARTS", 5)
    path = at("w/rows.jsonl")
    for n in range(17):
        storage.append_jsonl(path, [{"n": n}])
        assert len(service.names("w/")) <= 6
    assert storage.read_appended(path, "") == [{"n": n} for n in range(17)]


def test_a_file_written_anew_ends_its_parts_even_if_they_cannot_be_removed(service, monkeypatch):
    path = at("w/rows.jsonl")
    storage.append_jsonl(path, [{"n": 0}])
    storage.append_jsonl(path, [{"n": 1}])
    monkeypatch.setattr(bucket, "remove_tree", lambda directory: None)  # killed right before
    storage.write_jsonl(path, [{"n": 5}])
    assert len(service.names("w/")) == 2
    assert storage.read_jsonl(path, "") == [{"n": 5}]
    storage.append_jsonl(path, [{"n": 6}])
    assert storage.read_jsonl(path, "") == [{"n": 5}, {"n": 6}]


def test_lines_wait_in_memory_until_they_are_due_and_closing_leaves_one_object(service, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 20)
    path = at("w/curves.jsonl")
    file = storage.appending(path)
    file.write(b'{"n": 0}\n')
    file.flush()
    assert path.read_text() == ""
    file.sync()
    assert storage.read_jsonl(path, "") == [{"n": 0}]
    monkeypatch.setattr(parts, "FLUSH_SECONDS", 0.0)
    for n in range(1, 7):
        file.write(f'{{"n": {n}}}\n'.encode())
        file.flush()
        assert len(storage.read_jsonl(path, "")) == n + 1
    assert len(service.names("w/curves.jsonl.parts/")) == 3  # 27 bytes each
    file.close()
    assert service.names("w/") == ["w/curves.jsonl"]
    assert service.content("w/curves.jsonl").count(b"\n") == 7


def test_parts_of_a_copy_without_its_metadata_are_not_dropped_in_silence(service):
    path = at("w/rows.jsonl")
    storage.append_jsonl(path, [{"n": 0}])
    storage.append_jsonl(path, [{"n": 1}])
    service.find("bucket", "w/rows.jsonl")["metadata"] = {}
    with pytest.raises(ConfigError, match="was copied without its metadata"):
        storage.read_jsonl(path, "")


WRITER = """
import sys
from ia_jax import storage
from ia_jax.storage import bucket, lease

bucket.FIRST_WAIT = 0.01
root = storage.path_of("gs://bucket/w")
with storage.locked(root):
    there = storage.read_appended(root / "rows.jsonl", "")
    print("ready", flush=True)
    for n in range(len(there) // 2, 10**6):
        storage.append_jsonl(root / "rows.jsonl", [{"n": n}, {"half": n}])
        storage.write_json(root / "state.json", {"done": n + 1})
"""


def _wrote(before):
    """Whether there are more lines than before, of which one has been noted in the state."""
    file = at("w/state.json")
    return file.exists() and 2 * storage.read_json(file, "")["done"] > before


def test_killed_at_random_instants_nothing_is_half(service):
    """Each run goes on from what the killed one left, under its lease, without waiting: they share a machine."""
    rng, rows = random.Random(0), []
    for kill in range(1, 4):
        with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == b"ready\n"
            while not _wrote(len(rows)):  # on a machine as slow as it may be
                assert run.poll() is None
            time.sleep(rng.uniform(0.0, 0.4))
            run.send_signal(signal.SIGKILL)
        new = storage.read_appended(at("w/rows.jsonl"), "")
        assert new[: len(rows)] == rows
        assert len(new) > len(rows)
        rows = new
        state = storage.read_json(at("w/state.json"), "")["done"]
        assert len(rows) // 2 - kill <= state <= len(rows) // 2  # each may have come between lines and state
    assert rows == [row for n in range(len(rows) // 2) for row in ({"n": n}, {"half": n})]


# --------------------------------------------------------------------------------------------------------------- lease


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.1, "SAFE": 0.5, "TERM": 0.8, "LOOK": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.mark.usefixtures("quick")
def test_a_second_run_is_refused_and_the_lease_goes_with_its_holder(service):
    with storage.locked(at("w")):
        with (
            pytest.raises(IAError, match=r"another ia-jax \(process \d+ on .*\) is working in gs://bucket/w;"),
            storage.locked(at("w")),
        ):
            pass
        storage.write_text(at("w/x"), "mine")
    assert service.names("w") == ["w/x"]
    with storage.locked(at("w")):
        pass


@pytest.mark.usefixtures("quick")
def test_a_silent_lease_is_taken_and_its_holder_writes_nothing_more(monkeypatch):
    """The holder stands still, another takes the lease, and the holder goes on."""
    holder, other = lease._Lease(at("w")), lease._Lease(at("w"))
    holder.take()
    with bucket.guarded(at("w"), holder.check):
        storage.write_text(at("w/x"), "theirs")
        time.sleep(0.55)
        with pytest.raises(IAError, match=r"lease on gs://bucket/w is lost \(it could not be renewed for 0.5 s\)"):
            storage.write_text(at("w/x"), "too late")
    began = time.monotonic()
    other.take()
    assert time.monotonic() - began >= 0.8
    with bucket.guarded(at("w"), holder.check):
        monkeypatch.setattr(lease, "SAFE", 60.0)
        holder.beat()
        with pytest.raises(IAError, match=r"is lost \(another run has taken it\)"):
            storage.write_text(at("w/x"), "too late")
    holder.leave()  # that is not his to take away any more
    assert at("w/x").read_text() == "theirs"
    there = bucket.find(other.path)
    assert there is not None
    assert there.generation == other.generation


@pytest.mark.usefixtures("quick")
def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(service, monkeypatch):
    monkeypatch.setattr(lease, "TERM", 60.0)
    dead = subprocess.Popen(["true"])
    dead.wait()
    holder = {"run": "x", "host": "here", "pid": dead.pid, "on": lease._machine(), "beat": 3}
    bucket.write(at("w/.lock"), json.dumps(holder).encode())
    began = time.monotonic()
    with storage.locked(at("w")):
        pass
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("quick")
def test_lost_answers_to_heartbeats_lose_no_lease(service, monkeypatch):
    """Renewals are done and no answer comes, for longer than any of them is tried."""
    monkeypatch.setattr(lease, "SAFE", 60.0)
    lost = []

    def fault(method, name):
        if method == "POST" and name == "w/.lock" and (not lost or time.monotonic() - lost[0] < 5 * lease.BEAT):
            lost.append(time.monotonic())
            return "lost"
        return None

    with storage.locked(at("w")):
        service.faults = fault
        while not lost or time.monotonic() - lost[0] < 10 * lease.BEAT:
            time.sleep(0.05)
            storage.write_text(at("w/x"), "mine")
    assert service.names("w") == ["w/x"]
