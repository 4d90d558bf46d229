"""Large files that are read in parts, local or in a bucket: checkpoints, of which each process reads its own bytes.

A file is what it was when its directory was listed: of an object in a bucket, that generation.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ia_jax.errors import IAError
from ia_jax.storage import each, in_bucket, replacing

LOCAL_IN_FLIGHT = 4  # reads at once from a disk


@dataclass(frozen=True)
class StoredFile:
    path: Path
    size: int
    generation: int = 0  # of an object in a bucket


def files_in(directory: Path) -> dict[str, StoredFile]:
    """The files right in a directory, by name; none if it is not there. In a bucket, by one listing."""
    if in_bucket(directory):
        from ia_jax.storage import bucket

        objects = bucket.beginning(f"{directory}/", flat=False).objects
        found = [(o.name.rpartition("/")[2], o) for o in objects]
        return {name: StoredFile(directory / name, o.size, o.generation) for name, o in found if name}
    if not directory.is_dir():
        return {}
    return {p.name: StoredFile(p, p.stat().st_size) for p in sorted(directory.iterdir()) if p.is_file()}


def read_into(file: StoredFile, start: int, into: memoryview) -> None:
    """Fills `into`, writable bytes, with what the file has from `start` on.

    Requests to a bucket that fail or break off are made again, as all are. Raises FileNotFoundError where the file has
    gone or was written anew, IAError where it ends too early.
    """
    if not len(into):
        return
    if in_bucket(file.path):
        from ia_jax.storage import bucket

        bucket.read_into(file.path, file.generation, start, into)
        return
    with file.path.open("rb", buffering=0) as handle:
        handle.seek(start)
        done = 0
        while done < len(into):
            got = handle.readinto(into[done:])
            if not got:
                raise IAError(f"{file.path} ends at byte {start + done}; it was cut while it was read")
            done += got


def in_flight(path: os.PathLike[str] | str) -> int:
    """How many reads at once make sense there."""
    if in_bucket(path):
        from ia_jax.storage import bucket

        return bucket.IN_FLIGHT
    return LOCAL_IN_FLIGHT


@contextmanager
def local_copies(files: list[StoredFile]) -> Iterator[Path]:
    """A temporary directory with a copy of each of these (small) files, for libraries that want a local one."""
    with tempfile.TemporaryDirectory() as directory:
        contents = each(lambda f: f.path.read_bytes(), files, many=True)
        for file, content in zip(files, contents, strict=True):
            Path(directory, file.path.name).write_bytes(content)
        yield Path(directory)


def move_to(local: Path, path: Path) -> None:
    """Puts a local file, of any size, at `path`, whole or not at all; it is gone from where it was."""
    if in_bucket(path):
        from ia_jax.storage import bucket

        bucket.upload(local, path)
        local.unlink()
        return
    with replacing(path) as temporary:
        try:
            os.replace(local, temporary)
        except OSError:  # from another file system
            import shutil

            shutil.move(local, temporary)
