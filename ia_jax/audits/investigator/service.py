"""Requests that come one by one, answered many at a time; and every answer that could be had again, kept on disk.

Those that wait while a batch is decoded make the next one. So a killed audit finds its models' replies again, and the
conversation that it had goes on word for word (which is what lets Claude's answers be found again too).
"""

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
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
        todo = list(dict.fromkeys(r for r in requests if r.repeatable and self._find(r) is None))
        fresh = dict(zip(todo, self._answer(todo), strict=True)) if todo else {}
        once = [i for i, r in enumerate(requests) if not r.repeatable]
        others = dict(zip(once, self._answer([requests[i] for i in once]), strict=True)) if once else {}
        return [others[i] if i in others else fresh.get(r) or self._sure(r) for i, r in enumerate(requests)]

    def _sure(self, request: Request) -> Completion:
        found = self._find(request)
        assert found is not None
        return found

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
                replies = self.ask([request for request, _ in batch])
            except BaseException as error:  # whoever waits must hear of it
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), reply in zip(batch, replies, strict=True):
                future.set_result(reply)

    def _answer(self, requests: Sequence[Request]) -> list[Completion]:
        """Kept as each batch ends: what is killed in the middle of thousands goes on from there."""
        replies: dict[int, Completion] = {}
        bar = progress(len(requests), "replies") if len(requests) > ROWS_AT_ONCE else contextlib.nullcontext()
        with bar as shown:
            for batch in self.engine.batches(requests):
                self._keep({requests[i]: reply for i, reply in batch.items() if requests[i].repeatable})
                replies |= batch
                if shown is not None:
                    shown.update(len(batch))
        self.batches.append(len(requests))
        return [replies[i] for i in range(len(requests))]

    def _keep(self, replies: Mapping[Request, Completion]) -> None:
        rows = []
        for request, reply in replies.items():
            key = self._key(request)
            self._known[key] = reply
            rows.append({"key": key, "target": request.target, "ia": request.ia, **reply.to_json()})
        if self._kept is not None and rows:
            append_jsonl(self._kept, rows)

    def _find(self, request: Request) -> Completion | None:
        return self._known.get(self._key(request)) if request.repeatable else None

    def _key(self, request: Request) -> str:
        return request.key(self.engine.weights(request.target, request.ia))
