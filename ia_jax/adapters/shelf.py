"""Any number of stored adapters on one base, read on the host one by one, in bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ia_jax.adapters.store import Base, Directory, read_adapter, read_record
from ia_jax.models.lora import PROJECTIONS, LoraConfig, lora_shapes

HostAdapter = dict[str, dict[str, np.ndarray]]
CACHE_BYTES = 512 << 20


class Shelf:
    """Stored adapters by position; `read` gives one, with the rank and targets of all.

    Several directories in one position are adapters that are applied together, and are read as their exact sum.

    The records of all are read at once, so one that is missing, incomplete or for another base is an error at the
    start; the arrays are checked against their digests when they are first read. Adapters of a smaller rank or fewer
    targets are filled up with zeros, so that every stack has the same shapes. Threads may share one.

    lora:        rank and targets where no directory is given; the attribute of this name is that of every adapter here.
    dtype:       what they are rounded to.
    cache_bytes: those read last are kept up to this many bytes (at least one); the others are read again when needed.
    """

    def __init__(
        self,
        directories: Sequence[Directory | tuple[Directory, ...]],
        base: Base,
        lora: LoraConfig | None = None,
        dtype: Any = np.float32,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.directories = [d if isinstance(d, tuple) else (d,) for d in directories]
        self.dtype, self.cache_bytes = np.dtype(dtype), cache_bytes
        found = [[read_record(d, base).metadata for d in members] for members in self.directories]
        rank = max([sum(m.rank for m in members) for members in found] or [lora.rank if lora else 1])
        targets = {t for members in found for m in members for t in m.targets}
        targets = targets or set(lora.targets if lora else PROJECTIONS)
        self.lora = LoraConfig(rank, float(rank), tuple(t for t in PROJECTIONS if t in targets))
        self.shapes = lora_shapes(base.config, self.lora)
        self.hashes = ["+".join(m.content_hash for m in members) for members in found]
        self._cache: OrderedDict[int, HostAdapter] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.hashes)

    def abstract(self, count: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes and dtypes of `count` of them as a stack: [count, L, in, r] and [count, L, r, out]."""
        return {
            t: {n: jax.ShapeDtypeStruct((count, *s), self.dtype) for n, s in ab.items()}
            for t, ab in self.shapes.items()
        }

    def read(self, i: int) -> HostAdapter:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
            checked = i in self._checked
        adapter = self._filled_up(_sum([read_adapter(d, check=not checked) for d in self.directories[i]]))
        with self._lock:
            self._checked.add(i)
            self._cache[i] = adapter
            while self._cache and sum(map(_bytes, self._cache.values())) > self.cache_bytes:
                self._cache.popitem(last=False)
        return adapter

    def _filled_up(self, stored: HostAdapter) -> HostAdapter:
        def leaf(t: str, n: str, shape: tuple[int, ...]) -> np.ndarray:
            own = stored.get(t, {}).get(n)
            if own is not None and own.shape == shape:
                return own.astype(self.dtype, copy=False)
            out = np.zeros(shape, self.dtype)
            if own is not None:
                out[tuple(slice(size) for size in own.shape)] = own
            return out

        return {t: {n: leaf(t, n, s) for n, s in ab.items()} for t, ab in self.shapes.items()}


def _sum(members: Sequence[HostAdapter]) -> HostAdapter:
    """Adapters that are applied together as one, exactly: their factors side by side along the rank."""
    if len(members) == 1:
        return members[0]
    targets = {t for member in members for t in member}
    return {
        t: {
            n: np.concatenate([member[t][n] for member in members if t in member], axis=axis)
            for n, axis in (("a", -1), ("b", -2))
        }
        for t in targets
    }


def _bytes(adapter: HostAdapter) -> int:
    return sum(x.nbytes for ab in adapter.values() for x in ab.values())
