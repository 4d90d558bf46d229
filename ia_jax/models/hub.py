"""Models of the Hugging Face hub: into this machine's own cache, or once for all processes of a run and all later runs.

In the second case, a directory or bucket that all see, every process fetches its share of the files, one at a time,
and puts each there whole. Then each reads the bytes that it needs, as from any other directory. So a pod takes one copy
of a model from the hub and stores none on its boot disks, and a run that is started again takes none.
"""

import dataclasses
import fnmatch
import re
import tempfile
from pathlib import Path
from typing import Any

from ia_jax import storage
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.safetensors_source import read_hf_config
from ia_jax.parallel.distributed import from_every_process, on_main_process, share
from ia_jax.progress import progress
from ia_jax.storage.ranges import files_in, move_to

SMALL = ("*.json", "*.jinja", "merges.txt")
WEIGHTS = ("model*.safetensors",)
FETCHED = "fetched.json"  # written last, into a directory that is whole
BUCKET_HOME = "ia_jax_models"  # where a bucket has the models of the runs in it


def fetch(name: str, revision: str | None, *patterns: str) -> Path:
    """A snapshot in this machine's own cache, of the files that match."""
    import huggingface_hub

    _check(name)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["original/*"]
            )
        )
    except Exception as error:
        raise _failed(name, error) from error


def download(name: str, revision: str | None) -> Path:
    """A whole model there: first the small files, so an unsupported configuration costs no long download."""
    read_hf_config(fetch(name, revision, *SMALL))
    return fetch(name, revision, *SMALL, *WEIGHTS)


# --------------------------------------------------------------------------------------------------- once for all


@dataclasses.dataclass(frozen=True)
class _Files:
    """A commit, its files with their sizes, and those that are to be fetched: process 0 looks that up for all."""

    commit: str
    sizes: dict[str, int]
    missing: list[str]


def cached(name: str, revision: str | None, cache: str) -> Path:
    """The directory below `cache` that has the model; of a branch, as it was when it was first fetched.

    All processes of the run must ask, unless one does so inside `on_main_process`. Files that are there whole are not
    fetched again. Raises ConfigError for a model that is not implemented, before its weights are fetched; IAError where
    the hub or the bucket fails, naming the file.
    """
    _check(name)
    home = storage.path_of(cache) / name.replace("/", "--") / (revision or "main")
    wanted = on_main_process(lambda: _wanted(name, revision, home))
    if wanted is None:
        return home
    files = _Files(**wanted)
    mine = share(sorted(files.missing, key=lambda f: -files.sizes[f]))  # large and small ones for everybody
    with progress(len(mine), f"fetching {name} into {cache}") as bar:
        for file in mine:
            _bring(name, files, file, home)
            bar.update()
    from_every_process(None)
    note = {"model": name, "commit": files.commit, "sizes": files.sizes}
    on_main_process(lambda: storage.write_json(home / FETCHED, note))
    return home


def _wanted(name: str, revision: str | None, home: Path) -> dict[str, Any] | None:
    """`_Files` as JSON of what the hub has; None where all of it is here. Its configuration is looked at first."""
    if (home / FETCHED).exists():
        return None
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(name, error) from error
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or []}
    sizes = {f: n for f, n in sizes.items() if any(fnmatch.fnmatchcase(f, p) for p in (*SMALL, *WEIGHTS))}
    there = files_in(home)
    sizes = {f: n for f, n in sizes.items() if "/" not in f}
    files = _Files(str(info.sha), sizes, [f for f, n in sizes.items() if f not in there or there[f].size != n])
    if "config.json" not in files.sizes:
        raise ConfigError(f"{name}: the hub has no config.json there; name a model in Hugging Face's layout")
    _bring(name, files, "config.json", home)
    read_hf_config(home)
    files = dataclasses.replace(files, missing=[f for f in files.missing if f != "config.json"])
    return dataclasses.asdict(files)


def _bring(name: str, files: _Files, file: str, home: Path) -> None:
    """One file, by way of a temporary directory. Raises IAError unless all of it came."""
    import huggingface_hub

    with tempfile.TemporaryDirectory(dir=None if storage.in_bucket(home) else _made(home)) as directory:
        try:
            local = Path(huggingface_hub.hf_hub_download(name, file, revision=files.commit, local_dir=directory))
        except Exception as error:
            raise _failed(f"{name}: {file}", error) from error
        if local.stat().st_size != files.sizes[file]:
            raise IAError(
                f"{name}: {file}: {local.stat().st_size} of {files.sizes[file]} bytes came; give the same command again"
            )
        move_to(local, home / file)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _check(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"{name}: neither 'smollm2', a .gguf file, a directory nor a Hugging Face hub id")


def _failed(what: str, error: Exception) -> IAError:
    """The hub client raises many kinds; all mean that the model did not arrive."""
    reason = str(error).strip().splitlines()
    return IAError(f"{what}: cannot be fetched ({reason[0] if reason else type(error).__name__})")
