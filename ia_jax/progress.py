"""How far everything that takes long has come: a bar on a terminal, a line now and then where nobody watches.

Nothing heavy is imported here, so that `ia-jax --help` is instant.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

EVERY = 30.0  # seconds between two lines in a log


class Pace:
    """When the next line is due: `EVERY` seconds after the last one, whichever work said it.

    So many short pieces of work in a row tell how they are going too, and no log fills up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.said = clock, clock()

    def is_due(self) -> bool:
        now = self.clock()
        if now - self.said < EVERY:
            return False
        self.said = now
        return True


class Lines:
    """Stands in for a bar in a log: "sft: 40 of 100, loss 0.812, about 3 min left", where one is due."""

    def __init__(self, total: int, description: str, initial: int, pace: Pace, stream: TextIO | None = None):
        self.total, self.description, self.done, self.pace = total, description, initial, pace
        self.stream, self.postfix = stream, ""
        self.first: tuple[int, float] | None = None  # the first update, which may have waited for the compiler

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Counts `n` more. What was set by `set_postfix_str` belongs to those before, as on a bar."""
        self.done += n
        if self.first is None:
            self.first = self.done, self.pace.clock()
        if self.pace.is_due():
            print(self._line(), file=self.stream or sys.stderr, flush=True)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.postfix = text

    def _line(self) -> str:
        parts = [f"{self.description}: {self.done} of {self.total}", self.postfix, self._time_left()]
        return ", ".join(part for part in parts if part)

    def _time_left(self) -> str:
        if self.first is None or self.done == self.first[0] or self.done >= self.total:
            return ""
        each = (self.pace.clock() - self.first[1]) / (self.done - self.first[0])
        return f"about {duration(each * (self.total - self.done))} left"


_PACE = Pace()  # of this process: all of its lines go to one log


def progress(total: int, description: str, initial: int = 0) -> Any:
    """A progress bar with time left, on stderr of process 0; lines in its place where stderr is no terminal."""
    import jax
    from tqdm import tqdm

    # `is_initialized` first: alone, `process_index` would wake the devices.
    if jax.distributed.is_initialized() and jax.process_index() > 0:
        return tqdm(total=total, disable=True)
    if sys.stderr is None or not sys.stderr.isatty():
        return Lines(total, description, initial, _PACE)
    return tqdm(total=total, desc=description, initial=initial, dynamic_ncols=True, mininterval=1.0)


def duration(seconds: float) -> str:
    """Seconds in words: "4 s", "3 min 10 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
