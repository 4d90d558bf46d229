"""Opening the directories that commands are given: a workdir, locked where it is written to, and its session."""

import argparse
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ia_jax.errors import ConfigError, IAError

if TYPE_CHECKING:
    from ia_jax.stages.session import Session
    from ia_jax.workdir import Workdir

STARTERS = ("run", "transcripts")  # commands that may start a workdir


def existing(directory: str) -> "Workdir":
    """The workdir of a command that only reads. Raises ConfigError if there is none."""
    from ia_jax.workdir import open_workdir

    return open_workdir(_local(directory))


def _local(directory: str) -> Path:
    if "://" in directory:
        raise ConfigError(f"--workdir {directory}: workdirs in a bucket are not supported yet; give a local directory")
    return Path(directory)


@contextlib.contextmanager
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


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator["Workdir"]:
    """The workdir of a stage command, locked: continued, or started by one of `STARTERS`."""
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.workdir import open_workdir

    with contextlib.ExitStack() as stack:
        yield open_workdir(on_main_process(lambda: str(_lock_and_start(stack, args))))


def _lock_and_start(stack: contextlib.ExitStack, args: argparse.Namespace) -> Path:
    """The path of the workdir, which is locked until `stack` is left; nothing in it is written before that."""
    from ia_jax.workdir import open_workdir, start_workdir

    path = _local(args.workdir)
    stored = (path / "config.json").exists()
    if args.config is None:
        if args.overrides and stored:
            raise ConfigError(
                f"{args.overrides[0]}: overrides need --config; {path} goes on with its stored config.json"
            )
        if args.overrides or not stored:
            raise ConfigError(f"--config is required: {path} has no config.json to go on with")
        stack.enter_context(locked(path))
        return open_workdir(path).path
    if not stored and args.command not in STARTERS:
        raise ConfigError(f"workdir {path} does not exist or has no config.json; start it with `ia-jax transcripts`")
    from ia_jax.recipes import load_config

    config = load_config(args.config, args.overrides)  # a mistake in it leaves no directory behind
    stack.enter_context(locked(path))
    return start_workdir(path, config).path


@contextlib.contextmanager
def session(workdir: "Workdir") -> Iterator["Session"]:
    """The session of a workdir, with its mesh set."""
    import jax

    from ia_jax.stages.session import Session

    _keep_compiled_programs()
    opened_session = Session(workdir, workdir.config)
    with jax.set_mesh(opened_session.mesh):
        yield opened_session


def _keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache, by kind of processor: continuing or asking again starts at once.

    JAX leaves the cache out where it cannot be written or read, and does as without it.
    """
    import hashlib

    import jax

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kind = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    name = hashlib.sha256(repr((os.uname().machine, sorted(kind))).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if jax.config.jax_compilation_cache_dir is None:  # the user may have chosen another
        jax.config.update("jax_compilation_cache_dir", str(home / "ia_jax" / f"compiled-{name}"))


def new_directory(directory: str) -> Path:
    """A directory to write to, which must not exist or be empty."""
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already and is not an empty directory; choose another DST")
    return path
