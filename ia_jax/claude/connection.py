"""What every request to Claude goes through: settings, what is on disk, the budget, and the SDK's client."""

import os
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ia_jax.claude.models import load_models
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.claude.store import Budget, Store
from ia_jax.errors import ConfigError, IAError

if TYPE_CHECKING:
    import anthropic

KEY = "ANTHROPIC_API_KEY"


class BudgetError(IAError):
    """The spend cap does not allow the calls that are left."""


class Connection:
    """The state that Messages and Message Batches share. Everything that was paid for is kept in `root`."""

    def __init__(self, settings: ClaudeSettings, root: Path, sleep: Callable[[float], None] = time.sleep):
        self.settings, self.sleep = settings, sleep
        self.models = load_models(settings.prices)
        self.store = Store(root, self.models)
        self.budget = self.booked()
        self._api: anthropic.Anthropic | None = None

    def booked(self) -> Budget:
        """The budget as the disk has it: nothing held."""
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

    def over_cap(self, left: int) -> BudgetError:
        return BudgetError(
            f"{left} calls to Claude are left, and the next could pass the cap of ${self.budget.cap} "
            f"(${self.budget.spent:.4f} spent); raise config.claude.cap_dollars and give the same command again: "
            "answers paid for are kept"
        )


def failure(error: Exception, attempts: int = 1) -> IAError:
    """An error of the API in one line that names what to do, without the key in it."""
    status = getattr(error, "status_code", None)
    message = str(getattr(error, "api_message", None) or error)
    key = os.environ.get(KEY)
    message = message.replace(key, "…") if key else message
    if status in (401, 403):
        return ConfigError(f"Claude refused the API key ({status}: {message}); check {KEY}")
    if status == 404:
        return ConfigError(f"Claude does not know what was asked for (404: {message}); check the model in the config")
    if status is not None and status < 500 and status != 429:
        return ConfigError(f"Claude refused a request ({status}: {message}); the request is at fault")
    what = f"{status}: {message}" if status else message
    return IAError(f"Claude could not be reached in {attempts} tries ({what}); give the same command again later")
