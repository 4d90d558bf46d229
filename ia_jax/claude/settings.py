"""How Claude is called."""

from dataclasses import dataclass

APIS = ("batch", "messages")
LARGEST_BATCH = 100_000  # requests that the API takes in one


@dataclass(frozen=True)
class ClaudeSettings:
    """How Claude is called; may change in a running workdir, for it changes no answer.

    api: "batch" (Message Batches: half the price, within a day) or "messages" (at once).
    cap_dollars: the most that the run ever spends, in all stages together.
    concurrency: calls at once, of "messages".
    batch_size: the most requests in a batch.
    attempts: tries of a request that fails for a reason that may pass.
    timeout: seconds until an answer has to be there.
    poll_seconds: between two looks at a batch.
    cache: the directory where answers are kept ("": in the workdir).
    prices: a price list of your own, in the form of `ia_jax/claude/prices.json` ("": that one).
    """

    api: str = "batch"
    cap_dollars: float = 20.0
    concurrency: int = 8
    batch_size: int = 10_000
    attempts: int = 8
    timeout: float = 600.0
    poll_seconds: float = 30.0
    cache: str = ""
    prices: str = ""
