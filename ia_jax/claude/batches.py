"""Message Batches without ever paying twice.

1. A batch is written down, with all that it holds, before it is sent.
2. Its id is written down as soon as the API returns it, before anything is waited for.
3. If no id came back (a kill, a dropped connection), the API's own list is searched for it: every request carries the
   hash of its content as custom_id, so a batch is recognised by its results and by nothing less.
4. Results are fetched until all are there; each is kept before the batch is crossed off.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ia_jax.claude.calls import Call, Garbled
from ia_jax.claude.connection import Connection, failure
from ia_jax.claude.prices import at_most
from ia_jax.claude.retries import delay, is_transient, may_be_billed
from ia_jax.claude.store import COLLECTED, SENDING, WAITING, Batch
from ia_jax.errors import IAError

BYTES = 200_000_000  # the API takes 256 MB
CLOCKS_DIFFER = 3600.0  # seconds by which this machine's clock may be ahead of the API's


def resume(connection: Connection) -> None:
    """Fetches what an earlier process sent and did not fetch. Holds its bound until then."""
    left = [b for b in connection.store.batches() if b.state != COLLECTED]
    if not left:
        return
    connection.budget.owe(sum((Decimal(b.at_most) for b in left), Decimal(0)))
    waiting = []
    for b in left:
        found = b if b.state == WAITING else _find(connection, b)
        if found is None:  # it never arrived
            connection.store.drop_batch(b)
            connection.budget.settle(Decimal(b.at_most), Decimal(0))
        else:
            waiting.append(found)
    _collect(connection, waiting)


def run(connection: Connection, calls: Sequence[Call]) -> None:
    """Asks all calls. Raises BudgetError when the next could pass the cap, after fetching all that was sent."""
    todo = list(calls)
    for _ in range(connection.settings.attempts):
        # As many batches as the cap allows at their bound; they cost less, so there is more room when they are settled.
        while sent := list(_submit(connection, todo)):
            _collect(connection, sent)
            asked = {r["key"] for b in sent for r in b.requests}
            todo = [c for c in todo if c.key not in asked]
        if todo:
            raise connection.over_cap(len(todo))
        todo = [c for c in calls if not connection.store.has(c.key)]
        if not todo:
            return
        print(f"Claude: {len(todo)} requests of a batch failed at the API and were not billed; once more", flush=True)
    tries = connection.settings.attempts
    raise IAError(f"{len(todo)} requests failed in {tries} batches each; give the same command again later")


def _submit(connection: Connection, calls: Sequence[Call]) -> Iterator[Batch]:
    start = 0
    while start < len(calls):
        chosen, bound, size = [], Decimal(0), 0
        for c in calls[start : start + connection.settings.batch_size]:
            more, length = at_most(c, True, connection.models), len(json.dumps(c.request))
            if size + length > BYTES or not connection.budget.hold(more):
                break
            chosen.append(c)
            bound, size = bound + more, size + length
        if not chosen:
            return
        start += len(chosen)
        requests = [{"key": c.key, "sample": c.sample, "request": c.request} for c in chosen]
        name = hashlib.sha256("".join(c.key for c in chosen).encode()).hexdigest()[:24]
        record = Batch(f"{name}-{time.time_ns()}", SENDING, time.time(), str(bound), requests, len(requests))
        yield _create(connection, connection.store.save_batch(record))


def _create(connection: Connection, batch: Batch) -> Batch:
    requests: Any = [{"custom_id": r["key"], "params": r["request"]} for r in batch.requests]

    def send() -> str:
        with _whole():
            return connection.api.messages.batches.create(requests=requests).id

    for attempt in range(connection.settings.attempts):
        try:
            found = send()
        except Exception as error:
            if not _again(connection, error, attempt, batch.name):
                if not may_be_billed(error):
                    connection.store.drop_batch(batch)
                    connection.budget.settle(Decimal(batch.at_most), Decimal(0))
                raise _failed(error, attempt + 1) from None
            # A 5xx of a gateway or a broken connection says nothing of whether the batch was made.
            adopted = _find(connection, batch) if getattr(error, "status_code", 500) >= 500 else None
            if adopted is None:
                continue
            return adopted
        print(f"Claude: sent batch {found}, {batch.count} requests, at most ${Decimal(batch.at_most):.2f}", flush=True)
        return connection.store.save_batch(replace(batch, state=WAITING, id=found))
    raise AssertionError("the last attempt raises")


def _find(connection: Connection, batch: Batch) -> Batch | None:
    """The batch at the API that holds these requests, if there is one; on record with its id."""
    ours = {r["key"] for r in batch.requests}
    known = {b.id for b in connection.store.batches()}

    def candidates() -> list[str]:
        out = []
        with _whole():
            for b in connection.api.messages.batches.list(limit=100):  # newest first, page by page
                if b.created_at.timestamp() < batch.created - CLOCKS_DIFFER:
                    break
                counts = b.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if b.id not in known and total == batch.count:
                    out.append(b.id)
        return out

    for found in _patiently(connection, candidates, batch.name):
        try:
            _await_end(connection, found)
            rows = _results(connection, found, batch.count)
        except _Gone:
            continue
        if {row["custom_id"] for row in rows} == ours:
            return connection.store.save_batch(replace(batch, state=WAITING, id=found))
    return None


def _await_end(connection: Connection, batch_id: str) -> None:
    def ended() -> bool:
        with _whole():
            return connection.api.messages.batches.retrieve(batch_id).processing_status == "ended"

    while not _patiently(connection, ended, batch_id):
        connection.sleep(connection.settings.poll_seconds)


def _results(connection: Connection, batch_id: str, count: int) -> list[dict[str, Any]]:
    def fetch() -> list[dict[str, Any]]:
        with _whole(), connection.api.messages.batches.with_streaming_response.results(batch_id) as response:
            rows = [json.loads(line) for line in response.read().decode().split("\n") if line.strip()]
        if len(rows) != count:
            raise Garbled(f"batch {batch_id} has {len(rows)} results for {count} requests")
        return rows

    return _patiently(connection, fetch, batch_id)


def _collect(connection: Connection, waiting: Sequence[Batch]) -> None:
    """Waits for each and keeps its answers. A refused request is an error, but only after all else is kept."""
    refused = []
    for batch in waiting:
        try:
            _await_end(connection, batch.id)
            rows = _results(connection, batch.id, batch.count)
        except _Gone:
            connection.store.lose_batch(batch, f"the API no longer has batch {batch.id}")
            connection.budget.settle(Decimal(batch.at_most), Decimal(batch.at_most))
            continue
        asked, spent = {r["key"]: r for r in batch.requests}, Decimal(0)
        for row in rows:
            r, result = asked[row["custom_id"]], row["result"]
            if connection.store.has(r["key"]):
                continue  # kept and booked before a kill
            if result["type"] == "succeeded":
                spent += connection.store.save(r["key"], r["sample"], r["request"], result["message"], True)
            elif result["type"] == "errored" and _is_refused(result):
                refused.append(result["error"]["error"].get("message", ""))
        connection.store.save_batch(replace(batch, state=COLLECTED))
        connection.budget.settle(Decimal(batch.at_most), spent)
    if refused:
        raise IAError(f"Claude refused {len(refused)} requests of a batch ({refused[0]}); mend what they ask for")


def _is_refused(result: dict[str, Any]) -> bool:
    return result.get("error", {}).get("error", {}).get("type") == "invalid_request_error"


class _Gone(Exception):
    """A batch that the API does not know, or whose results it has deleted (29 days after it was made)."""


def _patiently(connection: Connection, get: Any, seed: str) -> Any:
    """The result of something that costs nothing to repeat."""
    for attempt in range(connection.settings.attempts):
        try:
            return get()
        except Exception as error:
            # The SDK's own error, of no subclass, where an ended batch has no results any more.
            if getattr(error, "status_code", None) == 404 or type(error).__name__ == "AnthropicError":
                raise _Gone from None
            if not _again(connection, error, attempt, seed):
                raise _failed(error, attempt + 1) from None
    raise AssertionError("the last attempt raises")


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """An answer that is cut off reaches us as text, or not at all, where the SDK promises an object."""
    try:
        yield
    except (AttributeError, ValueError) as error:
        raise Garbled(f"answer is no object of the API ({error})") from None


def _again(connection: Connection, error: Exception, attempt: int, seed: str) -> bool:
    if attempt + 1 == connection.settings.attempts or not is_transient(error):
        return False
    connection.sleep(delay(error, attempt, seed))
    return True


def _failed(error: Exception, attempts: int) -> Exception:
    import anthropic

    return failure(error, attempts) if isinstance(error, anthropic.APIError | Garbled) else error
