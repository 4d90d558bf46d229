"""Files that are read after a kill: written beside and renamed, or appended to line by line; JSON and JSONL.

Every error names the file, and where it can the line; it says what to do if the caller does.
"""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ia_jax.errors import ConfigError, IAError

if TYPE_CHECKING:
    from etils import epath

Row = dict[str, Any]
P = TypeVar("P", bound="Path | epath.Path")  # a local path, or one that may lie in a bucket


@contextmanager
def replacing(path: P) -> Iterator[P]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    A reader finds the old contents or the new, never a part. Missing directories are made. After an error, what was
    written is deleted and `path` is as before; an OSError names `path`.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # Python's files leave the name out
        raise


def write_text(path: "Path | epath.Path", text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: "Path | epath.Path", value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent))


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def read_appended(path: Path, remedy: str) -> list[Row]:
    """The objects of a file that is appended to; none if it is not there. Cuts off half a line at its end."""
    if not path.exists():
        return []
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

    Of several processes only the first can have it: enter it inside `on_main_process`.
    """
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
