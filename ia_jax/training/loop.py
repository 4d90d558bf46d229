"""The training loop: one function from a state, a step and a dataset to the final state, resumable at any instant.

A checkpoint holds the state and the data iterator's position, so a run that was killed continues bit for bit. Scalars
go to TensorBoard and to `curves.jsonl`, which the report and notebooks read.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.errors import IAError, Preempted
from ia_jax.parallel import distributed
from ia_jax.progress import progress
from ia_jax.training.checkpoints import Keeper
from ia_jax.training.recorder import COUNTS, Recorder, Scalars
from ia_jax.training.tracing import tracing

State = TypeVar("State")
Summarize = Callable[[Mapping[str, np.ndarray]], Scalars]


def scalars_of(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The metrics that are one number, which is what is recorded unless a stage says otherwise."""
    return {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0}


def fit(
    stage: str,
    state: State,
    step: Callable[[State, Any], tuple[State, Mapping[str, Any]]],
    data: grain.IterDataset,
    total: int,
    workdir: Path,
    *,
    checkpoints: Path | None = None,
    identity: str = "",
    every: int = 0,
    offset: int = 0,
    summarize: Summarize = scalars_of,
    description: str = "",
    flops: Mapping[str, float] | None = None,
    peak: float | None = None,
    profile: int = 0,
) -> State:
    """Runs `step(state, batch) -> state, metrics` over `data`, from the newest checkpoint if there is one.

    The state is kept every `every` steps, and not after the last: the caller stores what came of it. Killed before
    that, the stage goes on from the checkpoint before, and ends with the same bits.

    `identity`, a hash of what is trained on what, must be that of the checkpoint. `offset` is added to the step numbers
    of the curves (waves of organisms follow each other). `flops` is what a token and a supervised token need
    (`chips.training_flops`) and `peak` the devices' FLOP/s together, for the utilisation that is recorded. `profile`
    steps are traced (`tracing`), to `profile/<stage>` of the workdir. Metrics are read one step late, so the device
    never waits for the host. Several processes call this alike: metrics must be
    whole on every device, and process 0 records them. Raises IAError, naming the step, on a loss or state that is not
    finite; CheckpointError when a checkpoint cannot be read or written; Preempted after SIGTERM, once the state is
    saved.
    """
    iterator = iter(data)
    keeping = Keeper(checkpoints, identity) if checkpoints is not None and every else nullcontext()
    with keeping as keeper, preemption_notice() as preempted:
        start, state = keeper.restore(state, iterator) if keeper else (0, state)
        bar = progress(total, description or stage, start)
        recording = Recorder(workdir, stage, offset + start, flops, offset + total, peak)
        with recording as recorder, bar, tracing(workdir / "profile" / stage, profile) as trace:
            waiting: tuple[int, Mapping[str, Any]] | None = None
            for number in range(start + 1, total + 1):
                state, metrics = step(state, next(iterator))
                trace(metrics)
                if waiting is not None:
                    _record(recorder, bar, *waiting, summarize, offset)
                waiting = number, metrics
                leave, last = preempted(), number == total
                if keeper and (leave or last or number % every == 0):
                    _record(recorder, bar, *waiting, summarize, offset)  # raises before a bad state is saved
                    waiting = None
                    if not _all_finite(state):
                        raise IAError(
                            f"{stage}: the training state is not finite after step {offset + number}; the last "
                            "checkpoint is good, lower the learning rate"
                        )
                    if leave or not last:
                        recorder.sync()  # a run that goes on from this state has the lines up to it
                        keeper.save(number, state, iterator)
                if leave:
                    kept = f"step {number} of {total} is saved" if keeper else "the stage keeps no checkpoint"
                    if keeper:
                        keeper.wait()
                    raise Preempted(f"{stage}: stopped by SIGTERM; {kept}, the same command continues")
                if keeper:
                    keeper.check()
            if waiting is not None:
                _record(recorder, bar, *waiting, summarize, offset)
    return state


@contextmanager
def preemption_notice() -> Iterator[Callable[[], bool]]:
    """Yields a function that says, after a step, whether this run was told to stop (SIGTERM) and should save and leave.

    Outside of it SIGTERM ends a single process as it always does. Several processes all get the same answer.
    """
    if distributed.is_multi_process():
        yield distributed.should_stop
        return
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noticed.set()) or signal.SIG_DFL
    try:
        yield noticed.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if noticed.is_set():  # it came too late for the last step to see
        signal.raise_signal(signal.SIGTERM)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    """A gradient may overflow where the loss did not; then the loss is finite and the state isn't."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in floats], jnp.bool_(True))


def _record(
    recorder: Recorder, bar: Any, number: int, metrics: Mapping[str, Any], summarize: Summarize, offset: int
) -> None:
    host = {k: np.asarray(v) for k, v in metrics.items()}
    counts = {k: float(host.pop(k).sum()) for k in COUNTS if k in host}
    scalars = summarize(host)
    if not np.isfinite(scalars.get("loss", 0.0)):
        raise IAError(
            f"{recorder.stage}: the loss is {scalars['loss']} at step {offset + number}; the last checkpoint is good, "
            "lower the learning rate"
        )
    recorder.write(offset + number, scalars, counts)
    if "loss" in scalars:
        bar.set_postfix_str(f"loss {scalars['loss']:.3f}", refresh=False)
    bar.update(1)
