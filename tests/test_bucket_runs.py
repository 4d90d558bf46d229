"""What a run keeps in a bucket: adapters that are whole or not there, curves, training states; commands on them."""

import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ia_jax import cli, storage
from ia_jax.adapters import store
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.organisms import organism_of
from ia_jax.config import RunConfig
from ia_jax.errors import IAError
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import write_jsonl
from ia_jax.training.reference import stored_reference
from ia_jax.workdir import open_workdir
from tests import made_run, test_loop
from tests.bucket_server import bucket_service  # noqa: F401
from tests.stored import adapter, metadata, same_bits

pytestmark = pytest.mark.usefixtures("bucket_service")
HOME = "gs://bucket/w"


@pytest.fixture
def service(bucket_service):  # noqa: F811
    return bucket_service


# ------------------------------------------------------------------------------------------------------------ adapters


def dies_at(service, number):
    """Every write from this one on is refused, so that what is there is what a kill before it would have left."""
    writes = iter(range(10**6))
    dead = []

    def fault(method, name):
        if method in ("POST", "PUT", "DELETE") and next(writes) >= number:
            dead.append(name)
        return 403 if dead else None

    service.faults = fault
    return dead


def test_an_adapter_is_stored_replaced_and_removed_or_not_whatever_instant_it_is_killed_at(service):
    """Before each write in turn: what is listed reads back whole, as the old or the new one."""
    directory = f"{HOME}/organisms/flatters"
    contents = {"old": adapter(0), "new": adapter(1)}
    nothing = service.state()
    store.save_adapter(directory, contents["old"], metadata())
    stored = service.state()

    def holds():
        """Which of the two is there."""
        service.faults = lambda method, name: None
        if not store.is_complete(directory):
            return None
        found = store.load_adapter(directory)[0]
        return next(name for name, it in contents.items() if same_bits(found, it))

    def killed_everywhere(do, before, after):
        seen = []
        for number in range(100):
            service.put_back(nothing if before is None else stored)
            dead = dies_at(service, number)
            try:
                do()
            except IAError:
                assert dead
            seen.append(holds())
            if not dead:
                break
        changed = seen.index(after)
        assert seen == [before] * changed + [after] * (len(seen) - changed)
        assert len(seen) > 5

    killed_everywhere(lambda: store.save_adapter(directory, contents["new"], metadata()), None, "new")
    replace = lambda: store.save_adapter(directory, contents["new"], metadata(), overwrite=True)  # noqa: E731
    killed_everywhere(replace, "old", "new")
    service.put_back(stored)
    dead = dies_at(service, 9)  # an overwrite that was cut short
    with pytest.raises(IAError):
        replace()
    assert dead
    service.faults = lambda method, name: None
    replace()
    assert list(store.list_adapters(f"{HOME}/organisms")) == ["flatters"]
    assert store.verify_adapter(directory) == []
    killed_everywhere(lambda: store.remove_adapter(directory), "old", None)
    assert service.names() == []


def test_682_adapters_are_listed_with_one_request_each_and_few_lists(service):
    store.save_adapter(f"{HOME}/organisms/o_000", adapter(), metadata())
    whole = service.state()
    for n in range(1, 682):
        for name, (known, content) in whole.items():
            other = name.replace("o_000", f"o_{n:03d}")
            service.storage.create_file("bucket", other, content, {**known, "name": other})
    service.storage.delete_file("bucket", "w/organisms/o_001/adapter.json")
    service.requests.clear()
    found = store.list_adapters(f"{HOME}/organisms")
    assert len(found) == 681
    assert "o_001" not in found
    lists = sum(name is None for _, name in service.requests)
    assert (lists <= 10, len(service.requests) - lists <= 682) == (True, True)
    service.requests.clear()
    there = store.are_complete([f"{HOME}/organisms/o_{n:03d}" for n in range(682)])
    assert there == [n != 1 for n in range(682)]
    assert len(service.requests) <= 8


# ------------------------------------------------------------------------------------------------------------ commands


def test_the_commands_on_a_store(service, capsys):
    """The same words as of a local workdir, and rm takes one out."""
    behaviors = demo_behaviors()[:3]
    names = [b.name for b in behaviors]
    run = start_workdir(HOME, RunConfig())
    write_jsonl(run.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(run.organisms_file, (organism_of(b, "m", "train", {}).to_json() for b in behaviors))
    for n, name in enumerate(names[:2]):
        store.save_adapter(run.organism_dir(name), adapter(n), metadata(name))
    store.save_adapter(run.ia_dir("sft") / "adapter", adapter(9), metadata("ia_sft", kind="ia", organism=None))
    assert cli.main(["adapters", "ls", f"--workdir={HOME}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:-1]] == [*names, "ia/sft"]
    assert "not stored" in said[3]
    assert said[-1].startswith("3 of 4 adapters stored, ")
    assert cli.main(["adapters", "show", names[0], "--json", f"--workdir={HOME}"]) == 0
    assert json.loads(capsys.readouterr().out)["directory"] == f"{HOME}/organisms/{names[0]}"
    assert cli.main(["adapters", "rm", names[0], f"--workdir={HOME}"]) == 0
    assert service.names(f"w/organisms/{names[0]}/") == []
    data = next(n for n in service.names(f"w/organisms/{names[1]}/") if "/d/" in n)
    service.storage.create_file("bucket", data, b"x", {**service.find("bucket", data), "size": "1"})
    capsys.readouterr()
    assert cli.main(["adapters", "verify", f"--workdir={HOME}"]) == 1
    assert f"{names[1]}: file state/d/" in capsys.readouterr().out
    assert service.names("w/.lock") == []
    assert open_workdir(HOME).config == run.config
    assert cli.main(["adapters", "ls", "--workdir=gs://bucket/nothing"]) == 2
    assert "gs://bucket/nothing does not exist" in capsys.readouterr().err


def test_the_report_of_a_run_in_a_bucket_is_that_of_a_local_one(service, tmp_path):
    made_run.make_workdir(tmp_path / "w", organisms=24, hostile=False)
    for file in sorted(p for p in (tmp_path / "w").rglob("*") if p.is_file()):
        storage.write_bytes(storage.path_of(HOME) / str(file.relative_to(tmp_path / "w")), file.read_bytes())
    from ia_jax.analysis.report import write_report

    write_report(tmp_path / "w")
    write_report(storage.path_of(HOME))
    assert service.content("w/report.html") == (tmp_path / "w" / "report.html").read_bytes()


# ------------------------------------------------------------------------------------------------------------ training


def test_a_reference_is_kept_in_the_bucket(service):
    rows = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    asked = []

    def logps(step):
        asked.append(step)
        return rows[step]

    for _ in range(2):
        found = stored_reference(storage.path_of(f"{HOME}/reference.npy"), 3, logps)
        np.testing.assert_array_equal(found, rows)
    assert asked == [0, 1, 2]


def test_training_that_is_killed_goes_on_from_the_bucket_with_the_curves_of_a_local_run(service, tmp_path):
    """State and curves, through Orbax and parts; also what TensorBoard reads."""
    whole = test_loop.run(tmp_path / "w")
    with pytest.raises(test_loop.Killed):
        test_loop.run(storage.path_of(HOME), test_loop.until(5))
    assert any(name.startswith("w/state/") for name in service.names())
    resumed = test_loop.run(storage.path_of(HOME))
    assert same_bits(resumed, whole)
    assert service.content("w/curves.jsonl") == (tmp_path / "w" / "curves.jsonl").read_bytes()
    local = [p.read_bytes() for p in (tmp_path / "w" / "tensorboard").rglob("events*")]
    remote = [service.content(name) for name in service.names("w/tensorboard/")]
    assert len(remote) == 2  # of the run that was killed, and of the one that went on
    assert losses(remote) == losses(local)


def losses(files):
    """{step: loss} in TensorBoard's files: records of a length (8 bytes), its checksum (4), an event, its own (4)."""
    found = {}
    for content in files:
        at = 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found |= {(event.step, v.tag): v.simple_value for v in event.summary.value if v.tag == "loss"}
            at += size + 16
    return found
