"""The training loop: one function from a state, a step and a dataset to the final state, resumable at any instant.

A checkpoint holds the state and the data iterator's position, so a run that was killed continues bit for bit. Scalars
go to TensorBoard and to `curves.jsonl`, which the report and notebooks read.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ia_jax.errors import CheckpointError, IAError

State = TypeVar("State")
Scalars = Mapping[str, float]


class Recorder:
    """Writes a stage's scalars; a context manager, so that nothing is left unflushed. Drops lines past `step` first."""

    def __init__(self, workdir: Path, stage: str, step: int = 0):
        self.stage, self.path = stage, workdir / "curves.jsonl"
        if self.path.exists():
            text = self.path.read_text()
            kept = "".join(x + "\n" for x in text.splitlines() if _is_kept(x, stage, step))
            if kept != text:
                temporary = self.path.with_name("curves.partial.jsonl")
                temporary.write_text(kept)
                temporary.replace(self.path)
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=step)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.board.close()

    def write(self, step: int, scalars: Scalars) -> None:
        row = {"stage": self.stage, "step": step, **{k: float(f"{v:.6g}") for k, v in scalars.items()}}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)


def _is_kept(line: str, stage: str, step: int) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:  # half a line: the run was killed while it wrote
        return False
    return row["stage"] != stage or row["step"] <= step


def progress(total: int, description: str, initial: int = 0) -> Any:
    """A progress bar with time left, on stderr."""
    return tqdm(total=total, desc=description, initial=initial, dynamic_ncols=True, mininterval=1.0)


def fit(
    stage: str,
    state: State,
    step: Callable[[State, Any], tuple[State, Mapping[str, Any]]],
    data: grain.IterDataset,
    total: int,
    workdir: Path,
    *,
    checkpoints: Path | None = None,
    every: int = 0,
    offset: int = 0,
    summarize: Callable[[Mapping[str, np.ndarray]], Scalars] | None = None,
    description: str = "",
) -> State:
    """Runs `step(state, batch) -> state, metrics` over `data`, from the newest checkpoint if there is one.

    `offset` is added to the step numbers of the curves (waves of organisms follow each other). Metrics are read one
    step late, so that the device never waits for the host. A loss that is not finite raises, naming the step.
    """
    summarize = summarize or (lambda m: {k: float(v) for k, v in m.items() if np.ndim(v) == 0})
    iterator = iter(data)
    start = 0
    keeper = None
    if checkpoints is not None and every:
        keeper = ocp.training.Checkpointer(
            os.path.abspath(checkpoints),  # Orbax takes no other, and --workdir is often relative
            preservation_policy=ocp.training.preservation_policies.LatestN(1),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )
        if keeper.latest is not None:
            start, state = _restore(keeper, state, iterator, checkpoints)
    try:
        with Recorder(workdir, stage, offset + start) as recorder, progress(total, description or stage, start) as bar:
            waiting: tuple[int, Mapping[str, Any]] | None = None
            for number in range(start + 1, total + 1):
                state, metrics = step(state, next(iterator))
                if waiting is not None:
                    _record(recorder, bar, *waiting, summarize, offset)
                waiting = number, metrics
                if keeper is not None and (number % every == 0 or number == total):
                    _record(recorder, bar, *waiting, summarize, offset)  # raises before a bad state is saved
                    waiting = None
                    if not _all_finite(state):
                        raise IAError(
                            f"{stage}: the training state is not finite after step {offset + number}; the last "
                            "checkpoint is good, lower the learning rate"
                        )
                    keeper.save_checkpointables(number, {"state": state, "data": iterator})
            if waiting is not None:
                _record(recorder, bar, *waiting, summarize, offset)
    finally:
        if keeper is not None:
            keeper.close()
    return state


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    """A gradient may overflow where the loss did not; then the loss is finite and the state isn't."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in floats], jnp.bool_(True))


def _record(
    recorder: Recorder,
    bar: Any,
    number: int,
    metrics: Mapping[str, Any],
    summarize: Callable[[Mapping[str, np.ndarray]], Scalars],
    offset: int,
) -> None:
    scalars = summarize({k: np.asarray(v) for k, v in metrics.items()})
    if not np.isfinite(scalars["loss"]):
        raise IAError(
            f"{recorder.stage}: the loss is {scalars['loss']} at step {offset + number}; the last checkpoint is good, "
            "lower the learning rate"
        )
    recorder.write(offset + number, scalars)
    bar.update(1)
    bar.set_postfix_str(f"loss {scalars['loss']:.3f}", refresh=False)


def _restore(keeper: Any, state: State, iterator: Any, directory: Path) -> tuple[int, State]:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    step = keeper.latest.step
    try:
        loaded = keeper.load_checkpointables(step, {"state": abstract, "data": iterator})
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{directory}/{step}: the training state cannot be read ({reason}); delete "
            f"{directory} to start the stage again"
        ) from error
    return step, loaded["state"]
