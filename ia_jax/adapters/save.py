"""Storing adapters: one, many in flight, or organisms of a stack from where they lie.

Of several processes each writes the organisms that are whole on its own devices, alone (`arrays`), several at a time.
Each adapter is hashed once on its way out, by the process and thread that write it: its leaves as they are in memory,
so that what is read back is compared with what was trained, and its files as they are on disk, so that damage is named
by file. Adapters are stored in the dtype that they were trained in, fp32; a bank rounds them when it loads them.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np

from ia_jax.adapters import directory as directories
from ia_jax.adapters import record as records
from ia_jax.adapters.arrays import write_arrays
from ia_jax.adapters.directory import Directory, as_path, renew_record
from ia_jax.adapters.record import KINDS, AdapterMetadata, Leaves, Record, one_line
from ia_jax.errors import CheckpointError, ConfigError
from ia_jax.models.lora import Adapter, layers_of, strip_rank
from ia_jax.parallel.distributed import from_every_process, is_main_process, is_multi_process

RENEWABLE = (
    *("name", "kind", "base_name", "base_fingerprint", "alpha"),
    *("organism", "behaviors", "step", "config_hash", "check"),
)


@dataclass(frozen=True)
class _Job:
    """An adapter to store, on these layers (None: all). leaves: None where another process stores it."""

    directory: Directory
    leaves: Leaves | None
    metadata: AdapterMetadata
    layers: tuple[int, ...] | None


def save_adapter(
    directory: Directory, adapter: Adapter, metadata: AdapterMetadata, overwrite: bool = False
) -> AdapterMetadata:
    """Store one adapter (leaves without organism axis); returns its metadata with the content hash.

    Zeros beyond `metadata.rank`, with which a stack of several ranks is filled, are stripped; other values are refused.
    Saving the same content again renews the metadata only (or mends damage); other content needs `overwrite`.
    """
    return save_adapters([(directory, adapter, metadata)], overwrite)[0]


def save_adapters(
    items: Iterable[tuple[Directory, Adapter, AdapterMetadata]], overwrite: bool = False, in_flight: int = 4
) -> list[AdapterMetadata]:
    """Store many: up to `in_flight` adapters are being written while the next is taken from `items`.

    When one fails, those already begun are waited for, and stored if they can be, before the first error is raised.
    Of several processes the first writes; all of them take part, for an adapter may be spread over them.
    """

    def jobs() -> Iterator[_Job]:
        for directory, adapter, metadata in items:
            leaves = records.host_leaves(adapter)
            yield _Job(directory, leaves if is_main_process() else None, metadata, layers_of(adapter))

    return _save_all(jobs(), overwrite, in_flight)


def save_organisms(
    stack: Adapter,
    items: Sequence[tuple[int, Directory, AdapterMetadata]],
    overwrite: bool = False,
    in_flight: int = 4,
) -> list[AdapterMetadata]:
    """Store organisms of a stack (leaves [K, ...]) from where they lie; items: (position, directory, metadata).

    As `save_adapters`, but of several processes each writes those that are whole on its own devices, up to `in_flight`
    at a time. One whose parts lie on several is gathered, and written by the first.
    """
    owners = _owners(stack)

    def jobs() -> Iterator[_Job]:
        for position, directory, metadata in items:
            owner = owners[position]
            if owner is None:
                whole = _gathered(stack, position)
                leaves = whole if is_main_process() else None
            else:
                leaves = _held_here(stack, position) if owner == jax.process_index() else None
            yield _Job(directory, leaves, metadata, layers_of(stack))

    return _save_all(jobs(), overwrite, in_flight)


def _save_all(jobs: Iterable[_Job], overwrite: bool, in_flight: int) -> list[AdapterMetadata]:
    """Stores what this process has leaves of; returns the metadata of all, or raises the first error of any process."""
    asked: list[AdapterMetadata] = []
    saved: dict[int, AdapterMetadata] = {}
    errors: list[tuple[int, BaseException]] = []
    pending: deque[tuple[int, Future[AdapterMetadata]]] = deque()

    def wait() -> None:
        number, future = pending.popleft()
        try:
            saved[number] = future.result()
        except Exception as error:  # where the disk is full, each of them may fail
            errors.append((number, error))

    with ThreadPoolExecutor(in_flight, "store adapter") as pool:
        try:
            for job in jobs:
                asked.append(job.metadata)
                # After an error nothing more is begun; but what other processes gather, they gather together.
                if job.leaves is not None and not errors:
                    try:
                        pending.append((len(asked) - 1, pool.submit(_save, job, _checked(job), overwrite)))
                    except Exception as error:
                        errors.append((len(asked) - 1, error))
                if len(pending) >= in_flight:
                    wait()
                if errors and not is_multi_process():
                    break
        except BaseException as error:
            errors.append((len(asked), error))
        while pending:
            wait()
    if errors and not (is_multi_process() and isinstance(errors[0][1], Exception)):
        raise errors[0][1]
    return _agree(asked, saved, errors)


def _agree(
    asked: Sequence[AdapterMetadata], saved: dict[int, AdapterMetadata], errors: Sequence[tuple[int, BaseException]]
) -> list[AdapterMetadata]:
    """What all processes together stored; waits for all. Raises this process's error, or says what another's was."""
    told = from_every_process(
        {
            "saved": {str(n): [m.content_hash, m.created] for n, m in saved.items()},
            "error": str(errors[0][1]) if errors else None,
        }
    )
    if errors:
        raise errors[0][1]
    elsewhere = next((t["error"] for t in told if t["error"] is not None), None)
    if elsewhere is not None:
        raise CheckpointError(elsewhere)
    stamps = {int(n): stamp for t in told for n, stamp in t["saved"].items()}
    return [_stamped(metadata, *stamps[n]) for n, metadata in enumerate(asked)]


def _stamped(metadata: AdapterMetadata, content_hash: str, created: str) -> AdapterMetadata:
    """As it will be read back."""
    stamped = replace(metadata, content_hash=content_hash, format=records.FORMAT, created=created)
    return AdapterMetadata.from_json(stamped.to_json())


def _checked(job: _Job) -> Leaves:
    """The leaves as they are stored. Raises where they are not finite or not what the metadata say."""
    path, metadata, leaves = as_path(job.directory), job.metadata, job.leaves
    assert leaves is not None
    try:
        leaves = records.host_leaves(strip_rank(records.nest(leaves), metadata.rank))
        bad = records.mismatch(metadata, leaves) or records.first_nonfinite(leaves)
        count = max(x.shape[0] for x in leaves.values())
        if not bad and len({layers or tuple(range(count)) for layers in (job.layers, metadata.layers)}) > 1:
            bad = f"it sits on layers {job.layers or 'all'}, its metadata say {metadata.layers or 'all'}"
    except ConfigError as error:
        bad = str(error)
    if bad:
        raise CheckpointError(f"{path}: refusing to save adapter {metadata.name!r}: {bad}")
    if metadata.kind not in KINDS:
        raise ConfigError(f"{path}: an adapter's kind is one of {', '.join(KINDS)}, not {metadata.kind!r}")
    return leaves


def _save(job: _Job, leaves: Leaves, overwrite: bool) -> AdapterMetadata:
    """Hashes, writes and commits one adapter, without the other processes; in a thread of its own."""
    path, metadata = as_path(job.directory), job.metadata
    described = records.describe_leaves(leaves)
    created = metadata.created or datetime.now(UTC).isoformat(timespec="seconds")
    metadata = _stamped(metadata, records.content_hash_of(described, metadata.layers), created)
    try:
        if directories.make_ready(path, metadata.content_hash, overwrite):
            return renew_record(path, {k: getattr(metadata, k) for k in RENEWABLE})
        stage = directories.place_to_write(path)
        write_arrays(stage, leaves)
        records.write_record(stage, Record(metadata, described, records.describe_files(stage)))
        directories.swap(path)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: saving failed ({one_line(error)}); what was stored there before is untouched"
        ) from error
    return metadata


def _owners(stack: Adapter) -> list[int | None]:
    """For each organism of a stack the first process on whose devices it is whole, or None."""
    leaves = jax.tree.leaves(stack)
    count = leaves[0].shape[0]
    whole = [set(range(jax.process_count())) for _ in range(count)]
    for x in leaves:
        if not isinstance(x, jax.Array):
            continue
        everywhere: list[set] = [set() for _ in range(count)]
        by_process: list[dict[int, set]] = [{} for _ in range(count)]
        for device, index in x.sharding.devices_indices_map(x.shape).items():
            part = tuple((s.start, s.stop) for s in index[1:])
            for position in range(count)[index[0]]:
                everywhere[position].add(part)
                by_process[position].setdefault(device.process_index, set()).add(part)
        for position in range(count):
            whole[position] &= {p for p, parts in by_process[position].items() if parts == everywhere[position]}
    return [min(processes) if processes else None for processes in whole]


def _held_here(stack: Adapter, position: int) -> Leaves:
    """One organism of a stack, from the shards on this process's devices."""

    def leaf(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array):
            return np.asarray(x[position])
        out, seen = np.empty(x.shape[1:], x.dtype), set()
        for shard in x.addressable_shards:
            rows, part = range(x.shape[0])[shard.index[0]], shard.index[1:]
            key = tuple((s.start, s.stop) for s in part)
            if position in rows and key not in seen:
                seen.add(key)
                out[part] = np.asarray(shard.data)[position - rows.start]
        return out

    return {f"{t}.{n}": leaf(x) for t, ab in stack.items() for n, x in ab.items()}


def _gathered(stack: Adapter, position: int) -> Leaves:
    """One organism of a stack, from all processes' devices."""
    everywhere = jax.sharding.PartitionSpec()
    return records.host_leaves(jax.tree.map(lambda x: x.at[position].get(out_sharding=everywhere), stack))
