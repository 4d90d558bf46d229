"""What a stage tells while it runs: curves on disk, TensorBoard scalars, a progress bar."""

import json
import math
import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter, register_writer_factory

from ia_jax.errors import IAError
from ia_jax.parallel import distributed
from ia_jax.storage import appending, parts, write_text

Scalars = Mapping[str, float]
COUNTS = ("tokens", "supervised_tokens")  # a step's metrics of these names become rates


class _InBucket:
    """Where tensorboardX writes to `gs://`. Its own way rewrites the whole file at each step."""

    def open(self, path: str) -> parts.Growing:
        return parts.Growing(path)

    def directory_check(self, path: str) -> None:
        pass


register_writer_factory("gs", _InBucket())


class Board:
    """TensorBoard event files, written in the caller's thread: at once, or in a bucket every few seconds, and there a
    new one each MiB, for each is written again as it grows. TensorBoard reads them one after another.

    tensorboardX's SummaryWriter writes in another thread, where a full disk is no error but tracebacks at exit.
    """

    def __init__(self, directory: Path, purge_step: int | None):
        directory.mkdir(parents=True, exist_ok=True)
        self._name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._directory, self._numbers = directory, count()
        self._open(purge_step or 0)
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def _open(self, step: int) -> None:
        # Short waves begin in the same second; the second must not overwrite the first.
        paths = (self._directory / f"{self._name}.{number:03d}" for number in self._numbers)
        self.path = next(path for path in paths if not path.exists())
        self._records = RecordWriter(str(self.path))
        self._write(Event(step=step, file_version="brain.Event:2"))

    def write(self, step: int, scalars: Scalars) -> None:
        writer = self._records._writer
        if isinstance(writer, parts.Growing) and writer.size >= parts.PART_BYTES:
            self.close()
            self._open(step)
        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        self._records.close()


class Recorder:
    """Writes a stage's scalars to `curves.jsonl` and TensorBoard; what depends on the clock, to the latter alone.

    So two runs of one config have equal curves. A context manager; drops lines in (step, end] first, which a run that
    is continued writes again (end: its last step; None: drops all past `step`). Lines past `end` are those of later
    waves, trained before this one was trained again. Of several processes only process 0 writes. Raises OSError, with
    the file's name.

    flops: what each item of `COUNTS` needs (`chips.training_flops`). With it and `peak` (FLOP/s of
    all devices together) the model FLOPs utilisation is recorded: FLOPs of real tokens, nothing for padding or
    recomputation.
    """

    def __init__(
        self,
        workdir: Path,
        stage: str,
        step: int = 0,
        flops: Mapping[str, float] | None = None,
        end: int | None = None,
        peak: float | None = None,
    ):
        self.stage, self.path, self.flops, self.peak = stage, workdir / "curves.jsonl", flops or {}, peak
        self.later = False  # whether there are lines past `end`
        if distributed.is_main_process() and self.path.exists():
            last = math.inf if end is None else end
            rows = self._read()
            self.later = any(row["step"] > last for _, row in rows if row["stage"] == stage)
            self._replace(x for x, row in rows if row["stage"] != stage or not step < row["step"] <= last)
        self.directory, self.step = workdir / "tensorboard" / stage, step
        self.clock = time.monotonic()

    # Opened by the first line, so that a stage which fails before it leaves nothing behind.
    @cached_property
    def file(self) -> parts.Appended:
        return appending(self.path)

    @cached_property
    def board(self) -> Board:
        # TensorBoard would purge all later steps with those that come again; so it draws these twice.
        return Board(self.directory, None if self.later else self.step)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        for opened in vars(self).keys() & {"file", "board"}:
            try:
                try:
                    if opened == "file" and kind is None:
                        self.sync()
                finally:
                    getattr(self, opened).close()
            except (OSError, IAError):  # what could not be written is tried again, and closed all the same
                if kind is None:
                    raise
        if self.later and kind is None:
            self._sort()

    def sync(self) -> None:
        """Until the lines written so far would outlive this machine; before a training state that is beyond them."""
        if "file" in vars(self):
            with _naming(self.path):
                self.file.sync()

    def _sort(self) -> None:
        """Puts the stage's lines together in the order of their steps, as if no wave had been trained again."""
        rows = self._read()
        first = next(i for i, (_, row) in enumerate(rows) if row["stage"] == self.stage)
        own = sorted((r for r in rows if r[1]["stage"] == self.stage), key=lambda r: r[1]["step"])
        others = [r for r in rows if r[1]["stage"] != self.stage]
        self._replace(x for x, _ in [*others[:first], *own, *others[first:]])

    def _read(self) -> list[tuple[str, dict[str, Any]]]:
        """Lines with what they say; without half a line, of a run that was killed while it wrote."""
        rows = []
        for line in self.path.read_text().split("\n"):
            with suppress(json.JSONDecodeError):
                rows.append((line, json.loads(line)))
        return rows

    def _replace(self, lines: Iterable[str]) -> None:
        text = "".join(x + "\n" for x in lines)
        if text != self.path.read_text():
            write_text(self.path, text)

    def write(self, step: int, scalars: Scalars, counts: Scalars | None = None) -> None:
        """scalars: of this step. counts: how many of each were processed since the line before (`COUNTS`)."""
        if not distributed.is_main_process():
            return
        if scalars:
            row = {"stage": self.stage, "step": step, **{k: float(f"{v:.6g}") for k, v in scalars.items()}}
            with _naming(self.path):
                self.file.write(f"{json.dumps(row)}\n".encode())
                self.file.flush()
        now = time.monotonic()
        seconds, self.clock = max(now - self.clock, 1e-9), now
        with _naming(self.directory):
            self.board.write(step, {**scalars, **self._speed(counts or {}, seconds), **memory()})

    def _speed(self, counts: Scalars, seconds: float) -> dict[str, float]:
        rates = {f"speed/{k}_per_s": v / seconds for k, v in counts.items()}
        if self.peak and self.flops.keys() <= counts.keys() and self.flops:
            rates["speed/mfu"] = sum(f * counts[k] for k, f in self.flops.items()) / seconds / self.peak
        return rates


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Python's files don't say which one could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def memory() -> dict[str, float]:
    """Peak memory in GiB: of this process, and of the fullest local device where the backend counts it."""
    peak = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts in KiB
    used = [stats.get("peak_bytes_in_use", 0) for d in jax.local_devices() if (stats := d.memory_stats())]
    return peak | ({"memory/device_peak_gib": max(used) / 2**30} if used else {})


def spread(losses: np.ndarray) -> dict[str, float]:
    """Quantiles of the organisms' losses in one step; NaN marks an organism that had nothing to read."""
    losses = losses[np.isfinite(losses)]
    return {f"loss_p{q}": float(np.quantile(losses, q / 100)) for q in (10, 50, 90)} if losses.size else {}
