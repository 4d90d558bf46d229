"""Opening the directories that commands are given: a workdir, locked where it is written to, and with which config."""

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ia_jax.errors import ConfigError
from ia_jax.storage import in_bucket, locked, path_of

if TYPE_CHECKING:
    from ia_jax.config import RunConfig
    from ia_jax.stages.context import Context
    from ia_jax.workdir import Workdir

STARTERS = ("run", "transcripts")  # commands that may start a workdir


def existing(directory: str) -> "Workdir":
    """The workdir of a command that only reads. Raises ConfigError if there is none."""
    from ia_jax.workdir import open_workdir

    return open_workdir(directory)


def local(directory: str) -> Path:
    """A directory of this machine. Raises ConfigError for one in a bucket."""
    if "://" in directory:
        raise ConfigError(f"{directory} is not on this machine; give a local directory here")
    return Path(directory)


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator["Context"]:
    """The workdir of a stage command, locked: continued, or started by one of `STARTERS`; with the command's config."""
    from ia_jax.config import parse_config
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.workdir import open_workdir

    with contextlib.ExitStack() as stack:
        path, settings = on_main_process(lambda: _lock_and_start(stack, args))
        profile = getattr(args, "profile", 0)
        if profile and in_bucket(path):
            raise ConfigError(f"--profile={profile}: a trace is not written to a bucket; use a local --workdir for it")
        with on_mesh(open_workdir(path), parse_config(settings), profile) as context:
            yield context


def _lock_and_start(stack: contextlib.ExitStack, args: argparse.Namespace) -> list[Any]:
    """[path, config as JSON] of the workdir, locked until `stack` is left; nothing in it is written before that."""
    from ia_jax.config import with_dtype
    from ia_jax.recipes import load_config, override
    from ia_jax.stages.settings import start_workdir
    from ia_jax.workdir import open_workdir

    path = path_of(args.workdir)
    stored = (path / "config.json").exists()
    if not stored and args.config is None:
        raise ConfigError(f"--config is required: {path} has no config.json to go on with")
    if not stored and args.command not in STARTERS:
        raise ConfigError(f"workdir {path} does not exist or has no config.json; start it with `ia-jax transcripts`")
    # A mistake in it leaves no directory behind.
    if args.config is None:
        config = override(open_workdir(path).config, args.overrides)
    else:
        config = load_config(args.config, args.overrides)
    stack.enter_context(locked(path))
    workdir = start_workdir(path, config)
    config = with_dtype(config, workdir.config.model.dtype)
    return [str(workdir.path), json.loads(json.dumps(dataclasses.asdict(config)))]


@contextlib.contextmanager
def on_mesh(workdir: "Workdir", config: "RunConfig | None" = None, profile: int = 0) -> Iterator["Context"]:
    """A workdir under a config (default: the one it was started with), with its mesh set; trainings trace `profile`
    steps.
    """
    import jax

    from ia_jax.stages.context import Context

    _keep_compiled_programs()
    context = Context(workdir, config or workdir.config, profile)
    with jax.set_mesh(context.mesh):
        yield context


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


def check_name(name: str) -> str:
    """A name that files go by. Raises ConfigError for one that could lead elsewhere."""
    if name and not (name.isascii() and name.replace("_", "").replace("-", "").isalnum()):
        raise ConfigError(f"--name={name} must be letters, digits, _ and -")
    return name


def new_directory(directory: str) -> Path:
    """A directory to write to, which must not exist or be empty."""
    path = local(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already and is not an empty directory; choose another DST")
    return path
