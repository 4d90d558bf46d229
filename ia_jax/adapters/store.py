"""The adapter store: one directory per adapter, either complete and checked or not there at all.

    <name>/            an Orbax checkpoint of the arrays (`arrays`) and, written last,
      adapter.json     metadata, a digest of every leaf, size and digest of every file, and a seal over all of it

A kill at any instant leaves the old adapter or the new one (`directory`). Opening re-reads every digest: one flipped
byte is an error that names the file or the leaf. Directories are local or `gs://`; in the latter files are checked by
size and leaves by digest.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import jax
from etils import epath

from ia_jax.adapters import directory as directories
from ia_jax.adapters import record as records
from ia_jax.adapters.arrays import read_arrays
from ia_jax.adapters.directory import Directory, as_path, renew_record, resolve
from ia_jax.adapters.record import AdapterMetadata, Leaves, Record, one_line
from ia_jax.adapters.save import RENEWABLE, save_adapter, save_adapters, save_organisms
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Adapter, lora_shapes
from ia_jax.models.weights import quantization_of
from ia_jax.parallel.distributed import on_main_process
from ia_jax.storage import each, in_bucket

__all__ = [
    "Base",
    "Directory",
    "are_complete",
    "is_complete",
    "list_adapters",
    "load_adapter",
    "read_adapter",
    "read_metadata",
    "read_record",
    "read_records",
    "remove_adapter",
    "save_adapter",
    "save_adapters",
    "save_organisms",
    "update_metadata",
    "verify_adapter",
]


class Base(Protocol):
    """What the store asks of a base model; `ia_jax.Model` has it."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def load_adapter(
    directory: Directory, base: Base | None = None, sharding: Any = None, allow_other_base: bool = False
) -> tuple[Adapter, AdapterMetadata]:
    """Read an adapter back, bit for bit or not at all.

    base:      the model it will sit on; another fingerprint is a `BaseMismatchError` unless `allow_other_base`, shapes
               that do not fit are one in any case.
    sharding:  one sharding for all leaves, or a tree of them like the adapter; None for the default device.
    """
    path, record = resolve(as_path(directory)), read_record(directory, base, allow_other_base)
    problems, leaves = _read_checked(path, record)
    if problems:
        more = f" (and {len(problems) - 2} more)" if len(problems) > 2 else ""
        raise CheckpointError(
            f"{path}: the adapter is corrupt: {'; '.join(problems[:2])}{more}; restore the directory from a copy, or "
            "delete it and run its stage again"
        )
    return jax.device_put(records.nest(leaves, record.metadata.layers), sharding), record.metadata


def read_adapter(directory: Directory, check: bool = True) -> Adapter:
    """The arrays on the host (numpy), for those who read many adapters over and over.

    With `check` every leaf is compared with its digest; read it so the first time.
    """
    path = resolve(as_path(directory))
    record = directories.read_record(path)
    leaves = _read_leaves(path, record)
    problems = records.leaf_problems(record, leaves) if check else []
    if problems:
        raise CheckpointError(f"{path}: the adapter is corrupt: {problems[0]}; restore the directory from a copy")
    return records.nest(leaves, record.metadata.layers)


def read_record(directory: Directory, base: Base | None = None, allow_other_base: bool = False) -> Record:
    """What is written down about a stored adapter; checked to be for `base`, if given. The arrays are not read."""
    path = resolve(as_path(directory))
    record = directories.read_record(path)
    if base is not None:
        _check_base(path, record, base, allow_other_base)
    return record


def read_metadata(directory: Directory) -> AdapterMetadata:
    """The metadata alone; the arrays are not read."""
    return read_record(directory).metadata


def update_metadata(directory: Directory, **changes: Any) -> AdapterMetadata:
    """Replace fields of a stored adapter's metadata (`check=…`, `step=…`); the arrays stay as they are."""
    fixed = sorted(changes.keys() - set(RENEWABLE))
    if fixed:
        raise ConfigError(f"{directory}: {', '.join(fixed)} of a stored adapter cannot be changed; save it anew")
    path = resolve(as_path(directory))
    return AdapterMetadata.from_json(on_main_process(lambda: renew_record(path, changes).to_json()))


def is_complete(directory: Directory) -> bool:
    """Whether a whole adapter is there: committed by Orbax and sealed by `adapter.json`."""
    return directories.complete(resolve(as_path(directory)))


def are_complete(found: Sequence[Directory]) -> list[bool]:
    """`is_complete` of each; in a bucket for all of a directory at once."""
    return [place is not None for place in directories.places([as_path(d) for d in found])]


def read_records(found: Sequence[Directory], base: Base | None = None) -> list[Record]:
    """`read_record` of each; in a bucket with one request for each, many at once."""
    paths = [as_path(d) for d in found]
    whole = list(zip(paths, directories.places(paths), strict=True))
    return each(lambda both: _record_at(*both, base), whole, many=any(map(in_bucket, paths)))


def _record_at(path: epath.Path, place: epath.Path | None, base: Base | None) -> Record:
    if place is None:  # raises, saying what is missing
        return read_record(path, base)
    record = records.read_record(place)
    if base is not None:
        _check_base(place, record, base, False)
    return record


def remove_adapter(directory: Directory) -> None:
    """Delete a stored adapter and all that killed saves left of it; a kill midway leaves it whole, or not stored."""
    path = as_path(directory)
    for leftover in directories.leftovers(path):  # first: a complete `.saving` would be served in its place
        directories.remove(leftover)
    directories.remove(path)


def list_adapters(root: Directory) -> dict[str, AdapterMetadata]:
    """Complete adapters right under `root`, by directory name. A damaged record is logged and left out."""
    path = as_path(root)
    names = sorted({directories.final_name(p.name) for p in path.iterdir()}) if path.exists() else []
    places = zip(names, directories.places([path / n for n in names]), strict=True)
    whole = [(name, place) for name, place in places if place is not None]

    def read(place: epath.Path) -> AdapterMetadata | None:
        try:
            return records.read_record(place).metadata
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s", error)
            return None

    found = each(read, [place for _, place in whole], many=in_bucket(path))
    return {name: metadata for (name, _), metadata in zip(whole, found, strict=True) if metadata is not None}


def verify_adapter(directory: Directory) -> list[str]:
    """Everything that is wrong with a stored adapter, one line each; empty when it is as it was saved."""
    path = resolve(as_path(directory))
    try:
        return _read_checked(path, directories.read_record(path))[0]
    except CheckpointError as error:
        return [str(error)]


def _read_checked(path: epath.Path, record: Record) -> tuple[list[str], Leaves]:
    """Problems and leaves; files found damaged are not read."""
    problems = records.file_problems(path, record.files)
    leaves = {} if problems else _read_leaves(path, record)
    return problems or records.leaf_problems(record, leaves), leaves


def _read_leaves(path: epath.Path, record: Record) -> Leaves:
    try:
        return read_arrays(path, record.leaves)
    except Exception as error:
        raise CheckpointError(
            f"{path}: the arrays cannot be read ({one_line(error)}); restore the directory from a copy"
        ) from error


def _named(base: str, fingerprint: str) -> str:
    held = quantization_of(fingerprint)
    return f"{base} (fingerprint {fingerprint[:12]}{f', in {held}' if held else ''})"


def _check_base(path: epath.Path, record: Record, base: Base, allow_other_base: bool) -> None:
    meta = record.metadata
    made_for, loaded = _named(meta.base_name, meta.base_fingerprint), _named(base.name, base.fingerprint)
    if meta.base_fingerprint != base.fingerprint and not allow_other_base:
        raise BaseMismatchError(
            f"{path}: adapter {meta.name!r} was made for {made_for}, but the base loaded is {loaded}; load the former, "
            "or pass allow_other_base=True"
        )
    try:
        expected = lora_shapes(base.config, meta.lora)
    except ConfigError as error:
        raise BaseMismatchError(f"{path}: {error}; adapter {meta.name!r} was made for {made_for}") from error
    for target, ab in expected.items():
        for factor, shape in ab.items():
            stored = tuple(record.leaves[f"{target}.{factor}"]["shape"])
            if stored != shape:
                raise BaseMismatchError(
                    f"{path}: leaf {target}.{factor} has shape {stored}, but {loaded} needs {shape}; adapter "
                    f"{meta.name!r} was made for {made_for}"
                )
