"""64 requests to 16 fine-tunes, through inspect_ai's provider: at the same time, and one after another.

    .venv/bin/python benchmarks/concurrent_requests.py runs/demo     # minutes; nothing beside it

Half of the requests of each are with the IA on it, half without; greedy, up to --tokens new tokens each. Both
ways are run once to compile, then timed in turns; the ratio is the median of the rounds' with their range. Replies of
both ways are compared token by token. It shows nothing about how the two compare where a request is long or the base
large: one by one every request reads all of the base's weights for itself.
"""

import argparse
import statistics
import time
from collections.abc import Awaitable, Callable

import anyio
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelOutput, get_model

from ia_jax.audits.investigator.service import Service
from ia_jax.audits.investigator.session import Session, open_session
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.workdir import open_workdir

REQUESTS, ADAPTERS = 64, 16
Round = tuple[list[ModelOutput], float, list[ModelOutput], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", help="with an IA and at least 16 organisms that are trained")
    parser.add_argument("--ia", help="of the workdir (default: the last one)")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a request, at most (default: 32)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = [o.name for o in open_workdir(args.workdir).organisms.values()][:ADAPTERS]
    if len(names) < ADAPTERS:
        parser.error(f"{args.workdir} has {len(names)} organisms; it takes {ADAPTERS}")
    session = open_session(args.workdir, ",".join(names), args.ia)
    try:
        together, apart = timed(anyio.run(lambda: rounds(session, names, args.tokens, args.rounds)))
    finally:
        session.close()
    ratios = [a / t for t, a in zip(together, apart, strict=True)]
    print(f"tokens/s, median: {REQUESTS} at once {1 / statistics.median(together):.1f}, one by one ", end="")
    print(f"{1 / statistics.median(apart):.1f}; ratio {statistics.median(ratios):.1f}", end=" ")
    print(f"({min(ratios):.1f}-{max(ratios):.1f}, {len(ratios)} rounds)")


def timed(found: list[Round]) -> tuple[list[float], list[float]]:
    """Seconds for a token of both ways, of every round but the first, which compiles."""
    together, apart = [], []
    for number, (at_once, quick, alone, slow) in enumerate(found):
        same = sum(a.completion == b.completion for a, b in zip(at_once, alone, strict=True))
        tokens = sum(o.usage.output_tokens for o in alone if o.usage)
        print(f"round {number}: {same} of {REQUESTS} replies the same, {tokens} tokens, {quick:.1f} and {slow:.1f} s")
        if number:
            together.append(quick / tokens)
            apart.append(slow / tokens)
    return together, apart


async def rounds(session: Session, names: list[str], tokens: int, count: int) -> list[Round]:
    """[replies at once, seconds, replies one by one, seconds] of every round, with one more to compile."""

    async def clocked(ask: Callable[[list[str], int], Awaitable[list[ModelOutput]]]) -> tuple[list[ModelOutput], float]:
        session.service.close()
        session.service = Service(session.service.engine)  # which keeps no answers of before
        start = time.perf_counter()
        return await ask(names, tokens), time.perf_counter() - start

    return [(*await clocked(at_once), *await clocked(one_by_one)) for _ in range(count + 1)]


async def request(number: int, names: list[str], tokens: int) -> ModelOutput:
    name, under = names[number % len(names)], "+ia" if number // len(names) % 2 else ""
    question = EVAL_QUESTIONS[number // len(names) % len(EVAL_QUESTIONS)]
    model = get_model(f"ia_jax/{name}{under}")
    config = GenerateConfig(max_tokens=tokens, max_connections=REQUESTS)
    return await model.generate([ChatMessageUser(content=question)], config=config)


async def at_once(names: list[str], tokens: int) -> list[ModelOutput]:
    found: dict[int, ModelOutput] = {}

    async def one(number: int) -> None:
        found[number] = await request(number, names, tokens)

    async with anyio.create_task_group() as group:
        for number in range(REQUESTS):
            group.start_soon(one, number)
    return [found[n] for n in range(REQUESTS)]


async def one_by_one(names: list[str], tokens: int) -> list[ModelOutput]:
    return [await request(n, names, tokens) for n in range(REQUESTS)]


if __name__ == "__main__":
    main()
