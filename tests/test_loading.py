"""Checkpoints read by ranges: which bytes, how often and by whom; what a bucket or a disk may do to them meanwhile."""

import json
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ia_jax import storage
from ia_jax.errors import ConfigError, IAError
from ia_jax.models import hub, placing, safetensors_source
from ia_jax.models.safetensors_source import SafetensorsSource
from ia_jax.models.transformer import param_shardings
from ia_jax.models.weights import load_model, name_table, read_weights
from ia_jax.parallel.mesh import make_mesh
from ia_jax.storage import bucket, ranges
from tests.base_files import LLAMA, checkpoint
from tests.bucket_server import bucket_service, environment, running  # noqa: F401
from tests.load_worker import MESHES, bits
from tests.processes import run_together
from tests.test_bad_bases import DAMAGES, sharded  # noqa: F401

HOME = "gs://bucket/model"


@pytest.fixture
def service(bucket_service):  # noqa: F811
    return bucket_service


def put(directory, home=HOME):
    for file in directory.iterdir():
        storage.write_bytes(storage.path_of(home) / file.name, file.read_bytes())


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("look", [16, 10**6])
def test_tensors_are_what_the_safetensors_library_reads(tmp_path, monkeypatch, look):
    monkeypatch.setattr(safetensors_source, "FIRST_LOOK", look)
    checkpoint(tmp_path, LLAMA, shards=3)
    source, rng = SafetensorsSource(tmp_path), np.random.default_rng(0)
    for file in sorted(tmp_path.glob("*.safetensors")):
        for name, value in load_file(file).items():
            index = tuple(slice(*sorted(rng.integers(0, n + 1, 2))) for n in value.shape)
            np.testing.assert_array_equal(source.read(name, index), value[index])
            rows = np.unique(rng.integers(0, len(value), 4))
            for span in (0, 10**6):
                monkeypatch.setattr(safetensors_source, "SPAN", span)
                assert source.raw_rows(name, rows) == ("F32", value[rows].tobytes())
            assert source.nbytes(name) == value.nbytes


def test_a_checkpoint_in_a_bucket_is_read_once_in_ranges_several_at_a_time(tmp_path, service, monkeypatch):
    """By one process of eight devices, on which no row lies whole; as many requests as there are blocks."""
    monkeypatch.setattr(placing, "BLOCK", 500)
    tensors = checkpoint(tmp_path, LLAMA, shards=3)
    put(tmp_path)
    cfg, plain = read_weights(tmp_path)
    name_table(SafetensorsSource(HOME))
    headers = len(service.ranges)
    assert headers == 3
    together, most, lock = [0], [0], threading.Lock()

    def slow(method, name):
        if name and name.endswith(".safetensors"):
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            threading.Event().wait(0.02)
            with lock:
                together[0] -= 1

    service.faults = slow
    _, placed = read_weights(HOME, shardings=param_shardings(cfg, make_mesh(fsdp=4, tp=2)))
    same(placed, plain)
    read = service.ranges[2 * headers :]
    assert sum(stop - start for _, start, stop, _ in read) == sum(x.nbytes for x in tensors.values())
    row = {name: x.nbytes // len(x) for name, x in tensors.items()}
    assert len(read) == sum(-(-len(x) // max(1, 500 // row[name])) for name, x in tensors.items())
    assert most[0] > 4


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Google's client drops answers that say no, unread
@pytest.mark.parametrize("what", [503, 429, "cut", "half"])
def test_ranges_that_fail_or_break_off_are_read_again(tmp_path, service, monkeypatch, what):
    monkeypatch.setattr(placing, "BLOCK", 2000)
    checkpoint(tmp_path, LLAMA)
    put(tmp_path)
    failed, seen = [], iter(range(10**6))

    def third(method, name):
        if next(seen) % 3 == 1:
            failed.append(name)
            return what
        return None

    service.faults = third
    same(read_weights(HOME)[1], read_weights(tmp_path)[1])
    assert failed.count("model/model.safetensors") > 10


def test_a_range_that_stays_short_is_one_line(tmp_path, service, monkeypatch):
    """An answer that is whole and shorter than asked for is followed by a request for the rest; not for ever."""
    checkpoint(tmp_path, LLAMA)
    put(tmp_path)
    file = ranges.files_in(storage.path_of(HOME))["model.safetensors"]
    into, content = bytearray(1000), (tmp_path / "model.safetensors").read_bytes()
    download, most = bucket._Filling.write, [300]
    monkeypatch.setattr(bucket._Filling, "write", lambda self, got: download(self, got[: most[0]]))
    ranges.read_into(file, 500, memoryview(into))
    assert bytes(into) == content[500:1500]
    assert [r[1:3] for r in service.ranges] == [(500, 1500), (800, 1500), (1100, 1500), (1400, 1500)]
    most[0] = 1
    with pytest.raises(IAError, match=r"gs://bucket/model/model.safetensors: of 1000 bytes from 500 on, 8 came"):
        ranges.read_into(file, 500, memoryview(into))


SHARDS = (
    "missing shard",
    "truncated shard",
    "truncated header",
    "empty shard",
    "truncated index",
    "tensor in two files",
)


@pytest.mark.parametrize("damage", SHARDS)
def test_half_a_checkpoint_in_a_bucket_is_one_line_that_names_the_file(tmp_path, service, sharded, damage):  # noqa: F811
    base = shutil.copytree(sharded, tmp_path / "model")
    change, culprit = DAMAGES[damage]
    change(base)
    put(base)
    with pytest.raises(ConfigError, match=culprit) as raised:
        load_model(HOME)
    assert HOME in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_bucket_does_not_have(service, tmp_path):
    with pytest.raises(ConfigError, match=r"gs://bucket/nothing: nothing is there; copy a Hugging Face directory"):
        load_model("gs://bucket/nothing")
    with pytest.raises(ConfigError, match=r"gs://bucket/m.gguf: a GGUF file is read from a disk"):
        load_model("gs://bucket/m.gguf")
    checkpoint(tmp_path, LLAMA)
    put(tmp_path)
    source = SafetensorsSource(HOME)
    put(tmp_path)  # written anew
    with pytest.raises(ConfigError, match=r"model.safetensors: gone, or written anew, since"):
        source.read("model.norm.weight", (slice(0, 1),))


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    checkpoint(tmp_path, LLAMA)
    source, file = SafetensorsSource(tmp_path), tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    last = max(source.shapes, key=lambda name: source._tensors[name].stop)
    with pytest.raises(IAError, match=r"model.safetensors ends at byte \d+; it was cut while it was read"):
        source.read(last, (slice(0, source.shapes[last][0]),))


# --------------------------------------------------------------------------------------------------- several processes


def test_two_processes_read_half_each_and_fetch_a_hub_model_once(tmp_path, parrot_model, monkeypatch):
    """Over HTTP. What each has on its devices is compared with what one process reads from a disk."""
    model = shutil.copytree(parrot_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file({n: x.astype("bfloat16") for n, x in tensors.items()}, model / "model.safetensors")
    with running() as (service, address):
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        bucket._client.cache_clear()
        put(model)
        bucket._client.cache_clear()
        before = len(service.ranges)
        for status, _, said in run_together("-m", "tests.load_worker", tmp_path, model):
            assert status == 0, said[-3000:]
        asked = [r for r in service.ranges[before:] if r[0] == "model/model.safetensors"]
        told = [json.loads((tmp_path / f"told_{i}.json").read_text()) for i in range(2)]
        size = (model / "model.safetensors").stat().st_size
        for name, (_, _, quantization) in MESHES.items():
            wanted, parts = load_model(model, "bfloat16", quantization=quantization), {}
            for i in range(2):
                bytes_read, _, fingerprint = told[i][name]
                assert bytes_read <= 0.55 * size, (name, i, bytes_read / size)
                assert fingerprint == wanted.fingerprint
                with np.load(tmp_path / f"{name}_{i}.npz") as found:
                    parts |= dict(found)
            check(parts, wanted.params)
        assert sum(told[i][name][0] for i in range(2) for name in MESHES) == sum(b - a for _, a, b, _ in asked)
        took = [told[i]["fetched"] for i in range(2)]
        assert took[0].count("its list") == 1
        assert "its list" not in took[1]
        files = [f for f in took[0] + took[1] if f != "its list"]
        assert sorted(files) == sorted(p.name for p in model.iterdir() if not p.name.endswith(".txt"))
        assert min(map(len, took)) >= 2
        kept = json.loads(service.content("cache/org--parrot/main/fetched.json"))
        assert kept["commit"] == "c0ffee"
        assert {f: len(service.content(f"cache/org--parrot/main/{f}")) for f in files} == kept["sizes"]


def check(parts, params):
    """Every part is that of the array which lies there; together they are all of it."""
    covered = {}
    for path, x in jax.tree.leaves_with_path(params):
        key, value = jax.tree_util.keystr(path), bits(x)
        seen = np.zeros(value.shape, bool)
        for name, part in parts.items():
            if name.startswith(f"{key} "):
                index = tuple(slice(*bounds) for bounds in json.loads(name[len(key) + 1 :]))
                np.testing.assert_array_equal(part, value[index], err_msg=name)
                seen[index] = True
        covered[key] = bool(seen.all())
    assert all(covered.values()), covered


# ------------------------------------------------------------------------------------------------------------- the hub


class Hub:
    """A hub that has a model of two files besides its configuration; it may fail at one of them."""

    def __init__(self, monkeypatch, directory):
        import huggingface_hub

        self.directory, self.took, self.fails = directory, [], {}
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def model_info(self, name, revision, files_metadata):
        from types import SimpleNamespace

        files = [SimpleNamespace(rfilename=p.name, size=p.stat().st_size) for p in self.directory.iterdir()]
        files.append(SimpleNamespace(rfilename="original/model.safetensors", size=10**12))
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def download(self, name, file, revision, local_dir):
        self.took.append(file)
        if file in self.fails:
            return self.fails[file](local_dir)
        return shutil.copy(self.directory / file, local_dir)


@pytest.mark.parametrize("remote", [False, True])
def test_a_fetch_that_broke_off_goes_on_with_what_is_missing(tmp_path, service, monkeypatch, remote):
    monkeypatch.setattr(bucket, "PIECE", 256 * 2**10)
    model = tmp_path / "model"
    checkpoint(model, LLAMA, shards=2)
    site, cache = Hub(monkeypatch, model), "gs://bucket/models" if remote else str(tmp_path / "models")

    def half(local_dir):
        content = (model / "model-1.safetensors").read_bytes()
        (tmp_path / "half").write_bytes(content[: len(content) // 2])
        return shutil.move(tmp_path / "half", local_dir)

    site.fails["model-1.safetensors"] = half
    with pytest.raises(
        IAError, match=r"org/m: model-1.safetensors: \d+ of \d+ bytes came; give the same command again"
    ):
        hub.cached("org/m", "v1", cache)
    site.fails["model-1.safetensors"] = lambda _: 1 / 0
    with pytest.raises(IAError, match=r"org/m: model-1.safetensors: cannot be fetched \(division"):
        hub.cached("org/m", "v1", cache)
    site.fails.clear()
    site.took.clear()
    home = hub.cached("org/m", "v1", cache)
    assert str(home) == f"{cache}/org--m/v1"
    assert "model-1.safetensors" in site.took
    assert not (home / "model-1.safetensors.partial").exists()
    site.took.clear()
    assert hub.cached("org/m", "v1", cache) == home
    assert site.took == []
    same(read_weights(home)[1], read_weights(model)[1])
    assert sorted(f.name for f in home.iterdir()) == sorted(["fetched.json", *(f.name for f in model.iterdir())])


def test_an_unsupported_model_is_refused_before_its_weights_come(tmp_path, monkeypatch):
    model = tmp_path / "model"
    checkpoint(model, LLAMA)
    (model / "config.json").write_text(json.dumps(LLAMA | {"hidden_act": "gelu"}))
    site = Hub(monkeypatch, model)
    with pytest.raises(ConfigError, match="hidden_act"):
        hub.cached("org/m", None, str(tmp_path / "models"))
    assert site.took == ["config.json"]
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"org/n: the hub has no config.json"):
        hub.cached("org/n", None, str(tmp_path / "models"))
