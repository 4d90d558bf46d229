"""Token batches: packing, the plan of what each step reads, and its lazy, checkpointable execution by grain.

A plan is decided up front as a pure function of the examples and a seed: for every step and organism slot, which
examples go into which rows. Building the arrays of step s needs nothing but the plan, so a restored run continues with
exactly the batch that came next. Packing never mixes organisms: a row has one adapter.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample
from ia_jax.parallel.platform import platform

if TYPE_CHECKING:
    import grain

Unit = tuple[ChatExample, ...]  # what stays together: one example, or a chosen and a rejected answer


class Shared(tuple[ChatExample, ...]):
    """A unit whose examples answer one prompt: its tokens stand in the row once, and each answer is a branch behind it
    (`attention.BRANCH`), as it would be without the others. Not for TPUs, whose kernel knows no branches.
    """


def shared(examples: Sequence[ChatExample]) -> Unit:
    """`Shared`, if there are several, they have one prompt, and this is no program for a TPU; else a plain unit."""
    alike = len(examples) > 1 and all(np.array_equal(e.prompt, examples[0].prompt) for e in examples[1:])
    return Shared(examples) if alike and platform() != "tpu" else tuple(examples)


Row = tuple[int, ...]  # indices of the units packed into one row
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Slot:
    """What one organism reads in one step: its index among all organisms, and rows of unit indices."""

    organism: int
    rows: Rows


@dataclass(frozen=True)
class Plan:
    """Steps of K slots each, and the array sizes that hold every one of them.

    rows, length: of a slot, so a batch is [K, rows, length] tokens. targets: the most supervised tokens of a row;
    examples: the most of a slot. tokens, supervised: how many real and supervised ones all steps hold together.
    """

    steps: tuple[tuple[Slot, ...], ...]
    rows: int
    length: int
    targets: int
    examples: int
    tokens: int
    supervised: int

    @property
    def fill(self) -> float:
        """Share of the batches' tokens that are real, over all steps; the rest is padding."""
        return self.tokens / (len(self.steps) * len(self.steps[0]) * self.rows * self.length)


# What a row's length is rounded up to. On TPU the tokens of a row lie on the second-last axis, whose tiles hold 16 bf16
# values, and the fused attention kernel takes multiples of 128, which short rows can do without. The shortest, of small
# models on CPU, would lose more to 16 than a tile is worth.
_MULTIPLES = ((128, 8), (512, 16))
_LONG_MULTIPLE = 128
FULL = 0.95  # a row of which so much is real is not filled up from the next epoch


def rounded_length(length: int) -> int:
    """The length of arrays whose longest row has that many tokens."""
    multiple = next((m for most, m in _MULTIPLES if length <= most), _LONG_MULTIPLE)
    return -(-length // multiple) * multiple


def unit_length(unit: Unit) -> int:
    """Tokens that it takes of a row."""
    again = (len(unit) - 1) * len(unit[0].prompt) if isinstance(unit, Shared) else 0
    return sum(len(e.tokens) for e in unit) - again


def pack(lengths: Sequence[int], epochs: Sequence[Sequence[int]], row_length: int) -> list[Row]:
    """All units of one epoch after the other, in rows that are as full as can be.

    Each row begins with the next unit of its epoch's order and takes those of the epoch's others that fill it best;
    where these leave room, as at its end, also some of the next epoch's. Raises ConfigError for a unit that is longer.
    """
    stream = [(e, i) for e, order in enumerate(epochs) for i in order]
    for _, i in stream:
        _check_fits(i, lengths[i], row_length)
    rows: list[Row] = []
    while stream:
        (epoch, first), taken = stream[0], [0]
        for latest in (epoch, epoch + 1):
            others = [lengths[i] for e, i in stream[1:] if e <= latest]
            taken = [0, *(j + 1 for j in _fullest(others, row_length - lengths[first]))]
            if sum(lengths[stream[j][1]] for j in taken) >= FULL * row_length:
                break
        rows.append(tuple(stream[j][1] for j in taken))
        stream = [x for j, x in enumerate(stream) if j not in taken]
    return rows


def _fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Which of these lengths add up to most, and to no more than `room`; of equal choices one of early ones."""
    sums = [1]  # bit n: whether some of the first lengths add up to n
    for n in lengths:
        sums.append((sums[-1] | sums[-1] << n) & ((2 << room) - 1))
    total, chosen = sums[-1].bit_length() - 1, []
    for j in reversed(range(len(lengths))):
        if not sums[j] >> total & 1:
            chosen.append(j)
            total -= lengths[j]
    return chosen[::-1]


def even_rows(lengths: Sequence[int], order: Sequence[int], count: int, row_length: int, most: int) -> list[Row] | None:
    """All units in `count` rows of about equal length with at most `most` units each; None if they do not fit so.

    Longest first, each into the emptiest row (of equal ones, in the order of `order`); then rows come in the order in
    which their first units stand in `order`. Empty rows are left out.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, r) for r in range(count)]  # a heap already
    for i in sorted(order, key=lambda i: -lengths[i]):
        if not emptiest or emptiest[0][0] + lengths[i] > row_length:
            return None
        load, r = emptiest[0]
        rows[r].append(int(i))
        if len(rows[r]) < most:
            heapq.heapreplace(emptiest, (load + lengths[i], r))
        else:
            heapq.heappop(emptiest)
    place = {i: n for n, i in enumerate(order)}
    rows = [sorted(r, key=place.__getitem__) for r in rows if r]
    return [tuple(r) for r in sorted(rows, key=lambda r: place[r[0]])]


def plan_organisms(
    units: Sequence[Sequence[Unit]], seeds: Sequence[int], *, epochs: int, rows: int, length: int
) -> Plan:
    """Every organism reads all of its units `epochs` times, `rows` packed rows a step, in its own seeded order.

    An organism's share of the plan depends on its own units and seed only. One that has fewer steps than the others
    ends with empty slots.
    """
    shares = []
    for i, (own, seed) in enumerate(zip(units, seeds, strict=True)):
        orders = [np.random.default_rng([seed, e]).permutation(len(own)).tolist() for e in range(epochs)]
        packed = pack([unit_length(u) for u in own], orders, length)
        shares.append([Slot(i, tuple(packed[j : j + rows])) for j in range(0, len(packed), rows)])
    count = max(len(s) for s in shares)
    steps = [[share[s] if s < len(share) else Slot(i, ()) for i, share in enumerate(shares)] for s in range(count)]
    return sized(steps, units, rows)


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
    groups: int = 1,
) -> Plan:
    """Joint IA training: each step draws k organisms without replacement, uniformly from those with unread units.

    Without `steps` every unit is read `epochs` times, all of them once before any is read again (paper_facts 2.3). An
    organism that would be left over when the others are read out is drawn for certain, so that few late steps hold
    fewer than k. With `steps`, organisms that were read out begin again.

    An organism's units are dealt out to its slots up front, so that these are about equally long, and come in a seeded
    order. A slot holds `per_slot` units (0: as many as fit) in `rows` rows. Rows are never longer than `length`, and no
    longer than nearly all slots need: an organism whose units are unusually long takes fewer at a time.

    `always` names an organism that takes one slot of every step: the clean model, whose answer is that there is nothing
    unusual, so that abstention is rehearsed throughout.

    groups: organism i is at home in group i % groups, and a step's positions from g * k / groups on hold organisms of
    group g alone; so where groups of devices hold their own organisms, none moves. `always` is at home in all groups,
    and takes a position of each in turn. A group that is read out leaves its positions empty.

    Raises ConfigError for a unit longer than a row, and for counts that do not divide.
    """
    lengths = [[unit_length(u) for u in own] for own in units]
    row_length = _joint_row_length(lengths, per_slot, rows, length)
    if organisms_per_step % groups:
        raise ConfigError(f"{organisms_per_step} organisms a step do not divide into {groups} groups of devices")
    if always is not None and organisms_per_step == 1:
        raise ConfigError("the clean model would take the only slot of every step; put 2 organisms or more into a step")
    rng = np.random.default_rng(seed)
    pool = [i for i in range(len(units)) if i != always]
    homes = [[i for i in pool if i % groups == g] for g in range(groups)]

    def shuffled(i: int) -> list[Rows]:
        return _slots(lengths[i], rng.permutation(len(lengths[i])).tolist(), rows, row_length, per_slot)

    queues = {i: shuffled(i) for i in range(len(units))}
    each = organisms_per_step // groups
    plan: list[list[Slot]] = []
    while len(plan) < steps if steps else (epochs > 1 or any(queues[i] for i in pool)):
        if not steps and not any(queues[i] for i in pool):
            epochs -= 1
            queues |= {i: shuffled(i) for i in pool}
        step: list[Slot] = []
        for g, home in enumerate(homes):
            clean = [always] if always is not None and len(plan) % groups == g else []
            k = each - len(clean)
            alive = [i for i in home if queues[i]]
            if steps and len(alive) < k:
                queues |= {i: queues[i] or shuffled(i) for i in home}
                alive = home
            chosen = _drawn({i: len(queues[i]) for i in alive}, k, rng, hurry=not steps) + clean
            queues |= {i: queues[i] or shuffled(i) for i in clean}
            slots = [Slot(i, queues[i].pop(0)) for i in chosen]
            # What is left empty names an organism that is there anyway.
            step += slots + [Slot(slots[0].organism if slots else g, ())] * (each - len(slots))
        plan.append(step)
    return sized(plan, units, rows)


def _drawn(unread: Mapping[int, int], k: int, rng: np.random.Generator, hurry: bool) -> list[int]:
    """k of the organisms (all, if they are fewer), drawn uniformly. unread: {organism: slots that it has left}.

    hurry: those first that could not be read out, one slot a step, in as many steps as all of them need.
    """
    names, late = list(unread), set()
    drawn = [names[j] for j in rng.permutation(len(names))]
    if hurry and k and unread:
        needed = max(max(unread.values()), math.ceil(sum(unread.values()) / k))
        late = {i for i, n in unread.items() if n == needed}
    chosen = {*sorted(drawn, key=lambda i: i not in late)[:k]}
    return [i for i in drawn if i in chosen]


MORE_SLOTS = 1.05  # than at least needed: so much may a joint plan's steps grow for the sake of shorter rows


def _joint_row_length(lengths: Sequence[Sequence[int]], per_slot: int, rows: int, length: int) -> int:
    """Tokens that a row of a joint plan may hold: `length` or, with `per_slot`, as few as nearly all slots need."""
    if per_slot % rows:
        raise ConfigError(f"per_slot={per_slot} is no multiple of rows={rows}; make it one, or set rows=1")
    every = [n for own in lengths for n in own]
    for own in lengths:
        for i, n in enumerate(own):
            _check_fits(i, n, length)
    if not per_slot or not every:
        return length
    fewest = sum(math.ceil(len(own) / per_slot) for own in lengths)
    shortest = max(max(every), math.ceil(per_slot // rows * sum(every) / len(every)))
    for tokens in range(shortest, length):
        if tokens == rounded_length(tokens) and fewest * MORE_SLOTS >= sum(
            len(_slots(own, range(len(own)), rows, tokens, per_slot)) for own in lengths
        ):
            return tokens
    return length


def _slots(lengths: Sequence[int], order: Sequence[int], rows: int, row_length: int, per_slot: int) -> list[Rows]:
    """One organism's units in as few slots as hold them, of about equal length."""
    count = math.ceil(sum(lengths) / (rows * row_length))
    if per_slot:
        count = max(count, math.ceil(len(lengths) / per_slot))
    while (even := even_rows(lengths, order, count * rows, row_length, per_slot // rows or len(lengths))) is None:
        count += 1
    return [tuple(even[j : j + rows]) for j in range(0, len(even), rows)]


def _check_fits(number: int, tokens: int, row_length: int) -> None:
    if tokens > row_length:
        raise ConfigError(f"example {number} has {tokens} tokens, more than a row of {row_length}; raise `length`")


def sized(steps: Sequence[Sequence[Slot]], units: Sequence[Sequence[Unit]], rows: int) -> Plan:
    """These steps as a plan, whose array sizes hold every one of them."""
    slots = [slot for step in steps for slot in step]

    def examples(slot: Slot, row: Row) -> list[ChatExample]:
        return [e for u in row for e in units[slot.organism][u]]

    supervised = [sum(int(e.loss_mask.sum()) for e in examples(s, row)) for s in slots for row in s.rows]
    if not any(supervised):
        raise ConfigError("no example has a supervised token; check the chat template and the transcripts")
    targets = -(-max(supervised) // 8) * 8
    most = max(sum(len(examples(s, row)) for row in s.rows) for s in slots)
    loads = [sum(unit_length(units[s.organism][u]) for u in row) for s in slots for row in s.rows]
    length = rounded_length(max(loads))
    return Plan(tuple(tuple(s) for s in steps), rows, length, targets, most, sum(loads), sum(supervised))


def read_once(plan: Plan, units: Sequence[Sequence[Unit]], groups: int = 1) -> Plan:
    """Steps of as many slots that hold every unit which the plan reads, once: for what is computed of each unit,
    however often it is read. Organism i stays in group i % groups.
    """
    used: dict[int, dict[int, None]] = {}
    for slot in (slot for step in plan.steps for slot in step):
        used.setdefault(slot.organism, {}).update(dict.fromkeys(u for row in slot.rows for u in row))
    queues: list[list[Slot]] = [[] for _ in range(groups)]
    for organism, own in used.items():
        packed = pack([unit_length(u) for u in units[organism]], [list(own)], plan.length)
        rows = [tuple(packed[j : j + plan.rows]) for j in range(0, len(packed), plan.rows)]
        queues[organism % groups] += [Slot(organism, r) for r in rows]
    each = len(plan.steps[0]) // groups
    steps = []
    for s in range(-(-max(map(len, queues)) // each)):
        parts = [queue[s * each : (s + 1) * each] for queue in queues]
        steps.append([x for g, own in enumerate(parts) for x in [*own, *[Slot(g, ())] * (each - len(own))]])
    return sized(steps, units, plan.rows)


def spread_over(values: np.ndarray, once: Plan, plan: Plan, units: Sequence[Sequence[Unit]]) -> np.ndarray:
    """What `once` (of `read_once`) computed of its examples, [its steps, K, its examples], as the plan reads them:
    [steps, K, examples], 0 where there is none.
    """
    known: dict[tuple[int, int], np.ndarray] = {}
    for s, k, n, slot, unit in _places(once, units):
        known[slot.organism, unit] = values[s, k, n : n + len(units[slot.organism][unit])]
    out = np.zeros((len(plan.steps), len(plan.steps[0]), plan.examples), values.dtype)
    for s, k, n, slot, unit in _places(plan, units):
        own = known[slot.organism, unit]
        out[s, k, n : n + len(own)] = own
    return out


def _places(plan: Plan, units: Sequence[Sequence[Unit]]) -> Iterator[tuple[int, int, int, Slot, int]]:
    """(step, position, number of its first example there, slot, unit) of every unit, as `build_batch` counts them."""
    for s, step in enumerate(plan.steps):
        for k, slot in enumerate(step):
            n = 0
            for unit in (u for row in slot.rows for u in row):
                yield s, k, n, slot, unit
                n += len(units[slot.organism][unit])


def identity_of(plan: Plan, units: Sequence[Sequence[Unit]], what: object) -> str:
    """A hash of all that the steps of a plan read, and of `what` else there is to say."""
    identity = hashlib.sha256(repr((what, plan.length, plan.steps)).encode())
    for own in units:
        for unit in own:
            for e in unit:
                identity.update(e.tokens.tobytes() + e.loss_mask.tobytes())
                if e.desirable is not None:
                    identity.update(b"desirable" if e.desirable else b"undesirable")
    return identity.hexdigest()[:16]


def dataset(plan: Plan, make: Callable[[Sequence[Slot]], object], ahead: int = 4) -> "grain.IterDataset":
    """The steps of a plan as a grain dataset: built in a background thread, its position part of a checkpoint.

    ahead: how many steps are built before they are asked for; what `make` returns is held that many times.
    """
    import grain  # late: who only builds batches can do without it

    steps = grain.MapDataset.range(len(plan.steps)).map(lambda s: make(plan.steps[s]))
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
