"""Any number of stored adapters on one base, K at a time, in bounded host memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ia_jax.adapters.store import Base, Directory, read_adapter, read_record
from ia_jax.models.lora import PROJECTIONS, Adapter, LoraConfig, lora_shapes

HostAdapter = dict[str, dict[str, np.ndarray]]
CACHE_BYTES = 512 << 20


class AdapterStream:
    """Stored adapters by position; `take` gathers some into a stack.

    Adapters may differ in rank and targets: a stack has the largest rank and all targets of the whole stream, filled
    with zeros, so that every step has the same shapes. The records of all are read at once, so one that is missing,
    incomplete or for another base is an error at the start; the arrays are checked when they are first read.

    directories: of the adapters, in order.
    place:       what puts a stack of host arrays on the devices.
    held:        which organisms of a stack of so many this process places; the others are not read.
    zeros:       how many adapters that change nothing follow them.
    lora:        where no directory is given; the attribute of this name has the rank and targets of every stack.
    cache_bytes: the host keeps the adapters read last up to this many bytes; the rest are read again when needed.
    """

    def __init__(
        self,
        directories: Sequence[Directory],
        base: Base,
        place: Callable[[Any], Any],
        *,
        held: Callable[[int], Iterable[int]] = range,
        zeros: int = 0,
        lora: LoraConfig | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.directories, self.place, self.held, self.cache_bytes = list(directories), place, held, cache_bytes
        found = [read_record(d, base).metadata for d in self.directories]
        rank = max([m.rank for m in found] or [lora.rank if lora else 1])
        targets = {t for m in found for t in m.targets} or set(lora.targets if lora else PROJECTIONS)
        self.lora = LoraConfig(rank, float(rank), tuple(t for t in PROJECTIONS if t in targets))
        self.shapes = lora_shapes(base.config, self.lora)
        self.hashes = [m.content_hash for m in found] + ["zero"] * zeros
        self._cache: OrderedDict[int, HostAdapter] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()  # a dataset's thread reads ahead

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, index: Sequence[int]) -> Adapter:
        """The stack of the adapters at these positions: leaves [K, L, in, r] and [K, L, r, out]."""
        stack = {t: {n: np.zeros((len(index), *s), np.float32) for n, s in ab.items()} for t, ab in self.shapes.items()}
        for k in self.held(len(index)):
            if index[k] >= len(self.directories):
                continue
            for t, ab in self._read(int(index[k])).items():
                stack[t]["a"][k, :, :, : ab["a"].shape[-1]] = ab["a"]
                stack[t]["b"][k, :, : ab["b"].shape[-2]] = ab["b"]
        return self.place(stack)

    def _read(self, i: int) -> HostAdapter:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
            adapter = read_adapter(self.directories[i], check=i not in self._checked)
            self._checked.add(i)
            self._cache[i] = adapter
            while len(self._cache) > 1 and sum(map(_bytes, self._cache.values())) > self.cache_bytes:
                self._cache.popitem(last=False)
            return adapter


def _bytes(adapter: HostAdapter) -> int:
    return sum(x.nbytes for ab in adapter.values() for x in ab.values())
