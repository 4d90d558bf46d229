"""What preferences are measured from: log-probabilities of a plan's examples, computed once and kept."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.parallel.mesh import to_host
from ia_jax.progress import progress
from ia_jax.storage import in_bucket, replacing


def stored_reference(file: Path, steps: int, logps: Callable[[int], Any], what: str = "reference") -> np.ndarray:
    """[steps, K, E] of `logps(step)` [K, E], from `file` if it is there, else computed and kept there.

    The file's name has to say what it was computed from: by a hash of the adapters, tokens and plan, another is a miss
    and never a silent reuse. Raises ConfigError for a number that is not finite, and keeps nothing then.
    """
    if on_main_process(file.exists):
        return np.load(BytesIO(file.read_bytes()), allow_pickle=False)  # numpy opens no file in a bucket
    rows = []
    with progress(steps, what) as bar:
        for step in range(steps):
            rows.append(finite(to_host(logps(step)), f"{what}, step {step + 1}"))
            bar.update(1)
            stop_if_preempted(what)
    on_main_process(lambda: _keep(file, np.stack(rows)))
    return np.stack(rows)


def finite(logps: np.ndarray, what: str) -> np.ndarray:
    """The array [K, E], unless a number in it is not finite: then ConfigError says where."""
    bad = np.argwhere(~np.isfinite(logps))
    if len(bad):
        organism, example = bad[0]
        raise ConfigError(
            f"{what}: the log-probability of example {example} of organism {organism} is {logps[organism, example]}; "
            "an adapter below the trained one is broken (ia-jax adapters verify), or the base overflows in this dtype"
        )
    return logps


def _keep(file: Path, values: np.ndarray) -> None:
    """Several runs may compute the same at the same time, where they share a directory."""
    mine = file if in_bucket(file) else file.with_name(f"{os.getpid()}-{file.name}")
    with replacing(mine) as temporary, temporary.open("wb") as opened:
        np.save(opened, values)
    if mine != file:
        mine.replace(file)
