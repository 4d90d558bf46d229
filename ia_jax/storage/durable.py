"""Local files that outlive a power cut: contents, and the directory entries that lead to them, on the disk itself.

A rename may reach the disk before what it renames does; then the new name leads to an empty file. So contents are
synchronised before the rename, and the directory after it.
"""

import errno
import os
from pathlib import Path
from typing import Any


def sync_file(file: Any) -> None:
    """Waits until an open file's contents are on disk."""
    os.fsync(file.fileno())


def sync_directory(path: os.PathLike[str] | str) -> None:
    """Waits until a directory's entries are on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, each entry on disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def sync_tree(path: os.PathLike[str] | str) -> None:
    """Waits until everything below a directory is on disk, and the directories themselves."""
    for root, _, names in os.walk(path, topdown=False):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                sync_file(file)
        sync_directory(root)
