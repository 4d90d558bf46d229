"""The one way to Claude: cached, capped, resumable. Teacher and judge hand over calls and get replies in order."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from decimal import Decimal
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from ia_jax.claude import batches
from ia_jax.claude.calls import Call, Garbled, Reply, read_message
from ia_jax.claude.prices import at_most, estimate
from ia_jax.claude.retries import delay, is_transient, may_be_billed
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.claude.store import Budget, Store
from ia_jax.errors import ConfigError, IAError
from ia_jax.parallel.distributed import on_main_process

if TYPE_CHECKING:
    import anthropic

KEY = "ANTHROPIC_API_KEY"
APIS = ("batch", "messages")


class BudgetError(IAError):
    """The spend cap does not allow the calls that are left."""


class Client:
    """Calls to Claude under `settings`, with everything that was paid for kept in `root`.

    Messages: up to `concurrency` calls at once. The API has no way to fetch an answer again, so a call that breaks
    after it was sent (a dropped connection, a kill) is booked at its bound before it is repeated: at most one for each
    of `concurrency`, and the cap holds. Message Batches: half the price, and nothing is ever paid twice, since a
    batch's answers can be fetched as often as need be.
    """

    def __init__(self, settings: ClaudeSettings, root: Path, sleep: Callable[[float], None] = time.sleep):
        self.settings, self.sleep = settings, sleep
        self.batch = settings.api == "batch"
        self.store = Store(root)
        self.budget = self._booked()
        self._api: anthropic.Anthropic | None = None
        self._resumed = False

    def _booked(self) -> Budget:
        return Budget(Decimal(str(self.settings.cap_dollars)), self.store.paid() + self.store.lost()[1])

    @property
    def api(self) -> "anthropic.Anthropic":
        """The SDK's client. Its own retries are off: every try must be booked."""
        if self._api is None:
            key = os.environ.get(KEY)
            if not key:
                raise ConfigError(f"calling Claude needs an API key in the environment variable {KEY}; it is not set")
            import anthropic

            self._api = anthropic.Anthropic(api_key=key, max_retries=0, timeout=self.settings.timeout)
        return self._api

    def estimate(self, calls: Sequence[Call]) -> Decimal:
        """Dollars, about, of those calls that are not answered yet."""
        return estimate(self._unanswered(calls), self.batch)

    def complete(self, calls: Sequence[Call], at_once: bool = False) -> list[Reply]:
        """The replies, from disk where they are; equal calls are made once.

        at_once: by Messages, whatever the config says, where accelerators wait for the answer.

        Raises BudgetError if the cap leaves some unasked, and IAError if the API refuses one. Either way, all answers
        that were paid for are on disk, and the same call continues. Of several processes the first one asks for all.
        """
        batch = self.batch and not at_once
        return [
            Reply(*parts) for parts in on_main_process(lambda: [list(reply) for reply in self._complete(calls, batch)])
        ]

    def _complete(self, calls: Sequence[Call], batch: bool) -> list[Reply]:
        try:
            if not self._resumed:
                batches.resume(self)
                self._resumed = True
            todo = self._unanswered(calls)
            if todo:
                self._announce(todo, batch)
                if batch:
                    batches.run(self, todo)
                else:
                    self._run_messages(todo)
        except BaseException:
            # Batches may be under way: a caller that goes on begins from the disk, as a new process would.
            self.budget, self._resumed = self._booked(), False
            raise
        return [self._answered(c) for c in calls]

    def _announce(self, calls: Sequence[Call], batch: bool) -> None:
        dollars, bound = estimate(calls, batch), sum((at_most(c, batch) for c in calls), Decimal(0))
        print(f"Claude: {len(calls)} calls, about ${dollars:.2f} and at most ${bound:.2f}", flush=True)
        self.afford(dollars)

    def afford(self, dollars: Decimal) -> None:
        """Raises BudgetError if an estimate does not fit under the cap: better no start than half of the answers."""
        if not self.budget.fits(dollars):
            raise BudgetError(
                f"the calls left would cost about ${dollars:.2f}, and ${self.budget.spent:.2f} of the cap of "
                f"${self.budget.cap} are spent; raise config.claude.cap_dollars, or ask for less"
            )

    def summary(self) -> str:
        """What was spent, in a line."""
        n, bound = self.store.lost()
        lost = f"; {n} calls broke off and are booked at their bound, ${bound:.4f} together" if n else ""
        return f"Claude: ${self.budget.spent:.4f} spent of the cap of ${self.budget.cap}{lost}"

    def _unanswered(self, calls: Sequence[Call]) -> list[Call]:
        return [c for c in {c.key: c for c in calls}.values() if not self.store.has(c.key)]

    def _answered(self, call: Call) -> Reply:
        reply = self.store.reply(call)
        if reply is None:
            raise IAError(f"no answer was kept for {call.key}; give the same command again")
        return reply

    def over_cap(self, left: int) -> BudgetError:
        return BudgetError(
            f"{left} calls to Claude are left, and the next could pass the cap of ${self.budget.cap} "
            f"(${self.budget.spent:.4f} spent); raise config.claude.cap_dollars and give the same command again: "
            "answers paid for are kept"
        )

    # ------------------------------------------------------------------------------------------------------- messages

    def _run_messages(self, calls: Sequence[Call]) -> None:
        stop = Event()
        _ = self.api  # before the threads: a missing key is one error
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(self._send, c, stop) for c in calls]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # what is under way ends and is kept; what is not sent stays unsent
        errors = [e for f in futures if (e := f.exception())]
        if errors:
            worse = [e for e in errors if not isinstance(e, BudgetError)]
            raise worse[0] if worse else self.over_cap(len(self._unanswered(calls)))

    def _send(self, call: Call, stop: Event) -> None:
        bound = at_most(call, batch=False)
        for attempt in range(self.settings.attempts):
            if stop.is_set():
                return
            if not self.budget.hold(bound, wait=True):
                raise self.over_cap(1)
            if stop.is_set():
                self.budget.settle(bound, Decimal(0))
                return
            error = self._try(call, bound)
            if error is None:
                return
            if not is_transient(error) or attempt + 1 == self.settings.attempts:
                raise failure(error, attempt + 1)
            self.sleep(delay(error, attempt, call.key))

    def _try(self, call: Call, bound: Decimal) -> Exception | None:
        """One try: the answer is kept and booked, or the error is returned and the hold given back."""
        self.store.begin(call, bound)
        spent, lost = bound, "the call broke off"
        try:
            raw = self.api.messages.with_raw_response.create(**call.request)
            spent = self.store.save(call.key, call.sample, call.request, read_message(raw.http_response.text), False)
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
            self.store.end(call, lost)
            self.budget.settle(bound, spent)
        return None


def _from_api(error: Exception) -> bool:
    import anthropic

    return isinstance(error, anthropic.APIError)


def failure(error: Exception, attempts: int = 1) -> IAError:
    """An error of the API in one line that names what to do, without the key in it."""
    status = getattr(error, "status_code", None)
    said = str(getattr(error, "api_message", None) or error)
    key = os.environ.get(KEY)
    said = said.replace(key, "…") if key else said
    if status in (401, 403):
        return ConfigError(f"Claude refused the API key ({status}: {said}); check {KEY}")
    if status == 404:
        return ConfigError(f"Claude does not know what was asked for (404: {said}); check the model in the config")
    if status is not None and status < 500 and status != 429:
        return ConfigError(f"Claude refused a request ({status}: {said}); the request is at fault")
    what = f"{status}: {said}" if status else said
    return IAError(f"Claude could not be reached in {attempts} tries ({what}); give the same command again later")
