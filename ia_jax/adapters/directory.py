"""A directory that holds a whole adapter or none, whatever instant a save or a removal is killed at.

A save goes to `<name>.saving` and is renamed once it is complete; an overwrite moves the old one to `<name>.replaced`
first. Between those two renames the complete data are in `.saving`, which `resolve` finds.

In a bucket nothing can be renamed. There a new adapter is written where it belongs, its record last; and one that takes
another's place is copied there from `.saving`, again with the record last, before `.saving` goes.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from ia_jax.adapters import record as records
from ia_jax.adapters.arrays import COMMIT_MARKER, STATE
from ia_jax.adapters.record import RECORD, AdapterMetadata, Record
from ia_jax.errors import CheckpointError, ConfigError
from ia_jax.storage import bucket, durable, in_bucket, path_of, present

Directory = str | os.PathLike[str]

SAVING, REPLACED = ".saving", ".replaced"
# `orbax.checkpoint` and `commit_success.txt` beside those written here: Orbax's own `save` leaves them.
_OWN_FILES = {RECORD, RECORD + SAVING, COMMIT_MARKER, STATE, "commit_success.txt", "orbax.checkpoint"}


def as_path(directory: Directory) -> epath.Path:
    text = str(directory)
    if "://" in text and not text.startswith("gs://"):
        raise ConfigError(f"{text}: adapters are stored in local directories or gs:// buckets only")
    path = epath.Path(path_of(directory)).expanduser()
    return epath.Path(os.path.abspath(path)) if records.is_local(path) else path  # tensorstore wants it absolute


def resolve(path: epath.Path) -> epath.Path:
    """Where the complete data are: a kill between the two renames of an overwrite leaves them in `.saving`."""
    stage = stage_of(path)
    return stage if not complete(path) and complete(stage) else path


def complete(path: epath.Path) -> bool:
    return (path / RECORD).exists() and (path / COMMIT_MARKER).exists()


def places(paths: Sequence[epath.Path]) -> list[epath.Path | None]:
    """For each where its complete data are, as `resolve` finds them, or None; in a bucket without asking for each."""
    either = [(path, stage_of(path)) for path in paths]
    there = iter(present([p / marker for pair in either for p in pair for marker in (RECORD, COMMIT_MARKER)]))
    whole = [[p for p in pair if all([next(there), next(there)])] for pair in either]
    return [found[0] if found else None for found in whole]


def read_record(path: epath.Path) -> Record:
    if not path.exists():
        raise CheckpointError(f"{path}: no adapter is stored there; check the path, or run its stage")
    for marker in (RECORD, COMMIT_MARKER):
        if not (path / marker).exists():
            raise CheckpointError(
                f"{path}: not a complete adapter: {marker} is missing (deleted, or the save was cut short); run its "
                "stage again, which replaces it"
            )
    return records.read_record(path)


def renew_record(path: epath.Path, changes: dict[str, Any]) -> AdapterMetadata:
    """Replaces fields of the metadata of the adapter at `path`."""
    record = read_record(path)
    metadata = AdapterMetadata.from_json(replace(record.metadata, **changes).to_json())
    if metadata != record.metadata:
        records.write_record(path, replace(record, metadata=metadata))
    return metadata


def make_ready(path: epath.Path, content_hash: str, overwrite: bool) -> bool:
    """Makes `path` ready for an adapter; whether this very one is stored there undamaged. Raises if another is."""
    if path.exists() and not {p.name for p in path.iterdir()} <= _OWN_FILES:
        raise CheckpointError(f"{path}: holds files that are not an adapter's; choose another directory")
    _settle(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not complete(path):
        return False
    stored = _stored_content(path)
    if stored != content_hash and not overwrite:
        raise CheckpointError(
            f"{path}: already holds an adapter with other content ({stored[:12]}, the new one has "
            f"{content_hash[:12]}); pass overwrite=True or save elsewhere"
        )
    return stored == content_hash and not records.file_problems(path, read_record(path).files)


def stage_of(path: epath.Path) -> epath.Path:
    """Where an adapter for `path` is written."""
    return path.parent / (path.name + SAVING)


def place_to_write(path: epath.Path) -> epath.Path:
    """Where an adapter for `path`, made ready, is written: its stage; in a bucket only if another is in its place."""
    return path if in_bucket(path) and not complete(path) else stage_of(path)


def swap(path: epath.Path) -> None:
    """Puts the complete stage in the place of `path`; at every instant one of the two is complete, also after a power
    cut. Where the adapter was written in its place, there is nothing to do.
    """
    if in_bucket(path):
        if complete(stage_of(path)):
            remove(path)
            _take_place(path)
        return
    replaced = path.parent / (path.name + REPLACED)
    durable.sync_tree(stage_of(path))
    if path.exists():
        path.rename(replaced)
    _take_place(path)
    remove(replaced)


def _take_place(path: epath.Path) -> None:
    """Moves the complete stage to `path`, where nothing is."""
    stage = stage_of(path)
    if in_bucket(path):
        bucket.copy_tree(stage, path)
        remove(stage)
    else:
        stage.rename(path)
        durable.sync_directory(path.parent)


def leftovers(path: epath.Path) -> list[epath.Path]:
    """What a killed save may leave beside `path`."""
    return [stage_of(path), path.parent / (path.name + REPLACED)]


def final_name(name: str) -> str:
    return name.removesuffix(SAVING).removesuffix(REPLACED)


def remove(path: epath.Path) -> None:
    if records.is_local(path) and os.path.islink(path):
        os.unlink(path)  # what it leads to is somebody else's
    elif path.exists():
        (path / RECORD).unlink(missing_ok=True)  # first: without it, what a kill leaves of the tree is no adapter
        path.rmtree()


def _settle(path: epath.Path) -> None:
    """Finishes or clears away what a killed save left behind; afterwards `path` is complete or absent."""
    if not complete(path):
        remove(path)
        if complete(stage_of(path)):
            _take_place(path)
    for leftover in leftovers(path):
        remove(leftover)


def _stored_content(path: epath.Path) -> str:
    try:
        return read_record(path).metadata.content_hash
    except CheckpointError:
        return "a damaged record"
