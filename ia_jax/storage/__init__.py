"""What a run reads and writes, in a local directory or in a bucket: the one way through which a workdir is touched.

Files are read after a kill or a power cut. Local ones are written beside and renamed, or appended to line by line, and
are on the disk itself before anything counts as written (`durable`). In a bucket (`gs://`), objects are replaced
(`bucket`), appended to in parts (`parts`), and kept from a second run by a lease (`lease`). Paths are `pathlib.Path` or
`paths.BucketPath`, which has the same methods; `path_of` makes one.

Every error names the file, and where it can the line; it says what to do if the caller does.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ia_jax.errors import ConfigError, IAError
from ia_jax.storage import durable, parts

if TYPE_CHECKING:
    from etils import epath

Row = dict[str, Any]
P = TypeVar("P", bound="Path | epath.Path")  # a local path, or one that may lie in a bucket
S = TypeVar("S")
T = TypeVar("T")


# --------------------------------------------------------------------------------------------------------------- paths


def in_bucket(path: os.PathLike[str] | str) -> bool:
    return str(path).startswith("gs://")


def path_of(text: os.PathLike[str] | str) -> Path:
    """A local path, or one in a bucket. Its type is given as `Path`, whose methods both have.

    Raises ConfigError for other places.
    """
    if in_bucket(text):
        from ia_jax.storage.bucket import split
        from ia_jax.storage.paths import BucketPath

        split(text)
        return cast(Path, BucketPath(text))
    if "://" in str(text):
        raise ConfigError(f"{text}: files lie in a local directory or in a bucket, gs://BUCKET/NAME")
    return Path(text)


def bucket_of(path: os.PathLike[str] | str) -> str:
    """The bucket in which a path lies."""
    from ia_jax.storage.bucket import split

    return split(path)[0]


def below(directory: Path, path: str) -> Path:
    """`directory / path`, where a `path` that is absolute or in a bucket stays as it is."""
    return path_of(path) if in_bucket(path) or os.path.isabs(path) else directory / path


def directories(path: Path) -> list[str]:
    """The names of the directories right in a directory, sorted; none if it is not there."""
    if in_bucket(path):
        from ia_jax.storage import bucket

        return [d.rstrip("/").rpartition("/")[2] for d in bucket.beginning(f"{path}/", flat=False).directories]
    return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def modified(path: Path) -> float:
    """When a file was last written, in seconds since 1970. Raises FileNotFoundError."""
    if in_bucket(path):
        from ia_jax.storage import bucket

        there = bucket.find(path)
        if there is None:
            raise FileNotFoundError(2, "no such object", str(path))
        return there.modified
    return path.stat().st_mtime


def present(paths: "Iterable[Path | epath.Path]") -> list[bool]:
    """For each file whether it is there. In a bucket one listing for each directory, however many are asked for."""
    paths = list(paths)
    if not any(map(in_bucket, paths)):
        return [path.exists() for path in paths]
    from ia_jax.storage import bucket

    roots = {str(p.parent.parent) for p in paths if in_bucket(p)}
    names = {f"gs://{bucket.split(root)[0]}/{o.name}" for root in roots for o in bucket.below(root)}
    return [str(path) in names if in_bucket(path) else path.exists() for path in paths]


def each(function: Callable[[S], T], items: Iterable[S], many: bool) -> list[T]:
    """`function` of each item, in order; many: at once, for files in a bucket, where each takes its time."""
    if not many:
        return [function(item) for item in items]
    from ia_jax.storage import bucket

    return bucket.each(function, items)


def remove_tree(path: Path) -> None:
    """A directory with all in it, if it is there."""
    if in_bucket(path):
        from ia_jax.storage import bucket

        bucket.remove_tree(path)
    else:
        import shutil

        shutil.rmtree(path, ignore_errors=True)


# --------------------------------------------------------------------------------------------------------- whole files


@contextmanager
def replacing(path: P) -> Iterator[P]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    A reader finds the old contents or the new, never a part. Missing directories are made. After an error, what was
    written is deleted and `path` is as before; an OSError names `path`. Once it returns, a power cut takes nothing.
    In a bucket: a local file, whose contents replace the object.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as directory:
            written = Path(directory) / path.name
            yield cast(P, written)
            parts.write_whole(path, written.read_bytes())
        return
    temporary = path.with_name(f"{path.name}.partial")
    try:
        durable.make_directory(Path(path.parent))
        yield temporary
        with open(temporary, "rb") as file:
            durable.sync_file(file)
        temporary.replace(path)
        durable.sync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # Python's files leave the name out
        raise


def write_text(path: "Path | epath.Path", text: str) -> None:
    if in_bucket(path):
        parts.write_whole(path, text.encode())
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: "Path | epath.Path", content: bytes) -> None:
    if in_bucket(path):
        parts.write_whole(path, content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: "Path | epath.Path", value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent))


# ---------------------------------------------------------------------------------------------------------- JSON, JSONL


def read_json(path: Path, remedy: str) -> Row:
    """The object in a file. Raises ConfigError naming the line that is wrong, and the remedy."""
    return _object(_text(path, remedy), f"{path}:{{line}}", remedy)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object on each line."""
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def read_jsonl(path: Path, remedy: str) -> list[Row]:
    """The objects of a file, one on each line; empty lines are passed over.

    Raises ConfigError naming the file that is not there or the line that holds none, and the remedy.
    """
    return [row for _, row in numbered_rows(path, remedy)]


def numbered_rows(path: Path, remedy: str) -> list[tuple[int, Row]]:
    """`read_jsonl` with each object's line number, for messages about what is in it."""
    # Not splitlines(): that would cut at U+2028 and U+0085 inside a text too.
    lines = _text(path, remedy).split("\n")
    return [(n, _object(line, f"{path}:{n}", remedy)) for n, line in enumerate(lines, 1) if line.strip()]


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines. A kill may leave half of one, which `read_appended` takes away."""
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if in_bucket(path):
        parts.append(path, content)
        return
    file = parts.LocalFile(path)
    try:
        file.write(content)
        file.sync()
    finally:
        file.close()


def appending(path: Path) -> parts.Appended:
    """A JSONL file, open to be appended to for a while: `write` lines as bytes, `sync` before they are relied on."""
    return parts.Parts(path) if in_bucket(path) else parts.LocalFile(path)


def read_appended(path: Path, remedy: str) -> list[Row]:
    """The objects of a file that is appended to; none if it is not there. Cuts off half a line at its end."""
    if not path.exists():
        return []
    if in_bucket(path):  # parts are whole
        return read_jsonl(path, remedy)
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return read_jsonl(path, remedy)


def _text(path: Path, remedy: str) -> str:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; {remedy}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); {remedy}") from None


def _object(text: str, where: str, remedy: str) -> Row:
    """The JSON object in a text; "{line}" in `where` becomes the line in it that is wrong."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = where.replace("{line}", str(error.lineno))
        raise ConfigError(f"{where}: not JSON ({error.msg}); {remedy}") from None
    if not isinstance(value, dict):
        where = where.removesuffix(":{line}")
        raise ConfigError(f"{where}: must hold a JSON object, got {type(value).__name__}; {remedy}")
    return value


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps a second run from writing to the same workdir. The lock goes with the process, however it ends.

    In a bucket it is a lease, which somebody else gets a minute after the process ended. Of several processes only the
    first can have it: enter it inside `on_main_process`.
    """
    if in_bucket(path):
        from ia_jax.storage.lease import leased

        with leased(path):
            yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise IAError(f"cannot write to the workdir {path}: {error.strerror}; choose another --workdir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IAError(f"another ia-jax is working in {path}; wait for it, or use another --workdir") from None
        yield
