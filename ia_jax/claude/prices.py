"""What a call costs, before and after. Dollars are Decimals: sums agree with the bill to the last digit.

List prices from platform.claude.com/docs/en/about-claude/pricing, read in November 2026. A 5-minute cache write costs
1.25 times the input, and a batch half of everything.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from ia_jax.claude.calls import Call
from ia_jax.errors import ConfigError

MILLION = Decimal(1_000_000)
CACHE_WRITE = Decimal("1.25")
CACHE_WRITE_HOUR = Decimal(2)
BATCH = Decimal("0.5")
# A token of a byte-level vocabulary is at least a byte, so bytes bound a text's tokens. The rest of a request (roles,
# the API's own instructions for structured output) is given this many.
OVERHEAD_TOKENS = 1000
CHARACTERS_PER_TOKEN = 3  # for the estimate; English runs at 3 to 4
# Some models charge more for longer prompts; ours never come near.
LONGEST_PROMPT = 90_000


class Price(NamedTuple):
    """Dollars for a million tokens: in, out, and read from the prompt cache."""

    input: Decimal
    output: Decimal
    cache_read: Decimal


def _price(dollars_in: str, dollars_out: str, read: str) -> Price:
    return Price(Decimal(dollars_in), Decimal(dollars_out), Decimal(read))


PRICES = {
    "claude-haiku-5-5": _price("0.10", "0.50", "0.01"),
    "claude-sonnet-5-5": _price("2", "10", "0.10"),
    "claude-opus-5-5": _price("4", "20", "0.20"),
    "claude-sonnet-5": _price("2", "10", "0.20"),
    "claude-opus-5": _price("5", "25", "0.50"),
    "claude-sonnet-4-6": _price("3", "15", "0.30"),
    "claude-opus-4-8": _price("5", "25", "0.50"),
    "claude-opus-4-7": _price("5", "25", "0.50"),
    "claude-opus-4-6": _price("5", "25", "0.50"),
    "claude-haiku-4-5": _price("1", "5", "0.10"),
    "claude-haiku-4-5-20251001": _price("1", "5", "0.10"),
}


def price_of(model: str) -> Price:
    """Raises ConfigError for a model whose price is not known: a cap could not be kept."""
    if model not in PRICES:
        raise ConfigError(
            f"no price is known for the Claude model {model!r}; choose from {', '.join(PRICES)}, "
            "or add it to ia_jax/claude/prices.py"
        )
    return PRICES[model]


def cost(model: str, usage: Mapping[str, Any], batch: bool) -> Decimal:
    """Dollars of one answer, from the usage that the API returned with it."""
    price = price_of(model)
    hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    written = (usage.get("cache_creation_input_tokens") or 0) - hour
    dollars = (
        price.input * (usage["input_tokens"] + CACHE_WRITE * written + CACHE_WRITE_HOUR * hour)
        + price.cache_read * (usage.get("cache_read_input_tokens") or 0)
        + price.output * usage["output_tokens"]
    ) / MILLION
    return dollars * BATCH if batch else dollars


def at_most(call: Call, batch: bool) -> Decimal:
    """A bound on what the call can cost: every byte a token, written to the cache, and `max_tokens` of output."""
    tokens = len(f"{call.system}{call.user}{call.schema or ''}".encode()) + OVERHEAD_TOKENS
    if tokens > LONGEST_PROMPT:
        raise ConfigError(f"a prompt of up to {tokens} tokens exceeds {LONGEST_PROMPT}: {call.user[:60]!r}…")
    usage = {"input_tokens": 0, "cache_creation_input_tokens": tokens, "output_tokens": call.max_tokens}
    return cost(call.model, usage, batch)


def estimate(calls: Iterable[Call], batch: bool) -> Decimal:
    """What the calls will cost, about: no help from the prompt cache, and the output that each call expects."""
    total = Decimal(0)
    for c in calls:
        characters = len(c.system) + len(c.user) + len(str(c.schema or ""))
        usage = {"input_tokens": characters // CHARACTERS_PER_TOKEN + 50, "output_tokens": c.expected}
        total += cost(c.model, usage, batch)
    return total
