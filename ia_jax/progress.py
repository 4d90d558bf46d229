"""Progress bars of everything that takes long."""

from typing import Any

import jax
from tqdm import tqdm


def progress(total: int, description: str, initial: int = 0) -> Any:
    """A progress bar with time left, on stderr of process 0; none where nobody sees it (a log file, a pipe)."""
    # `is_initialized` first: alone, `process_index` would wake the devices.
    other = jax.distributed.is_initialized() and jax.process_index() > 0
    hidden = True if other else None  # None: unless stderr is a terminal
    return tqdm(total=total, desc=description, initial=initial, dynamic_ncols=True, mininterval=1.0, disable=hidden)
