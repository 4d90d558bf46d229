"""The adapter store: one directory per adapter, either complete and checked or not there at all.

    <name>/            what Orbax writes and commits (the arrays, uncompressed) and, written last,
      adapter.json     metadata, a digest of every leaf, size and digest of every file, and a seal over all of it

A save goes to `<name>.saving` and is renamed once it is complete, so a kill at any instant leaves the old adapter or
the new one, and leftovers that the next save clears away. Opening re-reads every digest: one flipped byte is an error
that names the file or the leaf. Directories are local or `gs://`; in the latter (which need `gcsfs`) files are checked
by size and leaves by digest, and the rename is not atomic.
"""

import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from ia_jax.adapters import record as records
from ia_jax.adapters.record import KINDS, RECORD, AdapterMetadata, Record, one_line
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Adapter, LoraConfig, lora_shapes, strip_rank
from ia_jax.parallel.distributed import is_multi_process, on_main_process

Directory = str | os.PathLike[str]

_SAVING, _REPLACED, _ORBAX_TEMPORARY = ".saving", ".replaced", ".orbax-checkpoint-tmp"
_COMMIT_MARKER = "_CHECKPOINT_METADATA"
_OWN_FILES = {RECORD, RECORD + _SAVING, _COMMIT_MARKER, "commit_success.txt", "orbax.checkpoint", "state"}
_RENEWABLE = (
    *("name", "kind", "base_name", "base_fingerprint", "alpha"),
    *("organism", "behaviors", "step", "config_hash", "check"),
)


class Base(Protocol):
    """What the store asks of a base model; `ia_jax.Model` has it."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def save_adapter(
    directory: Directory, adapter: Adapter, metadata: AdapterMetadata, overwrite: bool = False
) -> AdapterMetadata:
    """Store one adapter (leaves without organism axis); returns its metadata with the content hash.

    Zeros beyond `metadata.rank`, with which a stack of several ranks is filled, are stripped; other values are refused.
    Saving the same content again renews the metadata only (or mends damage); other content needs `overwrite`.
    """
    return _begin_save(directory, adapter, metadata, overwrite)()


def save_adapters(
    items: Iterable[tuple[Directory, Adapter, AdapterMetadata]], overwrite: bool = False, in_flight: int = 4
) -> list[AdapterMetadata]:
    """Store many: up to `in_flight` adapters are being written while the next is taken from `items`.

    When one fails, those already begun are waited for, and stored if they can be, before the first error is raised.
    Several processes write one by one.
    """
    in_flight = 1 if is_multi_process() else in_flight  # Orbax's barriers are named by the operation begun last
    pending: deque[Callable[[], AdapterMetadata]] = deque()
    saved = []
    errors: list[BaseException] = []
    try:
        for directory, adapter, metadata in items:
            pending.append(_begin_save(directory, adapter, metadata, overwrite))
            if len(pending) >= in_flight:
                saved.append(pending.popleft()())
    except BaseException as error:
        errors.append(error)
    while pending:
        try:
            saved.append(pending.popleft()())
        except Exception as error:  # where the disk is full, each of them may fail
            errors.append(error)
    if errors:
        raise errors[0]
    return saved


def load_adapter(
    directory: Directory, base: Base | None = None, sharding: Any = None, allow_other_base: bool = False
) -> tuple[Adapter, AdapterMetadata]:
    """Read an adapter back, bit for bit or not at all.

    base:      the model it will sit on; another fingerprint is a `BaseMismatchError` unless `allow_other_base`, shapes
               that do not fit are one in any case.
    sharding:  one sharding for all leaves, or a tree of them like the adapter; None for the default device.
    """
    path, record = _resolve(_path(directory)), read_record(directory, base, allow_other_base)
    problems, leaves = _read_checked(path, record)
    if problems:
        more = f" (and {len(problems) - 2} more)" if len(problems) > 2 else ""
        raise CheckpointError(
            f"{path}: the adapter is corrupt: {'; '.join(problems[:2])}{more}; restore the directory from a copy, or "
            "delete it and run its stage again"
        )
    return jax.device_put(records.nest(leaves), sharding), record.metadata


def read_adapter(directory: Directory, record: Record | None = None) -> dict[str, dict[str, np.ndarray]]:
    """The arrays on the host, for those who read many adapters over and over.

    With `record` (of `read_record`) every leaf is checked against its digest; without, nothing is: read it so once.
    """
    path = _resolve(_path(directory))
    leaves = _read_leaves(path)
    problems = records.leaf_problems(record, leaves) if record is not None else []
    if problems:
        raise CheckpointError(f"{path}: the adapter is corrupt: {problems[0]}; restore the directory from a copy")
    return records.nest(leaves)


def read_record(directory: Directory, base: Base | None = None, allow_other_base: bool = False) -> Record:
    """What is written down about a stored adapter; checked to be for `base`, if given. The arrays are not read."""
    path = _resolve(_path(directory))
    record = _read_record(path)
    if base is not None:
        _check_base(path, record, base, allow_other_base)
    return record


def read_metadata(directory: Directory) -> AdapterMetadata:
    """The metadata alone; the arrays are not read."""
    return read_record(directory).metadata


def update_metadata(directory: Directory, **changes: Any) -> AdapterMetadata:
    """Replace fields of a stored adapter's metadata (`check=…`, `step=…`); the arrays stay as they are."""
    fixed = sorted(changes.keys() - set(_RENEWABLE))
    if fixed:
        raise ConfigError(f"{directory}: {', '.join(fixed)} of a stored adapter cannot be changed; save it anew")
    path = _resolve(_path(directory))

    def renew() -> AdapterMetadata:
        record = _read_record(path)
        metadata = AdapterMetadata.from_json(replace(record.metadata, **changes).to_json())
        if metadata != record.metadata:
            records.write_record(path, replace(record, metadata=metadata))
        return metadata

    return AdapterMetadata.from_json(on_main_process(lambda: renew().to_json()))


def is_complete(directory: Directory) -> bool:
    """Whether a whole adapter is there: committed by Orbax and sealed by `adapter.json`."""
    return _complete(_resolve(_path(directory)))


def remove_adapter(directory: Directory) -> None:
    """Delete a stored adapter and all that killed saves left of it; a kill midway leaves it whole, or not stored."""
    path = _path(directory)
    for leftover in _leftovers(path):  # first: a complete `.saving` would be served in its place
        _remove(leftover)
    _remove(path)


def list_adapters(root: Directory) -> dict[str, AdapterMetadata]:
    """Complete adapters right under `root`, by directory name. A damaged record is logged and left out."""
    path, found = _path(root), {}
    for name in sorted({_final_name(p.name) for p in path.iterdir()}) if path.exists() else []:
        if is_complete(path / name):
            try:
                found[name] = read_metadata(path / name)
            except CheckpointError as error:
                logging.getLogger(__name__).warning("%s", error)
    return found


def verify_adapter(directory: Directory) -> list[str]:
    """Everything that is wrong with a stored adapter, one line each; empty when it is as it was saved."""
    path = _resolve(_path(directory))
    try:
        return _read_checked(path, _read_record(path))[0]
    except CheckpointError as error:
        return [str(error)]


def _begin_save(
    directory: Directory, adapter: Adapter, metadata: AdapterMetadata, overwrite: bool
) -> Callable[[], AdapterMetadata]:
    """Check everything and start writing; the function returned waits for the end and commits."""
    path = _path(directory)
    leaves = records.host_leaves(adapter)
    try:
        leaves = records.host_leaves(strip_rank(records.nest(leaves), metadata.rank))
        bad = records.mismatch(metadata, leaves) or records.first_nonfinite(leaves)
    except ConfigError as error:
        bad = str(error)
    if bad:
        raise CheckpointError(f"{path}: refusing to save adapter {metadata.name!r}: {bad}")
    if metadata.kind not in KINDS:
        raise ConfigError(f"{path}: an adapter's kind is one of {', '.join(KINDS)}, not {metadata.kind!r}")
    described = records.describe_leaves(leaves)
    created = metadata.created or datetime.now(UTC).isoformat(timespec="seconds")
    metadata = replace(
        metadata, content_hash=records.content_hash_of(described), format=records.FORMAT, created=created
    )
    metadata = AdapterMetadata.from_json(metadata.to_json())  # as it will be read back

    if on_main_process(lambda: _is_there(path, metadata.content_hash, overwrite)):
        return lambda: update_metadata(path, **{k: getattr(metadata, k) for k in _RENEWABLE})

    from orbax.checkpoint import v1 as ocp

    stage = path.parent / (path.name + _SAVING)
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained floats hardly compress, and it takes half the time
    try:
        with context, _quiet():
            response = ocp.save_async(stage, records.nest(leaves))
    except Exception as error:
        raise _write_error(path, error) from error

    def seal() -> None:
        records.write_record(stage, Record(metadata, described, records.describe_files(stage)))
        _swap(stage, path)

    def commit() -> AdapterMetadata:
        try:
            with _quiet():
                response.result()
            on_main_process(seal)
        except Exception as error:
            raise _write_error(path, error) from error
        return metadata

    return commit


def _is_there(path: epath.Path, content_hash: str, overwrite: bool) -> bool:
    """Makes `path` ready for an adapter; whether this very one is stored there undamaged. Raises if another is."""
    if path.exists() and not {p.name for p in path.iterdir()} <= _OWN_FILES:
        raise CheckpointError(f"{path}: holds files that are not an adapter's; choose another directory")
    try:
        _settle(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error
    if not _complete(path):
        return False
    stored = _stored_content(path)
    if stored != content_hash and not overwrite:
        raise CheckpointError(
            f"{path}: already holds an adapter with other content ({stored[:12]}, the new one has "
            f"{content_hash[:12]}); pass overwrite=True or save elsewhere"
        )
    return stored == content_hash and not records.file_problems(path, _read_record(path).files)


def _stored_content(path: epath.Path) -> str:
    try:
        return _read_record(path).metadata.content_hash
    except CheckpointError:
        return "a damaged record"


def _settle(path: epath.Path) -> None:
    """Finish or clear away what a killed save left behind; afterwards `path` is complete or absent."""
    stage = path.parent / (path.name + _SAVING)
    if not _complete(path):
        _remove(path)
        if _complete(stage):
            stage.rename(path)
    for leftover in _leftovers(path):
        _remove(leftover)


def _leftovers(path: epath.Path) -> list[epath.Path]:
    """What a killed save may leave beside `path`."""
    return [path.parent / (path.name + suffix) for suffix in (_SAVING, _REPLACED, _SAVING + _ORBAX_TEMPORARY)]


def _swap(stage: epath.Path, path: epath.Path) -> None:
    """Put the complete `stage` in the place of `path`; at every instant one of the two is complete."""
    replaced = path.parent / (path.name + _REPLACED)
    if path.exists():
        path.rename(replaced)
    stage.rename(path)
    _remove(replaced)


def _remove(path: epath.Path) -> None:
    if records.is_local(path) and os.path.islink(path):
        os.unlink(path)  # what it leads to is somebody else's
    elif path.exists():
        (path / RECORD).unlink(missing_ok=True)  # first: without it, what a kill leaves of the tree is no adapter
        path.rmtree()


def _write_error(path: epath.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: saving failed ({one_line(error)}); what was stored there before is untouched")


def _read_record(path: epath.Path) -> Record:
    if not path.exists():
        raise CheckpointError(f"{path}: no adapter is stored there; check the path, or run its stage")
    for marker in (RECORD, _COMMIT_MARKER):
        if not (path / marker).exists():
            raise CheckpointError(
                f"{path}: not a complete adapter: {marker} is missing (deleted, or the save was cut short); run its "
                "stage again, which replaces it"
            )
    return records.read_record(path)


def _read_checked(path: epath.Path, record: Record) -> tuple[list[str], records.Leaves]:
    """Problems and leaves; files found damaged are not read (Orbax would fill pages about them)."""
    problems = records.file_problems(path, record.files)
    leaves = {} if problems else _read_leaves(path)
    return problems or records.leaf_problems(record, leaves), leaves


def _read_leaves(path: epath.Path) -> records.Leaves:
    try:
        with _quiet():
            return records.host_leaves(_load_here(path))
    except Exception as error:
        raise CheckpointError(
            f"{path}: the arrays cannot be read ({one_line(error)}); restore the directory from a copy"
        ) from error


def _load_here(path: epath.Path) -> Any:
    """Reads without the other processes, of which each may read other adapters, from a thread.

    v1's `load` counts a process's operations, and names the barriers of its saves by that count: processes that read
    unlike would wait for each other at different barriers.
    """
    import orbax.checkpoint as v0

    me = jax.process_index()
    alone = v0.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    return v0.PyTreeCheckpointHandler(multiprocessing_options=alone).restore(path / "state")


def _check_base(path: epath.Path, record: Record, base: Base, allow_other_base: bool) -> None:
    meta = record.metadata
    made_for = f"{meta.base_name} (fingerprint {meta.base_fingerprint[:12]})"
    loaded = f"{base.name} (fingerprint {base.fingerprint[:12]})"
    if meta.base_fingerprint != base.fingerprint and not allow_other_base:
        raise BaseMismatchError(
            f"{path}: adapter {meta.name!r} was made for {made_for}, but the base loaded is {loaded}; load the former, "
            "or pass allow_other_base=True"
        )
    expected = lora_shapes(base.config, LoraConfig(meta.rank, meta.alpha, meta.targets))
    for target, ab in expected.items():
        for factor, shape in ab.items():
            stored = tuple(record.leaves[f"{target}.{factor}"]["shape"])
            if stored != shape:
                raise BaseMismatchError(
                    f"{path}: leaf {target}.{factor} has shape {stored}, but {loaded} needs {shape}; adapter "
                    f"{meta.name!r} was made for {made_for}"
                )


def _path(directory: Directory) -> epath.Path:
    text = str(directory)
    if "://" in text and not text.startswith("gs://"):
        raise ConfigError(f"{text}: adapters are stored in local directories or gs:// buckets only")
    path = epath.Path(directory).expanduser()
    return epath.Path(os.path.abspath(path)) if records.is_local(path) else path  # Orbax wants it absolute


def _resolve(path: epath.Path) -> epath.Path:
    """Where the complete data are: a kill between the two renames of an overwrite leaves them in `.saving`."""
    stage = path.parent / (path.name + _SAVING)
    return stage if not _complete(path) and _complete(stage) else path


def _complete(path: epath.Path) -> bool:
    return (path / RECORD).exists() and (path / _COMMIT_MARKER).exists()


def _final_name(name: str) -> str:
    return name.removesuffix(_ORBAX_TEMPORARY).removesuffix(_SAVING).removesuffix(_REPLACED)


_quiet_lock, _quiet_levels = threading.Lock(), []  # levels to go back to, and how many threads are inside


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's and asyncio's pages about a broken checkpoint off the terminal; our error says it in one line."""
    loggers = [logging.getLogger(n) for n in ("absl", "asyncio")]
    with _quiet_lock:
        _quiet_levels.append([logger.level for logger in loggers])
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        gc.collect()  # asyncio reports tasks whose errors nobody fetched when they are collected
        raise
    finally:
        with _quiet_lock:
            levels = _quiet_levels.pop()  # the last of several threads pops those of the first
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
