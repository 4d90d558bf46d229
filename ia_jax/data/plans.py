"""Token batches: packing, the plan of what each step reads, and its lazy, checkpointable execution by grain.

A plan is decided up front as a pure function of the examples and a seed: for every step and organism slot, which
examples go into which rows. Building the arrays of step s needs nothing but the plan, so a restored run continues with
exactly the batch that came next. Packing never mixes organisms: a row has one adapter.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample

Unit = tuple[ChatExample, ...]  # what stays together: one example, or a chosen and a rejected answer
Row = tuple[int, ...]  # indices of the units packed into one row


@dataclass(frozen=True)
class Slot:
    """What one organism reads in one step: its index among all organisms, and rows of unit indices."""

    organism: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Plan:
    """Steps of K slots each, and the array sizes that hold every one of them: `rows` of `length` tokens a slot, with up
    to `targets` supervised tokens each, and up to `examples` in a slot.
    """

    steps: tuple[tuple[Slot, ...], ...]
    rows: int
    length: int
    targets: int
    examples: int


def unit_length(unit: Unit) -> int:
    return sum(len(e.tokens) for e in unit)


def pack(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[Row]:
    """First-fit: every unit, in order, goes into the first row that still has room for it.

    Raises ConfigError if one is longer than a row: cutting it would cut supervised tokens.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        if lengths[i] > row_length:
            raise ConfigError(f"example {i} has {lengths[i]} tokens, more than a row of {row_length}; raise `length`")
        for r, free in enumerate(room):
            if lengths[i] <= free:
                rows[r].append(int(i))
                room[r] -= lengths[i]
                break
        else:
            rows.append([int(i)])
            room.append(row_length - lengths[i])
    return [tuple(r) for r in rows]


def plan_organisms(
    units: Sequence[Sequence[Unit]], seeds: Sequence[int], *, epochs: int, rows: int, length: int
) -> Plan:
    """Every organism reads all of its units `epochs` times, `rows` packed rows a step, in its own seeded order.

    An organism's share of the plan depends on its own units and seed only. One that has fewer steps than the others
    ends with empty slots.
    """
    shares = []
    for i, (own, seed) in enumerate(zip(units, seeds, strict=True)):
        # One stream over all epochs, so that no epoch ends on a half-empty row.
        order = [int(i) for e in range(epochs) for i in np.random.default_rng([seed, e]).permutation(len(own))]
        packed = pack([unit_length(u) for u in own], order, length)
        share = [Slot(i, tuple(packed[j : j + rows])) for j in range(0, len(packed), rows)]
        shares.append(share)
    count = max(len(s) for s in shares)
    steps = [[share[s] if s < len(share) else Slot(i, ()) for i, share in enumerate(shares)] for s in range(count)]
    return _sized(steps, units, length, rows)


def plan_joint(
    units: Sequence[Sequence[Unit]],
    *,
    organisms_per_step: int,
    per_slot: int,
    seed: int,
    length: int,
    rows: int = 1,
    steps: int = 0,
    epochs: int = 1,
    always: int | None = None,
) -> Plan:
    """Joint IA training: each step draws k organisms without replacement, uniformly from those with unread units.

    Without `steps` every unit is read `epochs` times, all of them once before any is read again, and an epoch's late
    steps may hold fewer than k organisms (paper_facts 2.3); with `steps`, organisms that were read out begin again. An
    organism's slot holds the next units of its seeded order: `per_slot`, or as many of them as fit into `rows` rows.
    `always` names an organism that takes one slot of every step: the clean model, whose answer is that there is nothing
    unusual, so that abstention is rehearsed throughout.
    """
    rng = np.random.default_rng(seed)
    pool = [i for i in range(len(units)) if i != always]
    queues: dict[int, list[int]] = {i: rng.permutation(len(own)).tolist() for i, own in enumerate(units)}
    k = organisms_per_step - (always is not None)
    plan: list[list[Slot]] = []
    while len(plan) < steps if steps else (epochs > 1 or any(queues[i] for i in pool)):
        if not steps and not any(queues[i] for i in pool):
            epochs -= 1
            queues |= {i: rng.permutation(len(units[i])).tolist() for i in pool}
        alive = [i for i in pool if queues[i]]
        if steps and len(alive) < k:
            for i in pool:
                queues[i] = queues[i] or rng.permutation(len(units[i])).tolist()
            alive = pool
        chosen = [alive[j] for j in rng.permutation(len(alive))[:k]]
        slots = []
        for i in [*chosen, *([] if always is None else [always])]:
            queues[i] = queues[i] or rng.permutation(len(units[i])).tolist()
            lengths, taken = [unit_length(u) for u in units[i]], queues[i][:per_slot]
            while len(packed := pack(lengths, taken, length)) > rows:
                taken = taken[:-1]
            queues[i] = queues[i][len(taken) :]
            slots.append(Slot(i, tuple(packed)))
        plan.append(slots)
    most = max((len(s) for s in plan), default=0)
    return _sized([s + [Slot(s[0].organism, ())] * (most - len(s)) for s in plan], units, length)


def _sized(steps: list[list[Slot]], units: Sequence[Sequence[Unit]], length: int, rows: int = 0) -> Plan:
    slots = [slot for step in steps for slot in step]

    def examples(slot: Slot, row: Row) -> list[ChatExample]:
        return [e for u in row for e in units[slot.organism][u]]

    supervised = [sum(int(e.loss_mask.sum()) for e in examples(s, row)) for s in slots for row in s.rows]
    targets = max(supervised, default=0)
    if targets == 0:
        raise ConfigError("no example has a supervised token; check the chat template and the transcripts")
    most = max(sum(len(examples(s, row)) for row in s.rows) for s in slots)
    rows = rows or max(len(s.rows) for s in slots)
    return Plan(tuple(tuple(s) for s in steps), rows, length, -(-targets // 8) * 8, most)


def identity_of(plan: Plan, units: Sequence[Sequence[Unit]], what: object) -> str:
    """A hash of all that the steps of a plan read, and of `what` else there is to say."""
    identity = hashlib.sha256(repr((what, plan.length, plan.steps)).encode())
    for own in units:
        for unit in own:
            for e in unit:
                identity.update(e.tokens.tobytes() + e.loss_mask.tobytes())
    return identity.hexdigest()[:16]


def dataset(plan: Plan, make: Callable[[Sequence[Slot]], object], ahead: int = 4) -> grain.IterDataset:
    """The steps of a plan as a grain dataset: built in a background thread, its position part of a checkpoint.

    ahead: how many steps are built before they are asked for; what `make` returns is held that many times.
    """
    steps = grain.MapDataset.range(len(plan.steps)).map(lambda s: make(plan.steps[s]))
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
