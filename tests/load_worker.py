"""One process of two (tests/test_loading.py): loads a base from a bucket and from a hub, and says what that took."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np

from ia_jax.models import hub, placing, safetensors_source
from ia_jax.models.weights import load_model
from ia_jax.parallel import distributed
from ia_jax.parallel.mesh import make_mesh
from ia_jax.storage import bucket

# fsdp, rows, tp, the order of the devices (two processes have two each), quantization.
MESHES = {
    "columns of both": ((4, 1, 1), (0, 1, 2, 3), ""),
    "tp inside": ((2, 1, 2), (0, 1, 2, 3), ""),
    "tp across": ((2, 1, 2), (0, 2, 1, 3), ""),
    "int8": ((1, 2, 2), (0, 1, 2, 3), "int8"),
}


def main(directory, model):
    assert distributed.start()
    me = jax.process_index()
    # The base is tiny: what is read beside the weights is to be little of it too.
    placing.BLOCK, safetensors_source.FIRST_LOOK, safetensors_source.SPAN = 2**16, 3000, 0
    read, count = bucket.read_into, []

    def counted(path, generation, start, into):
        count.append(len(into))
        read(path, generation, start, into)

    bucket.read_into = counted
    told = {}
    for name, ((fsdp, rows, tp), order, quantization) in MESHES.items():
        count.clear()
        mesh = make_mesh(fsdp, tp, 1, rows, devices=[jax.devices()[i] for i in order])
        loaded = load_model("gs://bucket/model", "bfloat16", mesh, quantization=quantization)
        told[name] = [sum(count), len(count), loaded.fingerprint]
        parts = {}  # what lies on this process, by where in its array
        for path, x in jax.tree.leaves_with_path(loaded.params):
            for part in x.addressable_shards:
                bounds = [list(s.indices(n)[:2]) for s, n in zip(part.index, x.shape, strict=True)]
                parts[f"{jax.tree_util.keystr(path)} {bounds}"] = bits(part.data)
        np.savez(directory / f"{name}_{me}.npz", **parts)
    told["fetched"] = fetched(model)
    (directory / f"told_{me}.json").write_text(json.dumps(told))


def bits(x):
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def fetched(model):
    """The files that this process took from a hub that has the model in a local directory."""
    took = []

    class Hub:
        def model_info(self, name, revision, files_metadata):
            assert (name, revision) == ("org/parrot", None)
            took.append("its list")
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(Path(model).iterdir())]
            return huggingface_hub.ModelInfo(id=name, sha="c0ffee", siblings=files)

    def hf_hub_download(name, file, revision, local_dir):
        assert (name, revision) == ("org/parrot", "c0ffee")
        took.append(file)
        return shutil.copy(Path(model, file), local_dir)

    huggingface_hub.HfApi, huggingface_hub.hf_hub_download = Hub, hf_hub_download
    first = load_model("org/parrot", mesh=make_mesh(2, 2), cache="gs://bucket/cache")
    assert first.name == "org/parrot"
    assert hub.cached("org/parrot", None, "gs://bucket/cache") == bucket_path("cache/org--parrot/main")
    return took


def bucket_path(name):
    from ia_jax.storage import path_of

    return path_of(f"gs://bucket/{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
