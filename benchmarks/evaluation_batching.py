"""What rows that are refilled save in the evaluation of a finished run, against static batches: asking alone, no judge.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/evaluation_batching.py runs/demo  # minutes

Both sides ask for all reports of an evaluation, under every condition (--baselines: and what these are made of, whose
sums over adapters take either as long). Static batches are what was decoded before: `organisms.parallel` organisms in
each, as many rows of an organism as make about 96 rows in all, until the last of them has ended. Both compile their
programs in the time that is counted, as an evaluation does. One round: refilled, static. The replies are compared.
Nothing in the workdir is changed.
"""

import argparse
import time
from functools import partial

import jax
import numpy as np

from ia_jax.models.chat import stop_ids
from ia_jax.models.lora import Picked, has_organism_axis, take_organisms
from ia_jax.models.replies import Reply, rows_at_once, write_replies
from ia_jax.models.sampling import generate_tokens
from ia_jax.stages import asking, evaluation
from ia_jax.stages.context import Context
from ia_jax.stages.order import evaluated
from ia_jax.workdir import open_workdir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    parser.add_argument("--baselines", action="store_true", help="and those of the evaluation")
    args = parser.parse_args()
    run = open_workdir(args.workdir)
    context = Context(run, run.config)
    if not args.baselines:
        evaluation._without_adapter = lambda *_: []
    said, took = {}, {}
    sides = {"refilled": write_replies, "static": partial(static, run.config.organisms.parallel)}
    with jax.set_mesh(context.mesh):
        _ = context.model
        for side, write in sides.items():
            asking.write_replies = write
            jax.clear_caches()
            clock = time.monotonic(), time.process_time()
            found = evaluation._ask(context, evaluated(run, run.config))
            took[side] = time.monotonic() - clock[0], time.process_time() - clock[1]
            said[side] = [r["report"] for rows in found for r in rows]
            print(f"{side}: {took[side][0]:.0f} s, {took[side][1]:.0f} s of processors", flush=True)
    same = sum(a == b for a, b in zip(*said.values(), strict=True))
    print(f"the same reports: {same} of {len(said['static'])}")
    print(f"static / refilled: {took['static'][0] / took['refilled'][0]:.2f}")


def static(parallel, model, prompts, stack, *, draws=None, at_once=None, on_done=lambda n: None, **how):
    """`write_replies` as it was before rows were refilled."""
    draws = range(len(prompts)) if draws is None else draws
    longest = max((len(x) for own in prompts for x in own), default=0)
    replies = [[] for _ in prompts]
    for begin in range(0, len(prompts), parallel):
        batch = list(range(begin, min(begin + parallel, len(prompts))))
        own = [prompts[i] for i in batch]
        part = tuple(chosen(member, batch) if has_organism_axis(member) else member for member in stack)
        most = max(map(len, own))
        rows = max(1, min(most, rows_at_once(model.config, longest + how["max_new_tokens"]) // len(batch)))
        for first in range(0, most, rows):
            out = generate_tokens(
                model.params,
                model.config,
                [p[first : first + rows] for p in own],
                part,
                stop_ids(model.tokenizer),
                draws=[draws[i] for i in batch],
                first=first,
                rows=rows,
                **how,
            )
            for i, found in zip(batch, out, strict=True):
                replies[i] += [
                    Reply(str(model.tokenizer.decode(x, skip_special_tokens=True)).strip(), end) for x, end in found
                ]
            on_done(sum(map(len, out)))
    return replies


def chosen(member, batch):
    if isinstance(member, Picked):
        return Picked(member.bank, jax.device_put(np.asarray(member.slots)[batch], member.slots.sharding))
    return take_organisms(member, np.array(batch))


if __name__ == "__main__":
    main()
