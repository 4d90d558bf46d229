"""Paths in a bucket: etils' path for `gs://`, also for Orbax, which asks etils for it.

Etils' own would need gcsfs, which remembers listings: a process would not see what another has written.
"""

import fnmatch
import io
from collections.abc import Iterator
from typing import IO, Any

from etils import epath
from etils.epath import backend, gpath, stat_utils

from ia_jax.storage import bucket, parts


class _Upload(io.BytesIO):
    """A file that is open for writing: becomes the object when it is closed, unless its block ended with an error."""

    def __init__(self, path: str):
        super().__init__()
        self._path: str | None = path

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._path = None
        self.close()

    def close(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            bucket.write(path, self.getvalue())
        super().close()


class _TextUpload(io.StringIO):
    """As `_Upload`, for text."""

    def __init__(self, path: str):
        super().__init__(newline="")
        self._upload = _Upload(path)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._upload._path = None
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._upload.write(self.getvalue().encode())
            self._upload.close()
        super().close()


class _Backend(backend.Backend):
    """What etils' paths call."""

    def open(self, path: Any, mode: str) -> IO[Any]:
        if "a" in mode:
            raise NotImplementedError(f"{path}: nothing is appended to an object; `storage.append_jsonl` writes parts")
        if "w" in mode:
            return _Upload(str(path)) if "b" in mode else _TextUpload(str(path))
        content = io.BytesIO(parts.read_merged(path))
        return content if "b" in mode else io.TextIOWrapper(content, encoding="utf-8")

    def exists(self, path: Any) -> bool:
        return bucket.find(path) is not None or self.isdir(path)

    def isdir(self, path: Any) -> bool:
        return bool(bucket.beginning(f"{str(path).rstrip('/')}/", most=1).objects)

    def listdir(self, path: Any) -> list[str]:
        found, top = bucket.beginning(f"{str(path).rstrip('/')}/", flat=False), bucket.split(path)[1]
        names = [*(o.name for o in found.objects), *(d.rstrip("/") for d in found.directories)]
        return sorted(filter(None, (name[len(top) :].strip("/") for name in names)))

    def glob(self, path: Any) -> list[str]:
        raise NotImplementedError  # `BucketPath.glob` lists once instead

    def walk(self, top: Any, *, top_down: bool = True, on_error: Any = None) -> Iterator[Any]:
        raise NotImplementedError

    def makedirs(self, path: Any, *, exist_ok: bool = False, mode: int | None = None) -> None:
        self.mkdir(path, exist_ok=exist_ok)

    def mkdir(self, path: Any, *, exist_ok: bool = False, mode: int | None = None) -> None:
        if not exist_ok and self.exists(path):
            raise FileExistsError(17, "exists already", str(path))

    def rmtree(self, path: Any) -> None:
        if not self.exists(path):
            raise FileNotFoundError(2, "no such object or directory", str(path))
        bucket.remove_tree(path)

    def remove(self, path: Any) -> None:
        bucket.remove(path)
        if str(path).endswith(".jsonl"):
            bucket.remove_tree(f"{path}.parts")

    def rename(self, path: Any, dst: Any) -> None:
        """Not at once: a kill leaves both."""
        if self.exists(dst):
            raise FileExistsError(17, "exists already", str(dst))
        self.replace(path, dst)

    def replace(self, path: Any, dst: Any) -> None:
        if bucket.find(path) is not None:
            bucket.copy(path, dst)
            bucket.remove(path)
        elif self.isdir(path):
            bucket.copy_tree(path, dst)
            bucket.remove_tree(path)
        else:
            raise FileNotFoundError(2, "no such object or directory", str(path))

    def copy(self, path: Any, dst: Any, overwrite: bool) -> None:
        if not overwrite and self.exists(dst):
            raise FileExistsError(17, "exists already", str(dst))
        bucket.copy(path, dst)

    def stat(self, path: Any) -> stat_utils.StatResult:
        there = bucket.find(path)
        if there is None and not self.isdir(path):
            raise FileNotFoundError(2, "no such object or directory", str(path))
        length, modified = (there.size, there.modified) if there else (0, 0.0)
        return stat_utils.StatResult(there is None, length, int(modified), None, None, None)


_BACKEND = _Backend()


@epath.register_path_cls("gs://")
class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with the methods of `pathlib.Path` that this package uses."""

    @property
    def _backend(self) -> backend.Backend:
        return _BACKEND

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def absolute(self) -> "BucketPath":
        return self

    def is_symlink(self) -> bool:
        return False

    def is_file(self) -> bool:
        return bucket.find(self) is not None

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Files and directories; "**/" stands for any directories, or none. One listing, of all below."""
        top = bucket.split(self)[1]
        names: set[str] = set()
        for o in bucket.below(self):
            parts = o.name[len(top) + 1 if top else 0 :].split("/")
            names.update("/".join(parts[: n + 1]) for n in range(len(parts)))
        wanted = pattern.split("/")
        return (type(self)(self, n) for n in sorted(names) if _matches(n.split("/"), wanted))

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        return self.glob(f"**/{pattern}")


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if not wanted or not parts:
        return not wanted and not parts
    if wanted[0] == "**":
        return any(_matches(parts[n:], wanted[1:]) for n in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
