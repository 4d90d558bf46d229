"""Which failures of a request are worth another try, after how long, and whether they can have been billed."""

import email.utils
import time
import zlib
from collections.abc import Mapping

from ia_jax.claude.calls import Garbled

TRANSIENT = (408, 409, 429)  # and everything from 500 on: 529 is "overloaded"
LONGEST_WAIT = 60.0
NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")


def is_transient(error: Exception) -> bool:
    import anthropic

    if isinstance(error, anthropic.APIStatusError):
        return error.status_code in TRANSIENT or error.status_code >= 500
    return isinstance(error, anthropic.APIConnectionError | Garbled)


def may_be_billed(error: BaseException) -> bool:
    """An error status is not billed. A connection that broke after the request was sent may have been."""
    import anthropic

    if isinstance(error, anthropic.APIStatusError):
        return False
    return type(error.__cause__).__name__ not in NEVER_SENT


def delay(error: Exception, attempt: int, seed: str = "") -> float:
    """Seconds to wait before try `attempt` + 1: what the server asks for, else doubling from half a second.

    The doubled wait is shortened by up to a quarter, differently for every seed, so that calls do not return together.
    """
    asked = retry_after(getattr(getattr(error, "response", None), "headers", {}))
    if asked is not None:
        return asked
    return min(0.5 * 2**attempt, LONGEST_WAIT) * (1 - zlib.crc32(f"{seed}{attempt}".encode()) / 2**34)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / scale)
        except (KeyError, ValueError):
            continue
    when = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if when is None else max(0.0, email.utils.mktime_tz(when) - time.time())
