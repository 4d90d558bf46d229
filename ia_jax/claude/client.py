"""The one way to Claude: cached, capped, resumable. Teacher and judge hand over calls and get replies in order."""

import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ia_jax.claude import batches, messages
from ia_jax.claude.calls import Call, Reply
from ia_jax.claude.connection import KEY, BudgetError, Connection
from ia_jax.claude.prices import at_most, estimate
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.errors import IAError
from ia_jax.parallel.distributed import on_main_process

__all__ = ["KEY", "BudgetError", "Client"]


class Client:
    """Calls to Claude under `settings`, with everything that was paid for kept in `root`.

    Messages: up to `concurrency` calls at once, each answered at once. Message Batches: half the price, and nothing is
    ever paid twice, since a batch's answers can be fetched as often as need be.
    """

    def __init__(self, settings: ClaudeSettings, root: Path, sleep: Callable[[float], None] = time.sleep):
        self.connection = Connection(settings, root, sleep)
        self.batch = settings.api == "batch"
        self._resumed = False
        self._guard, self._asking = threading.Lock(), dict[str, threading.Lock]()

    def estimate(self, calls: Sequence[Call]) -> Decimal:
        """Dollars, about, of those calls that are not answered yet."""
        return estimate(self._unanswered(calls), self.batch, self.connection.models)

    def complete(self, calls: Sequence[Call], at_once: bool = False) -> list[Reply]:
        """The replies, from disk where they are; equal calls are made once.

        at_once: by Messages, whatever the config says, where somebody waits for the answer.

        Raises BudgetError if the cap leaves some unasked, and IAError if the API refuses one. Either way, all answers
        that were paid for are on disk, and the same call continues. Of several processes the first one asks for all.
        """
        batch = self.batch and not at_once
        return [
            Reply(*parts) for parts in on_main_process(lambda: [list(reply) for reply in self._complete(calls, batch)])
        ]

    def message(self, call: Call) -> dict[str, Any]:
        """One whole answer, from disk where it is, else at once by Messages. Threads may ask at the same time; of equal
        calls one is made.

        Raises as `complete`, except that a call which could pass the cap is refused only when nothing is under way that
        may cost less than it holds.
        """
        with self._guard:
            if not self._resumed:
                batches.resume(self.connection)
                self._resumed = True
            mine = self._asking.setdefault(call.key, threading.Lock())
        with mine:
            if not self.connection.store.has(call.key):
                messages.run(self.connection, [call])
            answer = self.connection.store.message(call.key)
        if answer is None:
            raise IAError(f"no answer was kept for {call.key}; give the same command again")
        return answer

    def _complete(self, calls: Sequence[Call], batch: bool) -> list[Reply]:
        try:
            if not self._resumed:
                batches.resume(self.connection)
                self._resumed = True
            todo = self._unanswered(calls)
            if todo:
                self._announce(todo, batch)
                if batch:
                    batches.run(self.connection, todo)
                else:
                    messages.run(self.connection, todo)
        except BaseException:
            # Batches may be under way: a caller that goes on begins from the disk, as a new process would.
            self.connection.budget, self._resumed = self.connection.booked(), False
            raise
        return [self._answered(c) for c in calls]

    def _announce(self, calls: Sequence[Call], batch: bool) -> None:
        models = self.connection.models
        bound = sum((at_most(c, batch, models) for c in calls), Decimal(0))
        dollars = estimate(calls, batch, models)
        print(f"Claude: {len(calls)} calls, about ${dollars:.2f} and at most ${bound:.2f}", flush=True)
        self.afford(dollars)

    def afford(self, dollars: Decimal) -> None:
        """Raises BudgetError if an estimate does not fit under the cap: better no start than half of the answers."""
        budget = self.connection.budget
        if not budget.fits(dollars):
            raise BudgetError(
                f"the calls left would cost about ${dollars:.2f}, and ${budget.spent:.2f} of the cap of ${budget.cap} "
                "are spent; raise config.claude.cap_dollars, or ask for less"
            )

    def summary(self) -> str:
        """What was spent, in a line."""
        n, bound = self.connection.store.lost()
        lost = f"; {n} calls broke off and are booked at their bound, ${bound:.4f} together" if n else ""
        return f"Claude: ${self.connection.budget.spent:.4f} spent of the cap of ${self.connection.budget.cap}{lost}"

    def _unanswered(self, calls: Sequence[Call]) -> list[Call]:
        return [c for c in {c.key: c for c in calls}.values() if not self.connection.store.has(c.key)]

    def _answered(self, call: Call) -> Reply:
        reply = self.connection.store.reply(call)
        if reply is None:
            raise IAError(f"no answer was kept for {call.key}; give the same command again")
        return reply
