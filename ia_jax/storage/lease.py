"""One run at a time in a workdir: a lock that goes with the process, or in a bucket a lease that has to be renewed.

The lease is the object `<workdir>/.lock`. Its holder writes it anew every `BEAT` seconds, each time over the generation
that it wrote before; leaving, it takes it away. One that has not changed for `TERM` seconds belongs to nobody any more,
and whoever replaces exactly that generation holds it next. No two clocks are compared: who wants the lease watches it
for so long by its own. A holder that could not renew it for `SAFE` seconds, because the bucket did not answer or the
machine stood still, writes nothing more, before anybody else can have it.

A holder that is known to be dead, a process of this very machine, is not waited for.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ia_jax.errors import IAError
from ia_jax.storage import bucket

BEAT, SAFE, TERM = 10.0, 40.0, 60.0  # seconds
LOOK = 1.0  # seconds between two looks at a lease that somebody else holds

Path = os.PathLike[str]


@contextmanager
def leased(directory: Path) -> Iterator[None]:
    """Holds the lease of a workdir in a bucket. Raises IAError where another run has it.

    Where it is lost inside, everything that writes below `directory` raises IAError from then on.
    """
    lease = _Lease(directory)
    lease.take()
    beating = threading.Thread(target=lease.beat, name="lease", daemon=True)
    beating.start()
    try:
        with bucket.guarded(directory, lease.check):
            yield
    finally:
        lease.ended.set()
        beating.join()
        lease.leave()


class _Lease:
    def __init__(self, directory: Path):
        self.directory, self.path = directory, f"{directory}/.lock"
        self.ended, self.lost = threading.Event(), ""
        self.holder = {"run": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(), "on": _machine()}
        self.beats, self.generation, self.renewed = 0, 0, 0.0

    def take(self) -> None:
        began, seen = _now(), None
        while True:
            there = bucket.find(self.path)
            silent = there is not None and there.generation == seen and _now() - began >= TERM
            if there is None or silent or self._is_dead(there.generation):
                with suppress(bucket.ChangedError):
                    self._renew(there.generation if there else 0)
                    return
                raise self._refused()
            if seen not in (None, there.generation):
                raise self._refused()
            seen = there.generation
            time.sleep(LOOK)

    def _renew(self, over: int) -> None:
        # The time from before the write: what others see begins no earlier.
        began, self.beats = _now(), self.beats + 1
        content = json.dumps({**self.holder, "beat": self.beats}).encode()
        self.generation = bucket.write(self.path, content, over, patience=BEAT).generation
        self.renewed = began

    def beat(self) -> None:
        """Renews the lease until it is left or lost; in a thread of its own."""
        while not self.ended.wait(BEAT):
            with suppress(IAError, OSError):  # the bucket does not answer; `check` says so when it has been too long
                try:
                    self._renew(self.generation)
                except bucket.ChangedError:
                    # Perhaps by the last renewal, which was done though no answer came.
                    own = self._own_generation()
                    if own is None:
                        self.lost = "another run has taken it"
                        return
                    self.generation = own

    def check(self) -> None:
        """Raises IAError where this process may not write any more."""
        late = _now() - self.renewed > SAFE
        # The thread that renews comes here too. Merely late it is let through: nobody else has had the lease.
        if self.lost or (late and threading.current_thread().name != "lease"):
            why = self.lost or f"it could not be renewed for {SAFE:g} s"
            raise IAError(
                f"the lease on {self.directory} is lost ({why}); nothing more is written, the same command goes on "
                "from what is there"
            )

    def leave(self) -> None:
        with suppress(IAError, OSError):
            if not self.lost and self._own_generation() is not None:
                bucket.remove(self.path, missing_ok=True)

    def _own_generation(self) -> int | None:
        """The generation that is there, if this run wrote it; None of another's. Raises IAError or OSError."""
        there = bucket.find(self.path)
        with suppress(ValueError, KeyError, TypeError):
            if there is not None and json.loads(bucket.read(self.path, there.generation))["run"] == self.holder["run"]:
                return there.generation
        return None

    def _is_dead(self, generation: int) -> bool:
        """Whether the lease is that of a process of this machine that has ended."""
        try:
            held = json.loads(bucket.read(self.path, generation))
            return held["on"] == self.holder["on"] and not os.path.exists(f"/proc/{int(held['pid'])}")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _refused(self) -> IAError:
        try:
            held = json.loads(bucket.read(self.path))
            who = f" (process {held['pid']} on {held['host']})"
        except (OSError, ValueError, KeyError, TypeError):
            who = ""
        return IAError(f"another ia-jax{who} is working in {self.directory}; wait for it, or use another --workdir")


def _now() -> float:
    """Seconds, also while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """What process numbers are unique in: this boot of this machine, and the container; "" where it is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return secrets.token_hex(8)  # like no other: then nobody is known to be dead
