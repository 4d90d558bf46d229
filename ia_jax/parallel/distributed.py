"""Several processes as one run: how they find each other, and which of them speaks.

Every process runs the same stages over the same config; each computes its own part of a batch, and process 0 alone
writes files and logs. The workdir must be one that all of them see.
"""

import os
from collections.abc import Mapping

import jax

from ia_jax.errors import ConfigError

EXPLICIT = ("IA_JAX_COORDINATOR", "IA_JAX_PROCESSES", "IA_JAX_PROCESS")
AUTO = "IA_JAX_DISTRIBUTED"


def start(environ: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes, where the environment says that there are any; must come before the first computation.

    Explicitly: IA_JAX_COORDINATOR=host:port, IA_JAX_PROCESSES=n, IA_JAX_PROCESS=i. Under Slurm with several tasks, or
    with IA_JAX_DISTRIBUTED=auto (set by `launch/`; TPU pods and others that jax knows): jax finds out by itself.
    Returns whether there are several. Raises ConfigError where the variables do not fit together.
    """
    given = [name for name in EXPLICIT if name in environ]
    if given and len(given) < len(EXPLICIT):
        missing = next(name for name in EXPLICIT if name not in environ)
        raise ConfigError(f"{given[0]} is set but {missing} is not; set all of {', '.join(EXPLICIT)}")
    if given:
        count, number = (_number(environ, name) for name in EXPLICIT[1:])
        if not 0 <= number < count:
            raise ConfigError(f"IA_JAX_PROCESS={number} must lie in 0 … {count - 1} (IA_JAX_PROCESSES={count})")
        jax.distributed.initialize(environ[EXPLICIT[0]], count, number)
    elif environ.get(AUTO, "") == "auto" or _slurm_tasks(environ) > 1:
        jax.distributed.initialize()
    elif environ.get(AUTO, ""):
        raise ConfigError(f"{AUTO}={environ[AUTO]} unknown; set it to auto, or leave it out")
    return jax.process_count() > 1


def speaks() -> bool:
    """Whether this process writes files and logs."""
    return jax.process_index() == 0


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    # Of the step, not of the allocation: a plain command inside an allocation is one process.
    return _number(environ, "SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in environ else 1


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(f"{name}={environ[name]} is not a number") from None
