"""What a call costs, before and after. Dollars are Decimals: sums agree with the bill to the last digit.

Prices of the models are data (`models`, `prices.json`). A 5-minute cache write costs 1.25 times the input, one of an
hour twice, and a batch half of everything.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ia_jax.claude.calls import Call
from ia_jax.claude.models import Models, load_models
from ia_jax.errors import ConfigError

MILLION = Decimal(1_000_000)
CACHE_WRITE = Decimal("1.25")
CACHE_WRITE_HOUR = Decimal(2)
BATCH = Decimal("0.5")
# A token of a byte-level vocabulary is at least a byte, so bytes bound a text's tokens. The rest of a request (roles,
# the API's own instructions for structured output) is given this many.
OVERHEAD_TOKENS = 1000
CHARACTERS_PER_TOKEN = 3  # for the estimate; English runs at 3 to 4


def cost(model: str, usage: Mapping[str, Any], batch: bool, models: Models | None = None) -> Decimal:
    """Dollars of one answer, from the usage that the API returned with it. Raises ConfigError for an unknown model."""
    price = (models or load_models()).find(model)
    hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    written = (usage.get("cache_creation_input_tokens") or 0) - hour
    dollars = (
        price.input * (usage["input_tokens"] + CACHE_WRITE * written + CACHE_WRITE_HOUR * hour)
        + price.cache_read * (usage.get("cache_read_input_tokens") or 0)
        + price.output * usage["output_tokens"]
    ) / MILLION
    return dollars * BATCH if batch else dollars


def at_most(call: Call, batch: bool, models: Models | None = None) -> Decimal:
    """A bound on what the call can cost: every byte a token, written to the cache, and `max_tokens` of output."""
    tokens = len(call.text.encode()) + OVERHEAD_TOKENS
    limit = min(call.longest_prompt, (models or load_models()).find(call.model).longest_prompt)
    if tokens > limit:
        raise ConfigError(f"a prompt of up to {tokens} tokens exceeds {limit}: {call.user[:60]!r}…")
    usage = {"input_tokens": 0, "cache_creation_input_tokens": tokens, "output_tokens": call.max_tokens}
    return cost(call.model, usage, batch, models)


def estimate(calls: Iterable[Call], batch: bool, models: Models | None = None) -> Decimal:
    """What the calls will cost, about: no help from the prompt cache, and the output that each call expects, with what
    the model usually thinks at its effort.
    """
    known, total = models or load_models(), Decimal(0)
    for c in calls:
        output = min(c.expected + known.thinking(c.model, c.effort), c.max_tokens)
        usage = {"input_tokens": len(c.text) // CHARACTERS_PER_TOKEN + 50, "output_tokens": output}
        total += cost(c.model, usage, batch, known)
    return total
