"""Files that are appended to. In a bucket nothing can be: there each piece is an object of its own, merged by readers.

    curves.jsonl                           the file, as it was last written whole
    curves.jsonl.parts/<mark>-<number>     what was added since, in order

A part belongs to the version of the file whose mark it bears. So the file written anew, which is one step, also ends
all parts; those of other versions are leftovers, and no reader sees them. Only files named `*.jsonl` have parts.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ia_jax.errors import ConfigError
from ia_jax.storage import durable

if TYPE_CHECKING:
    from ia_jax.storage.bucket import Object

FLUSH_SECONDS = 10.0  # how long a line may wait in memory before it becomes part of an object
PART_BYTES = 1 << 20  # a part that has grown to this is followed by another
MOST_PARTS = 32  # so many are put together, as the file written anew
TRIES = 5  # how often a reader begins again when the file is written anew under it


class LocalFile:
    """A local file that is appended to. `flush` hands over to the kernel; `sync` waits until it is on disk."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._file = path, open(path, "ab")  # noqa: SIM115

    def write(self, content: bytes) -> None:
        self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        durable.sync_file(self._file)
        durable.sync_directory(self._path.parent)

    def close(self) -> None:
        self._file.close()


class Growing:
    """An object that grows by being written again with more: `flush` does it every `FLUSH_SECONDS`, `sync` at once."""

    def __init__(self, path: os.PathLike[str] | str):
        self.path, self.size = path, 0
        self._content, self._generation, self._written = bytearray(), 0, 0
        self._last = time.monotonic()

    def write(self, content: bytes) -> None:
        self._content += content
        self.size = len(self._content)

    def flush(self) -> None:
        if time.monotonic() - self._last >= FLUSH_SECONDS:
            self.sync()

    def sync(self) -> None:
        from ia_jax.storage import bucket

        if self._written < self.size:
            self._generation = bucket.write(self.path, bytes(self._content), self._generation).generation
            self._written = self.size
        self._last = time.monotonic()

    def close(self) -> None:
        self.sync()


class Parts:
    """Appends to a file in a bucket: this process's parts, each an object that grows to `PART_BYTES`."""

    def __init__(self, path: os.PathLike[str]):
        self._path = path
        self._part: Growing | None = None

    def write(self, content: bytes) -> None:
        if self._part is not None and self._part.size >= PART_BYTES:
            self._part.sync()
            self._part = None
        if self._part is None:
            self._part = Growing(_next_part(self._path))
        self._part.write(content)

    def flush(self) -> None:
        if self._part is not None:
            self._part.flush()

    def sync(self) -> None:
        if self._part is not None:
            self._part.sync()

    def close(self) -> None:
        """Puts all parts together, so that a workdir that no run is in looks like a local one."""
        self.sync()
        merge(self._path)


Appended = LocalFile | Parts


def append(path: os.PathLike[str], content: bytes) -> None:
    """Adds to a file in a bucket; where it has many parts, they are put together."""
    from ia_jax.storage import bucket

    base, parts = _versions(path)
    if base is None:
        bucket.write(path, content, over=0)
    elif len(parts) >= MOST_PARTS:
        write_whole(path, read_merged(path) + content)
    else:
        bucket.write(_part_path(path, base, parts), content, over=0)


def read_merged(path: os.PathLike[str]) -> bytes:
    """The content of a file in a bucket with what was appended to it. Raises FileNotFoundError."""
    from ia_jax.storage import bucket

    if not str(path).endswith(".jsonl"):
        return bucket.read(path)
    for attempt in range(TRIES):
        base, parts = _versions(path)
        if base is None:
            raise FileNotFoundError(2, "no such object", str(path))
        top, name = bucket.split(path)[0], bucket.split(path)[1]
        pieces = [(f"gs://{top}/{o.name}", o.generation if o.name == name else None) for o in (base, *parts)]
        try:
            return b"".join(bucket.each(lambda piece: bucket.read(*piece), pieces))
        except FileNotFoundError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def write_whole(path: os.PathLike[str], content: bytes) -> None:
    """Writes a file in a bucket anew; in the same step what was appended before is no longer part of it."""
    from ia_jax.storage import bucket

    bucket.write(path, content)
    if str(path).endswith(".jsonl"):
        bucket.remove_tree(f"{path}.parts")


def merge(path: os.PathLike[str]) -> None:
    """Puts a file's parts into the file."""
    if _versions(path)[1]:
        write_whole(path, read_merged(path))


def _versions(path: os.PathLike[str]) -> "tuple[Object | None, list[Object]]":
    """(the file, its parts in order), as the bucket lists them."""
    from ia_jax.storage import bucket

    name = bucket.split(path)[1]
    found = [o for o in bucket.beginning(path).objects if o.name == name or o.name.startswith(f"{name}.parts/")]
    base = next((o for o in found if o.name == name), None)
    parts = [o for o in found if o.name != name]
    if base is not None and not base.mark and parts:
        raise ConfigError(
            f"{path} has parts but not the mark that says which: it was copied without its metadata, from a run that "
            "was cut short; copy from bucket to bucket (`gcloud storage cp -r`), or let the run end first"
        )
    return base, [o for o in parts if base is not None and o.name.startswith(f"{name}.parts/{base.mark}-")]


def _part_path(path: os.PathLike[str], base: "Object", parts: "list[Object]") -> str:
    number = 1 + (int(parts[-1].name.rsplit("-", 1)[1]) if parts else 0)
    return f"{path}.parts/{base.mark}-{number:08d}"


def _next_part(path: os.PathLike[str]) -> str:
    """Where the next part goes; makes the file, empty, where there is none."""
    from ia_jax.storage import bucket

    base, parts = _versions(path)
    if base is None:
        base = bucket.write(path, b"", over=0)
    return _part_path(path, base, parts)
