"""Stored tensors onto a mesh: every process reads whole rows, each row once, many at a time.

A stored row is contiguous; a column is two bytes here and two bytes there. Where devices of several processes hold
columns of the same rows, each process therefore reads its share of the rows, and an all-to-all between the devices
gives each its columns. Elsewhere each reads the rows that its own devices hold and cuts them itself. Either way a
process reads about its share of the bytes, in ranges of `BLOCK`, whatever the mesh. Slices (`dcn`) read for themselves:
the network between them is slower than a bucket.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ia_jax.parallel.distributed import is_main_process
from ia_jax.progress import duration, progress
from ia_jax.storage.ranges import in_flight

if TYPE_CHECKING:
    from ia_jax.models.sources import TensorSource

BLOCK = 8 * 2**20  # stored bytes that are read at once
STRIP = 64  # rows that are transposed at once: few enough for the processor's cache, twice as fast as all
SHOWN = 256 * 2**20  # bytes from which on it is shown how far reading has come

Bounds = tuple[tuple[int, int], ...]  # from and to, of each axis


@dataclass(frozen=True)
class Reading:
    """An array that is read from stored tensors.

    names:      the tensors, each [rows] or [rows, columns]: one for every entry of the array's first axis if `stacked`,
                else a single one.
    transposed: whether the array has [columns, rows].
    places:     {bounds of a part of the array: the devices of this process that hold it}; None for the one device that
                jax chooses.
    sharding:   of the array as it is read; None with such a device.
    then:       where it goes from there, by `_exchange`, if that is elsewhere.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool
    places: dict[Bounds, list[Any] | None]
    sharding: Sharding | None
    then: tuple[NamedSharding, bool] | None = None

    def box(self, bounds: Bounds) -> "_Box":
        tensors, rest = (bounds[0], bounds[1:]) if self.stacked else ((0, 1), bounds)
        rows, *columns = rest[::-1] if self.transposed else rest
        return _Box(tensors, rows, tuple(columns))


class _Box(NamedTuple):
    """A part of stored tensors."""

    tensors: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[tuple[int, int], ...]  # of a vector: none


def reading(
    names: Sequence[str], shape: tuple[int, ...], stacked: bool, transposed: bool, sharding: Sharding | None
) -> Reading:
    """What this process reads of an array that is to lie in `sharding`. Every process comes to the same layout."""
    if sharding is None:
        return Reading(tuple(names), shape, stacked, transposed, {tuple((0, n) for n in shape): None}, None)
    direct = Reading(tuple(names), shape, stacked, transposed, _places(sharding, shape), sharding)
    exchanged = _by_rows(direct, shape[1:] if stacked else shape)
    if exchanged is None or _most_rows(exchanged) >= _most_rows(direct):
        return direct
    return exchanged


def _by_rows(direct: Reading, matrix: tuple[int, ...]) -> Reading | None:
    """The array as it is stored, its rows over all devices that share them or their columns; None without such."""
    goal = direct.sharding
    if len(matrix) < 2 or not isinstance(goal, NamedSharding):
        return None
    spec = [*goal.spec, *[None] * (len(direct.shape) - len(goal.spec))]
    front, (one, other) = spec[:-2], spec[-2:]
    rows, columns = (_axes(x) for x in ((other, one) if direct.transposed else (one, other)))
    stored = (*direct.shape[:-2], *(matrix[::-1] if direct.transposed else matrix))
    if not columns or stored[-2] % math.prod(goal.mesh.shape[a] for a in (*rows, *columns)):
        return None
    by_rows = NamedSharding(goal.mesh, PartitionSpec(*front, (*rows, *columns), None))
    places = _places(by_rows, stored)
    return replace(
        direct, shape=stored, transposed=False, places=places, sharding=by_rows, then=(goal, direct.transposed)
    )


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _places(sharding: Sharding, shape: tuple[int, ...]) -> dict[Bounds, list[Any] | None]:
    found: dict[Bounds, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        found.setdefault(_bounds(index, shape), []).append(device)
    return dict(found)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _most_rows(of: Reading) -> int:
    """Of the rows of a tensor, how many that process reads which reads most."""
    assert of.sharding is not None
    rows: dict[int, list[tuple[int, int]]] = {}
    for device, index in of.sharding.devices_indices_map(of.shape).items():
        assert index is not None
        rows.setdefault(device.process_index, []).append(of.box(_bounds(index, of.shape)).rows)
    return max(sum(b - a for a, b in _union(spans)) for spans in rows.values())


def _union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few spans as there can be."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(set(spans)):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


# ------------------------------------------------------------------------------------------------------------- reading


class _Block(NamedTuple):
    """Rows [first, last) of the tensor of this number."""

    tensor: int
    first: int
    last: int


def _blocks(of: Reading, source: "TensorSource") -> list[_Block]:
    """What this process reads, as ranges of at most `BLOCK` bytes (or one row)."""
    boxes = [of.box(bounds) for bounds in of.places]
    found = []
    for number, name in enumerate(of.names):
        spans = [box.rows for box in boxes if box.tensors[0] <= number < box.tensors[1]]
        step = max(1, BLOCK // max(1, source.nbytes(name) // source.shapes[name][0]))
        for first, last in _union(spans):
            found += [_Block(number, at, min(at + step, last)) for at in range(first, last, step)]
    return found


def bytes_read(of: Reading, source: "TensorSource") -> int:
    """How many bytes of the source this process reads for it."""
    row = [source.nbytes(name) // source.shapes[name][0] for name in of.names]
    return sum(row[b.tensor] * (b.last - b.first) for b in _blocks(of, source))


def place(of: Reading, source: "TensorSource", dtype: np.dtype, tick: Callable[[int], None]) -> jax.Array:
    """Reads the array and puts it where it is to lie. tick: told of the bytes that have come.

    The host holds this process's part of the array and some blocks; on CPUs that part is the array.
    """
    parts = {bounds: _aligned(tuple(b - a for a, b in bounds), dtype) for bounds in of.places}
    stored = [(of.box(bounds), _as_stored(of, part)) for bounds, part in parts.items()]

    def take(block: _Block) -> int:
        name = of.names[block.tensor]
        rows = source.read(name, (slice(block.first, block.last), *[slice(None)] * (len(source.shapes[name]) - 1)))
        for box, part in stored:
            first, last = max(block.first, box.rows[0]), min(block.last, box.rows[1])
            if first < last and box.tensors[0] <= block.tensor < box.tensors[1]:
                cut = rows[first - block.first : last - block.first, *(slice(*c) for c in box.columns)]
                _assign(part[block.tensor - box.tensors[0], first - box.rows[0] : last - box.rows[0]], cut)
        return source.nbytes(name) // source.shapes[name][0] * (block.last - block.first)

    _all(take, _blocks(of, source), in_flight(source.where), tick)
    if of.sharding is None:
        return jax.numpy.asarray(next(iter(parts.values())))
    arrays = [jax.device_put(parts[bounds], d) for bounds, devices in of.places.items() for d in devices or ()]
    value = jax.make_array_from_single_device_arrays(of.shape, of.sharding, jax.block_until_ready(arrays))
    if of.then is None:
        return value
    assert isinstance(of.sharding, NamedSharding)
    goal, transposed = of.then
    assert isinstance(goal.mesh, Mesh)
    with jax.set_mesh(goal.mesh):
        moved = jax.block_until_ready(_exchange(value, of.sharding.spec, goal, transposed))
    value.delete()
    return moved


def _all(take: Callable[[_Block], int], blocks: list[_Block], at_once: int, tick: Callable[[int], None]) -> None:
    if len(blocks) == 1:
        tick(take(blocks[0]))
        return
    pool = ThreadPoolExecutor(at_once, "weights")
    try:
        for done in pool.map(take, blocks):
            tick(done)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, what has not begun is not read


def _as_stored(of: Reading, part: np.ndarray) -> np.ndarray:
    """A view of a part of the array with the axes of what is stored: tensors, rows, columns."""
    part = part if of.stacked else part[None]
    return part.swapaxes(-1, -2) if of.transposed else part


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins where jax wants it: a CPU device takes it as it is, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _assign(to: np.ndarray, value: np.ndarray) -> None:
    if to.dtype == value.dtype and to.itemsize == 2:  # numpy moves a foreign type one by one, integers at once
        to, value = to.view(np.uint16), value.view(np.uint16)
    step = len(value) if to.flags.c_contiguous or to.ndim < 2 else STRIP
    for row in range(0, len(value), step):
        to[row : row + step] = value[row : row + step]


@partial(jax.jit, static_argnames=("spec", "goal", "transposed"))
def _exchange(x: jax.Array, spec: PartitionSpec, goal: NamedSharding, transposed: bool) -> jax.Array:
    """Whole rows, spread as `spec` says, into the goal: each device gives the others their columns."""
    entries = [*goal.spec, *[None] * (x.ndim - len(goal.spec))]
    columns = _axes(entries[-2 if transposed else -1])

    def local(x: jax.Array) -> jax.Array:
        x = jax.lax.all_to_all(x, columns, x.ndim - 1, x.ndim - 2, tiled=True)
        return x.swapaxes(-1, -2) if transposed else x

    return jax.shard_map(local, mesh=goal.mesh, in_specs=spec, out_specs=goal.spec)(x)


@contextmanager
def shown(total: int) -> Iterator[Callable[[int], None]]:
    """Tells how many of `total` bytes this process has read, and how fast, through what it gives; a line at the end."""
    if total < SHOWN:
        yield lambda _: None
        return
    began, done = time.monotonic(), 0
    with progress(total // 10**6, "weights, MB of this process") as bar:

        def tick(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            bar.set_postfix_str(f"{rate()} MB/s", refresh=False)
            bar.update(done // 10**6 - before // 10**6)

        def rate() -> str:
            return f"{done / 1e6 / max(1e-3, time.monotonic() - began):.0f}"

        yield tick
    if is_main_process():
        seconds = duration(time.monotonic() - began)
        print(f"weights: {done / 1e9:.2f} GB read in {seconds}, {rate()} MB/s", file=sys.stderr, flush=True)
