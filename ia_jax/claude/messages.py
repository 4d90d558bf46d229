"""The Messages API, many calls at once.

It has no way to fetch an answer again, so a call that breaks after it was sent (a dropped connection, a kill) is booked
at its bound before it is repeated: at most one for each of `concurrency`, and the cap holds.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from decimal import Decimal
from threading import Event

from ia_jax.claude.calls import Call, Garbled, read_message
from ia_jax.claude.connection import BudgetError, Connection, failure
from ia_jax.claude.prices import at_most
from ia_jax.claude.retries import delay, is_transient, may_be_billed


def run(connection: Connection, calls: Sequence[Call]) -> None:
    """Asks all calls. Raises BudgetError when the next could pass the cap; answers that came are kept."""
    stop = Event()
    _ = connection.api  # before the threads: a missing key is one error
    with ThreadPoolExecutor(connection.settings.concurrency) as pool:
        futures = [pool.submit(_send, connection, c, stop) for c in calls]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # what is under way ends and is kept; what is not sent stays unsent
    errors = [e for f in futures if (e := f.exception())]
    if errors:
        worse = [e for e in errors if not isinstance(e, BudgetError)]
        raise worse[0] if worse else connection.over_cap(len([c for c in calls if not connection.store.has(c.key)]))


def _send(connection: Connection, call: Call, stop: Event) -> None:
    bound = at_most(call, False, connection.models)
    for attempt in range(connection.settings.attempts):
        if stop.is_set():
            return
        if not connection.budget.hold(bound, wait=True):
            raise connection.over_cap(1)
        if stop.is_set():
            connection.budget.settle(bound, Decimal(0))
            return
        error = _try(connection, call, bound)
        if error is None:
            return
        if not is_transient(error) or attempt + 1 == connection.settings.attempts:
            raise failure(error, attempt + 1)
        connection.sleep(delay(error, attempt, call.key))


def _try(connection: Connection, call: Call, bound: Decimal) -> Exception | None:
    """One try: the answer is kept and booked, or the error is returned and the hold given back."""
    connection.store.begin(call, bound)
    spent, lost = bound, "the call broke off"
    try:
        raw = connection.api.messages.with_raw_response.create(**call.request)
        spent = connection.store.save(call.key, call.sample, call.request, read_message(raw.http_response.text), False)
        lost = ""
    except Exception as error:
        if may_be_billed(error):
            lost = f"{type(error).__name__}: {error}"[:200]
        else:
            spent, lost = Decimal(0), ""
        if not isinstance(error, Garbled) and not _from_api(error):
            raise
        return error
    finally:
        connection.store.end(call, lost)
        connection.budget.settle(bound, spent)
    return None


def _from_api(error: Exception) -> bool:
    import anthropic

    return isinstance(error, anthropic.APIError)
