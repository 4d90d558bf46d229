"""A stage's training state on disk: written while training goes on, and a failed write is reported at the next step."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from ia_jax.adapters.record import one_line
from ia_jax.errors import CheckpointError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.storage import in_bucket

State = TypeVar("State")


class Keeper:
    """Keeps the newest complete training state (a pytree and the position of its data) in `directory`.

    `identity` says what is trained on what (a hash): a state of another is refused.

    One write is under way at most. A context manager: leaving it waits for that write. Several processes write one
    checkpoint together, which any number of them can read, onto any mesh.
    """

    def __init__(self, directory: Path, identity: str = ""):
        self.directory, self.identity = directory, identity
        context = ocp.Context()
        context.array.saving.use_compression = False  # trained floats hardly compress, and it takes half the time
        # The data's position is the same in every process. An iterator saved as such would write a file for each
        # process, which only as many processes could read.
        registry = ocp.handlers.local_registry()
        context.checkpointables.registry = registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        self._orbax = ocp.training.Checkpointer(
            str(directory) if in_bucket(directory) else os.path.abspath(directory),  # relative ones it does not take
            preservation_policy=ocp.training.preservation_policies.LatestN(1),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
            context=context,
        )
        self._waiter = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        raised = kind is not None
        try:
            self.wait()
        except CheckpointError:
            if not raised:  # what is being raised already came first
                raised = True
                raise
        finally:
            self._waiter.shutdown()
            try:
                self._orbax.close()
            except Exception as error:
                if not raised:  # else it says once more what is being raised
                    raise CheckpointError(f"{self.directory}: closing failed ({one_line(error)})") from error

    def restore(self, state: State, iterator: Any) -> tuple[int, State]:
        """(steps done, state) of the newest checkpoint, with `iterator` set to its place; (0, `state`) without one.

        Where there is one, `state` is given up, so that memory never holds both. Raises CheckpointError if it cannot be
        read, was made from something else, or belongs to a state of other shapes than `state`.
        """
        step = on_main_process(lambda: self._orbax.latest.step if self._orbax.latest else None)
        if step is None:
            return 0, state
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        jax.tree.map(lambda x: x.delete(), state)
        again = f"delete {self.directory} to start the stage again"
        try:
            data = self._orbax.load_checkpointables(step, {"data": None})["data"]
            if data["identity"] != self.identity:
                raise CheckpointError(
                    f"{self.directory}/{step}: this training state was made from other organisms, data or settings "
                    f"than there are now; put them back, or {again}"
                )
            iterator.set_state(data["position"])
            return step, self._orbax.load_checkpointables(step, {"state": abstract})["state"]
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self.directory}/{step}: the training state cannot be read ({one_line(error)}); {again}"
            ) from error

    def save(self, number: int, state: Any, iterator: Any) -> None:
        """Begins to write the state after step `number`; raises if the write before it failed."""
        self.wait()
        if jax.default_backend() == "cpu":  # there Orbax would write from buffers that the next step is given
            state = jax.tree.map(lambda x: x.copy(), state)
        try:
            data = {"position": iterator.get_state(), "identity": self.identity}
            response = self._orbax.save_checkpointables_async(number, {"state": state, "data": data})
        except Exception as error:
            raise self._failed(number, error) from error
        if response is not None:
            self._writing = number, self._waiter.submit(response.result)

    def check(self) -> None:
        """Raises CheckpointError if the write that was under way has failed."""
        if self._writing is not None and self._writing[1].done():
            self.wait()

    def wait(self) -> None:
        """Until the state is on disk. Raises CheckpointError if it could not be written."""
        if self._writing is None:
            return
        number, future = self._writing
        self._writing = None
        try:
            future.result()
        except Exception as error:
            raise self._failed(number, error) from error

    def _failed(self, number: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}: the training state of step {number} could not be written ({one_line(error)}); the one "
            "before it is untouched; make room and give the same command again"
        )
