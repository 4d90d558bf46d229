"""Requests that come one by one, answered many at a time; and every answer that could be had again, kept on disk.

Those that wait while a batch is decoded make the next one. So a killed audit finds its models' replies again, and the
conversation that it had goes on word for word (which is what lets Claude's answers be found again too).
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from ia_jax.audits.investigator.engine import ROWS_AT_ONCE, Engine
from ia_jax.audits.investigator.requests import Completion, Request
from ia_jax.progress import progress
from ia_jax.storage import append_jsonl, read_appended

QUIET = 0.02  # seconds without another request after which a batch begins


class Service:
    """Answers from a file where they are there, else from the engine. `kept`: the file, or None for none."""

    def __init__(self, engine: Engine, kept: Path | None = None, quiet: float = QUIET):
        self.engine, self._kept, self._quiet = engine, kept, quiet
        self.batches: list[int] = []  # sizes, for whoever wonders how full they are
        rows = read_appended(kept, "delete it, and what it held is asked again") if kept else []
        self._known = {row["key"]: Completion.from_json(row) for row in rows}
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Completion]] | None] = queue.SimpleQueue()
        self._lock, self._thread = threading.Lock(), None

    def submit(self, request: Request) -> "Future[Completion]":
        """Raises ConfigError at once for a request that cannot be answered."""
        self.engine.check(request)
        future: Future[Completion] = Future()
        known = self._find(request)
        if known is not None:
            future.set_result(known)
            return future
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="ia_jax replies")
                self._thread.start()
        self._waiting.put((request, future))
        return future

    def ask(self, requests: Sequence[Request]) -> list[Completion]:
        """The replies to requests that are all there already."""
        replies = {i: reply for found in self._replies(requests) for i, reply in found.items()}
        return [replies[i] for i in range(len(requests))]

    def _replies(self, requests: Sequence[Request]) -> Iterator[dict[int, Completion]]:
        """Replies by index as they come; each is kept before anybody hears of it, so what is killed among thousands
        goes on from there. The same request is asked once, unless it wants another draw every time.
        """
        known: dict[int, Completion] = {}
        asked: dict[Request | int, list[int]] = {}
        for i, request in enumerate(requests):
            found = self._find(request)
            if found is not None:
                known[i] = found
            else:
                asked.setdefault(request if request.repeatable else i, []).append(i)
        if known:
            yield known
        if not asked:
            return
        where = list(asked.values())
        unique = [requests[own[0]] for own in where]
        self.batches.append(len(unique))  # before anybody hears of a reply, and may look
        bar = progress(len(unique), "replies") if len(unique) > ROWS_AT_ONCE else contextlib.nullcontext()
        with bar as shown:
            for batch in self.engine.batches(unique):
                self._keep({unique[n]: reply for n, reply in batch.items() if unique[n].repeatable})
                if shown is not None:
                    shown.update(len(batch))
                yield {i: reply for n, reply in batch.items() for i in where[n]}

    def _keep(self, replies: Mapping[Request, Completion]) -> None:
        rows = []
        for request, reply in replies.items():
            key = self._key(request)
            self._known[key] = reply
            rows.append({"key": key, "target": request.target, "ia": request.ia, **reply.to_json()})
        if self._kept is not None and rows:
            append_jsonl(self._kept, rows)

    def close(self) -> None:
        """Ends the thread; what waits is answered first."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _work(self) -> None:
        ending = False
        while not ending:
            first = self._waiting.get()
            if first is None:
                return
            batch, deadline = [first], time.monotonic() + self._quiet
            while not ending:
                try:
                    another = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                ending = another is None
                if another is not None:
                    batch.append(another)
                    deadline = time.monotonic() + self._quiet
            try:
                for found in self._replies([request for request, _ in batch]):
                    for future, reply in ((batch[i][1], reply) for i, reply in found.items()):
                        if not future.done():  # whoever asked may have given up
                            future.set_result(reply)
            except BaseException as error:  # whoever still waits must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _find(self, request: Request) -> Completion | None:
        return self._known.get(self._key(request)) if request.repeatable else None

    def _key(self, request: Request) -> str:
        return request.key(self.engine.weights(request.target, request.ia))
