"""Continuous batching against static batches: 300 prompts of mixed lengths over 40 adapters, on a small random model.

    python benchmarks/continuous_batching.py  # two minutes of a processor, half of them compiling; a table

Both sides decode about 96 rows at once and give the same tokens in fp32. Static batches are what `write_replies` made
before: 10 organisms in each, one row for every prompt of the organism that has most, until the last row has ended.
Stop tokens are so many that replies end after 1 to 80 tokens. Rounds of both alternate; times are processor time, which
other work on the machine changes little, as medians with their range. What it does not show: a base whose weights take
longer to read than its rows to multiply gains less than the row-steps say, and replies that are all of one length gain
only what packing several organisms' last rows saves.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig, init_organisms, map_leaves, take_organisms
from ia_jax.models.sampling import Continuation, generate_tokens, in_buckets
from ia_jax.models.slots import generate_in_slots
from ia_jax.models.transformer import WeightSpec, weight_specs
from ia_jax.parallel.mesh import make_mesh

ORGANISMS, PROMPTS, ROWS, BATCH, NEW = 40, 300, 96, 10, 80
CFG = ModelConfig("llama", 2048, 256, 768, 4, 8, 4, 32, 1e-5, 1e4)
STOP = tuple(range(0, CFG.vocab_size, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with jax.set_mesh(make_mesh()):
        found = measure(args.rounds)
    if args.json:
        print(json.dumps(found))
        return
    for case, row in found.items():
        print(f"\n{case}: {row['replies']}; the same tokens in {row['same']} of {PROMPTS}")
        for side in ("static", "continuous"):
            print("  {:11} {steps:6} row-steps  {read:6} tokens read  {median:6.2f} s ({low:.2f} to {high:.2f})".format(
                side, **row[side]))  # fmt: skip
        print(f"  static / continuous: {row['fewer_steps']:.2f} in row-steps, {row['faster']:.2f} in time")


def measure(rounds: int) -> dict:
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * s.shape[-2] ** -0.5 if s.init != "ones" else np.ones(s.shape)),
        weight_specs(CFG),
        is_leaf=lambda x: isinstance(x, WeightSpec),
    )
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    params["embed"] *= 4.0  # so large that temperature 1 neither repeats itself nor draws at random
    stack = init_organisms(jax.random.split(jax.random.key(0), ORGANISMS), CFG, LoraConfig(8, 16.0))
    stack = map_leaves(lambda t, n, x: 0.02 * jax.random.normal(jax.random.key(1), x.shape) if n == "b" else x, stack)
    owner = np.sort(np.concatenate([np.arange(ORGANISMS), rng.integers(0, ORGANISMS, PROMPTS - ORGANISMS)]))
    prompts = [
        [rng.integers(1, CFG.vocab_size, int(n)).astype(np.int32) for n in rng.integers(8, 64, (owner == i).sum())]
        for i in range(ORGANISMS)
    ]
    found = {}
    for case, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        how = {"max_new_tokens": NEW, "temperature": temperature, "key": jax.random.key(5)}
        sides = {"static": static, "continuous": continuous}
        times: dict[str, list[float]] = {side: [] for side in sides}
        said, work = {}, {}
        warm = not found  # the first of all compiles
        for n in range(rounds + warm):
            for side, run in sides.items():
                start = time.process_time()
                said[side], work[side] = run(params, prompts, stack, how)
                if n >= warm:
                    times[side].append(time.process_time() - start)
        flat = {side: [row for own in rows for row in own] for side, rows in said.items()}
        lengths = [len(row.tokens) + row.stopped for row in flat["static"]]
        row: dict = {
            "replies": "of {} / {} / {} tokens at the quartiles".format(
                *np.percentile(lengths, [25, 50, 75]).astype(int)
            ),
            "same": sum(a == b for a, b in zip(flat["static"], flat["continuous"], strict=True)),
        }
        for side in sides:
            own = times[side]
            steps, read = work[side]
            row[side] = {"steps": steps, "read": read, "median": statistics.median(own)}
            row[side] |= {"low": min(own), "high": max(own)}
        row["fewer_steps"] = row["static"]["steps"] / row["continuous"]["steps"]
        row["faster"] = row["static"]["median"] / row["continuous"]["median"]
        found[case] = row
    return found


def static(params, prompts, stack, how) -> tuple[list[list[Continuation]], tuple[int, int]]:
    """Replies, and the steps of rows and tokens of prompts that they took."""
    said, steps, read = [], 0, 0
    wide = ROWS // BATCH
    for first in range(0, ORGANISMS, BATCH):
        own = prompts[first : first + BATCH]
        part = (take_organisms(stack, np.arange(first, first + BATCH)),)
        replies: list[list[Continuation]] = [[] for _ in own]
        longest = max(map(len, own))
        rows = min(wide, longest)
        for at in range(0, longest, wide):
            block = [p[at : at + rows] for p in own]
            out = generate_tokens(
                params, CFG, block, part, STOP, draws=range(first, first + BATCH), first=at, rows=rows, **how
            )
            for mine, new in zip(replies, out, strict=True):
                mine += new
            steps += BATCH * rows * max(len(r.tokens) + r.stopped for o in out for r in o)
            read += BATCH * rows * in_buckets(max(len(x) for o in block for x in o))
        said += replies
    return said, (steps, read)


def continuous(params, prompts, stack, how) -> tuple[list[list[Continuation]], tuple[int, int]]:
    work = []
    said = generate_in_slots(
        params, CFG, prompts, (stack,), STOP, rows=ROWS, on_work=lambda read, steps: work.append((steps, read)), **how
    )
    steps, read = np.sum(work, axis=0)
    return said, (int(steps), int(read))


if __name__ == "__main__":
    main()
