"""Any number of stored adapters on one base, read on the host one by one, in bounded memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ia_jax.adapters.store import Base, Directory, read_adapter, read_records
from ia_jax.models.combine import common_layers, concatenate_ranks, spread_layers
from ia_jax.models.lora import PROJECTIONS, SITES, Adapter, LoraConfig, layers_on, lora_shapes, on_layers

HostAdapter = Adapter  # of numpy arrays
CACHE_BYTES = 512 << 20


class Shelf:
    """Stored adapters by position; `read` gives one, with the rank, targets and layers of all.

    Several directories in one position are adapters that are applied together, and are read as their exact sum.

    The records of all are read at once, so one that is missing, incomplete or for another base is an error at the
    start; the arrays are checked against their digests when they are first read. Adapters of a smaller rank, on fewer
    targets or layers are filled up with zeros, so that every stack has the same shapes. Threads may share one.

    lora:        the kind of adapter where no directory is given; the attribute of this name is that of all here.
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
        records = iter(read_records([d for members in self.directories for d in members], base))
        found = [[next(records).metadata for _ in members] for members in self.directories]
        rank = max([sum(m.rank for m in members) for members in found] or [lora.rank if lora else 1])
        targets = {t for members in found for m in members for t in m.targets}
        targets = targets or set(lora.targets if lora else PROJECTIONS)
        layers = [layers_on(base.config, m.lora) for members in found for m in members]
        layers = common_layers(layers) if layers else lora.layers if lora else None
        self.lora = LoraConfig(rank, float(rank), tuple(t for t in SITES if t in targets), layers=layers)
        self.shapes = lora_shapes(base.config, self.lora)
        self._layers, self._count = layers_on(base.config, self.lora), base.config.num_hidden_layers
        self.hashes = ["+".join(m.content_hash for m in members) for members in found]
        self._cache: OrderedDict[int, HostAdapter] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.hashes)

    def abstract(self, count: int) -> Adapter:
        """Shapes and dtypes of `count` of them as a stack, leaves [count, L, ...]."""
        tree = {
            t: {n: jax.ShapeDtypeStruct((count, *s), self.dtype) for n, s in ab.items()}
            for t, ab in self.shapes.items()
        }
        return on_layers(tree, self._layers)

    def read(self, i: int) -> HostAdapter:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
            checked = i in self._checked
        adapter = self._filled_up(concatenate_ranks(*[read_adapter(d, check=not checked) for d in self.directories[i]]))
        with self._lock:
            self._checked.add(i)
            self._cache[i] = adapter
            while self._cache and sum(map(_bytes, self._cache.values())) > self.cache_bytes:
                self._cache.popitem(last=False)
        return adapter

    def _filled_up(self, stored: HostAdapter) -> HostAdapter:
        stored = spread_layers(stored, self._layers, self._count)

        def leaf(t: str, n: str, shape: tuple[int, ...]) -> np.ndarray:
            own = stored.get(t, {}).get(n)
            if own is not None and own.shape == shape:
                return own.astype(self.dtype, copy=False)
            out = np.zeros(shape, self.dtype)
            if own is not None:
                out[tuple(slice(size) for size in own.shape)] = own
            return out

        return on_layers({t: {n: leaf(t, n, s) for n, s in ab.items()} for t, ab in self.shapes.items()}, self._layers)


def _bytes(adapter: HostAdapter) -> int:
    return sum(x.nbytes for ab in adapter.values() for x in ab.values())
