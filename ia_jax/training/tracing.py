"""A trace of some training steps, for TensorBoard or Perfetto: where the time of a step goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from ia_jax.parallel.distributed import is_main_process

WARM = 2  # steps that go before: the first is compiled


@contextmanager
def tracing(directory: Path, steps: int) -> Iterator[Callable[[Any], None]]:
    """Yields a function that takes what each step returned; it traces `steps` steps after the first `WARM`.

    The trace goes to `directory` (0 steps, or one that is there already: none). Of several processes each writes its
    own devices' part. What runs is waited for at both ends, so that the trace holds these steps and no others.
    """
    if not steps or directory.exists():
        yield lambda _: None
        return
    seen, running = 0, False

    def after(returned: Any) -> None:
        nonlocal seen, running
        seen += 1
        if seen == WARM:
            jax.block_until_ready(returned)
            jax.profiler.start_trace(directory)
            running = True
        elif seen == WARM + steps:
            jax.block_until_ready(returned)
            stop()

    def stop() -> None:
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        if is_main_process():
            print(
                f"profile: {min(seen - WARM, steps)} steps in {directory}; tensorboard --logdir={directory}", flush=True
            )

    try:
        yield after
    finally:
        if running:  # there were fewer steps
            stop()
    if seen <= WARM and is_main_process():
        print(
            f"profile: {directory.name} has no more than {WARM} steps here, and these go before the trace", flush=True
        )
