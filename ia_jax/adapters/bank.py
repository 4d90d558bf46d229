"""The bank: all frozen organisms of a run as one tree, spread over the mesh, of which a step picks what it needs.

Organism i lives in device group i mod F (F: how many groups of devices have organisms of their own), in row i // F of
that group's part. So a batch whose positions have organisms of their own group moves no adapter: `take` names rows
(slots), and `models.lora.to_scan` picks them where they lie.

Where the bank does not fit into the memory of the devices, the same interface streams from the host: `take` reads the
organisms that it is asked for and puts them on the mesh, those read last staying on the host.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ia_jax.adapters.shelf import CACHE_BYTES, HostAdapter, Shelf
from ia_jax.adapters.store import Base, Directory
from ia_jax.models.lora import Adapter, LoraConfig, Picked, adapter_shardings, map_leaves
from ia_jax.parallel.distributed import on_main_process
from ia_jax.parallel.mesh import TRAINING, put_on_mesh
from ia_jax.progress import progress

SHARE_OF_FREE = 0.5  # of a device's free memory; the rest is for activations and what is trained
CPU_BYTES = 4 << 30  # of host memory, where the devices are processors and say nothing of their memory
READERS = 4  # threads; reading and checking digests release Python's lock


class Bank:
    """All frozen organisms of a run by position, and after them clean ones, which are adapters that change nothing.

    lora:     the largest rank of all, the targets and the layers of all; smaller ones are filled up with zeros.
    hashes:   the content hash of each organism, "zero" of a clean one.
    groups:   F, the groups of devices that have organisms of their own.
    resident: the tree on the devices, leaves [F * M, L, ...]; None where they are streamed.
    """

    def __init__(self, shelf: Shelf, mesh: Mesh, zeros: int, resident: Adapter | None):
        self._shelf, self._mesh, self.resident = shelf, mesh, resident
        self.lora, self.groups = shelf.lora, TRAINING.size("organism", mesh)
        self.hashes = [*shelf.hashes, *["zero"] * zeros]

    def __len__(self) -> int:
        return len(self.hashes)

    def home(self, organism: int | None) -> int | None:
        """The group where an organism lives; None for a clean one, which any group has."""
        return None if organism is None or organism >= len(self._shelf) else organism % self.groups

    def take(self, organisms: Sequence[int | None]) -> Picked:
        """The organisms of a batch as a member of a stack; None stands for an adapter that changes nothing.

        organisms: [K], K a multiple of F; positions g * K/F to (g+1) * K/F - 1 are group g's. Raises ValueError where
        an organism is asked for in a group where it does not live (`arrange` and `plan_joint` don't), IndexError for
        one that the bank does not have.
        """
        width, rest = divmod(len(organisms), self.groups)
        if rest or not organisms:
            raise ValueError(
                f"{len(organisms)} organisms are no multiple of the mesh's {self.groups} groups; see arrange"
            )
        asked = []
        for position, organism in enumerate(organisms):
            if organism is not None and not 0 <= organism < len(self):
                raise IndexError(f"the bank has no organism {organism}, but 0 … {len(self) - 1}")
            home = self.home(organism)
            if home is not None and home != position // width:
                raise ValueError(
                    f"organism {organism} lives in group {home}, but position {position} of {len(organisms)} is group "
                    f"{position // width}'s"
                )
            asked.append(None if home is None else organism)
        if self.resident is not None:
            slots = [-1 if i is None else i // self.groups for i in asked]
            return Picked(self.resident, self._slots(slots))
        slots = [-1 if i is None else position % width for position, i in enumerate(asked)]
        held = self._held(len(asked))
        mine = sorted({i for position, i in enumerate(asked) if i is not None and position in held})
        adapters = dict(zip(mine, _read_ahead(self._shelf.read, mine, READERS), strict=True))
        return Picked(self._stack(asked, adapters), self._slots(slots))

    def arrange(self, organisms: Sequence[int | None], width: int) -> list[list[int | None]]:
        """Batches of about `width` positions that hold every given organism once, each in its own group.

        All batches have the same size, the smallest multiple of F of at least `width` (or less, where fewer do), so
        that one program serves all; positions that are left over are None. The order of a group's organisms is kept;
        clean ones go where there is room.
        """
        own: list[list[int | None]] = [[] for _ in range(self.groups)]
        for organism in sorted(organisms, key=lambda i: self.home(i) is None):
            home = self.home(organism)
            own[min(range(self.groups), key=lambda g: len(own[g])) if home is None else home].append(organism)
        most = max(map(len, own))
        if not most:
            return []
        batches = math.ceil(most / max(1, math.ceil(width / self.groups)))
        each = math.ceil(most / batches)
        return [
            [
                own[g][n] if n < len(own[g]) else None
                for g in range(self.groups)
                for n in range(b * each, (b + 1) * each)
            ]
            for b in range(batches)
        ]

    def _slots(self, slots: Sequence[int]) -> jax.Array:
        return put_on_mesh(np.asarray(slots, np.int32), TRAINING.sharding(self._mesh, "organism"))

    def _held(self, count: int) -> set[int]:
        """Which of `count` positions lie on devices of this process."""
        where = TRAINING.sharding(self._mesh, "organism").addressable_devices_indices_map((count,)).values()
        return {i for index in where if index for i in range(count)[index[0]]}

    def _stack(self, organisms: Sequence[int | None], adapters: dict[int, HostAdapter]) -> Adapter:
        """Leaves [K, ...] on the mesh, of which this process gives those that lie on its devices."""
        abstract = self._shelf.abstract(len(organisms))
        shardings = adapter_shardings(abstract, self._mesh, organisms=True)

        def leaf(t: str, n: str) -> jax.Array:
            shape, dtype = abstract[t][n].shape, abstract[t][n].dtype

            def part(index: Any) -> np.ndarray:
                rows = [None if i is None else adapters[i][t][n][index[1:]] for i in organisms[index[0]]]
                nothing = np.zeros([len(range(s)[at]) for s, at in zip(shape[1:], index[1:], strict=True)], dtype)
                return np.stack([nothing if row is None else row for row in rows])

            return jax.make_array_from_callback(shape, shardings[t][n], part)

        return map_leaves(lambda t, n, _: leaf(t, n), abstract)

    def _load(self) -> Adapter:
        """The resident tree, a row of every group at a time; each process reads its own organisms, each file once."""
        groups, count = self.groups, len(self._shelf)
        rows = max(1, math.ceil(count / groups))
        abstract = self._shelf.abstract(groups * rows)
        shardings = adapter_shardings(abstract, self._mesh, organisms=True)
        tree = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract), out_shardings=shardings)()
        specs = jax.tree.map(lambda s: s.spec, shardings)

        @partial(jax.jit, donate_argnums=0, out_shardings=shardings)
        def with_row(tree: Adapter, stack: Adapter, row: jax.Array) -> Adapter:
            def own(tree: Adapter, stack: Adapter, row: jax.Array) -> Adapter:
                return jax.tree.map(lambda x, new: x.at[row].set(new[0]), tree, stack)

            spread = jax.shard_map(
                own, mesh=self._mesh, in_specs=(specs, specs, jax.sharding.PartitionSpec()), out_specs=specs
            )
            return spread(tree, stack, row)

        held = self._held(groups)
        chunks = [[i if i < count else None for i in range(row * groups, (row + 1) * groups)] for row in range(rows)]
        mine = [i for chunk in chunks for g, i in enumerate(chunk) if g in held and i is not None]
        with progress(len(mine), "organisms onto the devices") as bar:
            read = _read_ahead(self._shelf.read, mine, max(READERS, 2 * len(held)))
            for row, chunk in enumerate(chunks):
                adapters = {i: next(read) for g, i in enumerate(chunk) if g in held and i is not None}
                tree = with_row(tree, self._stack(chunk, adapters), np.int32(row))
                bar.update(len(adapters))
        return tree


def open_bank(
    directories: Sequence[Directory | tuple[Directory, ...]],
    base: Base,
    mesh: Mesh,
    *,
    dtype: Any,
    zeros: int = 0,
    lora: LoraConfig | None = None,
    budget_bytes: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Bank:
    """The stored adapters in these directories, in order, as a bank on `mesh`; all processes call it alike.

    Several directories in one position are one organism, whose adapters are applied together.

    The records of all are read at once, so one that is missing, incomplete or for another base is an error here, and so
    is a damaged one unless they are streamed (then when it is first read). Reads each file once, a few at a time.

    dtype:        of the bank: the dtype that the model computes in, for nothing in it is trained.
    zeros:        how many clean organisms follow.
    lora:         the kind of adapter where no directory is given.
    budget_bytes: of one device, for the bank; None for half of what is free there (on processors `CPU_BYTES` of the
                  host's memory for all of a process's devices). A bank that is larger is streamed, and says so.
    cache_bytes:  of host memory, for adapters that are streamed.
    """
    shelf = Shelf(directories, base, lora, dtype, cache_bytes)
    bank = Bank(shelf, mesh, zeros, None)
    rows = math.ceil(len(shelf) / bank.groups)
    needed = _bytes_on_a_device(shelf.abstract(bank.groups * rows), mesh)
    budget = on_main_process(lambda: _free_bytes(mesh) if budget_bytes is None else budget_bytes)
    if needed > budget:
        print(
            f"organisms: {len(shelf)} adapters take {needed / 2**30:.2f} GiB of each device and {budget / 2**30:.2f} "
            "GiB may be used: they are streamed from the host",
            flush=True,
        )
        return bank
    shelf.cache_bytes = 0  # each is read once
    bank.resident = bank._load()
    return bank


def _read_ahead(read: Callable[[int], HostAdapter], organisms: Sequence[int], ahead: int) -> Iterator[HostAdapter]:
    """`read` of each, in order, by threads that are at most `ahead` adapters in front."""
    waiting: deque[Future[HostAdapter]] = deque()
    with ThreadPoolExecutor(READERS, "read adapter") as pool:
        try:
            for i in organisms:
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(read, i))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _bytes_on_a_device(abstract: Any, mesh: Mesh) -> int:
    shardings = adapter_shardings(abstract, mesh, organisms=True)
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def _free_bytes(mesh: Mesh) -> int:
    """What a bank may take of the fullest of this process's devices."""
    mine = list(mesh.local_devices)
    stats = [d.memory_stats() or {} for d in mine]
    if all("bytes_limit" in s for s in stats):
        return int(SHARE_OF_FREE * min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats))
    return CPU_BYTES // len(mine)
