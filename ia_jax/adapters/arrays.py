"""An adapter's arrays on disk: an Orbax checkpoint with one item, `state`, of which a process needs no other.

Orbax can't do that itself: its host arrays are written by process 0 alone, its `save` compares paths over all
processes, and it names the barriers of later saves by a count that each save raises. So tensorstore writes the files:

    _CHECKPOINT_METADATA               what marks a committed checkpoint
    state/_METADATA                    the tree
    state/manifest.ocdbt, state/d/…    the arrays: zarr 3 in one OCDBT database, uncompressed, as trained floats hardly
                                       compress

`orbax.checkpoint.v1.load` reads it, and `read_arrays` what that library wrote.
"""

import json
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from ia_jax.adapters.record import Leaves

COMMIT_MARKER, STATE = "_CHECKPOINT_METADATA", "state"
_HANDLER = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
_DICT_KEY = 2  # Orbax's number for the keys of a dictionary


def write_arrays(path: epath.Path, leaves: Leaves) -> None:
    """Writes `leaves` ("q.a": array) into the new directory `path`. Raises ValueError or OSError where that fails."""
    import tensorstore as ts

    began = time.time_ns()
    (path / STATE).mkdir(parents=True)
    # One transaction over one open database: one file of data, instead of some for each array.
    together, context = ts.Transaction(atomic=True), ts.Context()
    opened = [
        ts.open(_spec(path, name, x), create=True, open=True, transaction=together, context=context)
        for name, x in leaves.items()
    ]
    writes = [
        array.result().write(np.ascontiguousarray(x), can_reference_source_data_indefinitely=True)
        for array, x in zip(opened, leaves.values(), strict=True)
    ]
    for write in writes:
        write.copy.result()
    together.commit_async().result()
    (path / STATE / "_METADATA").write_text(json.dumps(_tree_metadata(leaves)))
    committed = {"init_timestamp_nsecs": began, "commit_timestamp_nsecs": time.time_ns()}
    more: dict[str, Any] = {"metrics": {}, "performance_metrics": {}, "custom_metadata": {}}
    (path / COMMIT_MARKER).write_text(json.dumps({"item_handlers": {STATE: _HANDLER}, **committed, **more}))


def read_arrays(path: epath.Path, names: Iterable[str]) -> Leaves:
    """The arrays of these names. Raises ValueError where one cannot be read."""
    import tensorstore as ts

    context = ts.Context()
    opened = {name: ts.open(_spec(path, name), open=True, read=True, context=context) for name in names}
    read = {name: array.result().read() for name, array in opened.items()}
    return {name: x.result() for name, x in read.items()}


def _spec(path: epath.Path, name: str, x: np.ndarray | None = None) -> dict[str, Any]:
    """Tensorstore's description of one array; to make it, of `x`."""
    where = f"{path / STATE}/"
    base = where if "://" in where else f"file://{where}"
    database: dict[str, Any] = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": database}
    if x is not None:
        database["config"] = {"compression": None}
        spec["metadata"] = {
            "shape": list(x.shape),
            "data_type": str(x.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(x.shape)}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }
    return spec


def _tree_metadata(leaves: Leaves) -> dict[str, Any]:
    """Of a tree {projection: {"a": …, "b": …}}, as Orbax describes one whose leaves are host arrays."""
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {}
    for name in leaves:
        keys = name.split(".")
        path = [{"key": key, "key_type": _DICT_KEY} for key in keys]
        tree[str(tuple(keys))] = {"key_metadata": path, "value_metadata": value}
    flags = {"use_ocdbt": True, "use_zarr3": True, "store_array_data_equal_to_fill_value": True}
    return {"tree_metadata": tree, **flags, "custom_metadata": None}
