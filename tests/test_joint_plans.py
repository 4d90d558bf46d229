"""Plans of one adapter over several organisms: who is read when, epochs and draws, full slots, groups of devices."""

from collections import Counter

import numpy as np
import pytest

from ia_jax.data.batch import build_batch
from ia_jax.data.plans import Slot, plan_joint, read_once, spread_over, unit_length
from ia_jax.errors import ConfigError
from tests import sentences
from tests.sentences import LENGTH, sentence

units = sentences.units  # a fixture


def test_chosen_and_rejected_stay_together_and_alternate():
    pairs = [[(sentence(i, 2 * n), sentence(i, 2 * n + 1)) for n in range(3)] for i in (1, 2)]
    plan = plan_joint(pairs, organisms_per_step=2, per_slot=2, seed=0, length=16)
    for step in plan.steps:
        batch = build_batch(step, plan, pairs)
        for i in range(len(step)):
            on = batch.target_weight[i] > 0
            for example, token in zip(batch.target_example[i][on], batch.target_token[i][on], strict=True):
                assert token % 1000 // 20 % 2 == example % 2  # even: chosen


def test_joint_without_steps_reads_every_unit_once(units):
    plan = plan_joint(units, organisms_per_step=2, per_slot=2, seed=0, length=LENGTH)
    read_units = Counter((s.organism, u) for step in plan.steps for s in step for row in s.rows for u in row)
    assert read_units == Counter((i, n) for i, own in enumerate(units) for n in range(len(own)))
    for step in plan.steps:
        busy = [s.organism for s in step if s.rows]
        assert len(set(busy)) == len(busy)
        assert len(step) == 2


def test_joint_epochs_read_every_unit_once_each_though_slots_are_cut(units):
    """Three units seldom fit into a row of 24 tokens, so an epoch takes more steps than its units suggest."""
    read_once = [Counter((i, u) for i, own in enumerate(units) for u in range(len(own)))]
    for epochs in (1, 3):
        plan = plan_joint(units, organisms_per_step=2, per_slot=3, seed=0, length=LENGTH, epochs=epochs)
        seen, epoch = Counter(), []
        for step in plan.steps:
            seen.update((slot.organism, u) for slot in step for row in slot.rows for u in row)
            if seen == read_once[0]:
                epoch, seen = [*epoch, seen], Counter()
        assert len(epoch) == epochs
        assert not seen


def test_joint_with_steps_draws_without_replacement_and_begins_again(units):
    plan = plan_joint(units, organisms_per_step=2, per_slot=2, seed=0, length=LENGTH, steps=40)
    assert len(plan.steps) == 40
    reads = Counter()
    for step in plan.steps:
        assert len({s.organism for s in step}) == 2
        for s in step:
            reads.update((s.organism, u) for row in s.rows for u in row)
    assert len(reads) == sum(map(len, units))
    for i in range(3):  # an organism's units are read equally often, up to the pass that is under way
        counts = [reads[i, n] for n in range(len(units[i]))]
        assert max(counts) - min(counts) <= 1
    assert {s.organism for step in plan.steps for s in step} == {0, 1, 2}


def test_always_takes_a_slot_of_every_step(units):
    for steps in (0, 9):
        plan = plan_joint(units, organisms_per_step=2, per_slot=2, seed=0, length=LENGTH, steps=steps, always=1)
        for step in plan.steps:
            busy = [s.organism for s in step if s.rows]
            assert busy.count(1) == 1
            assert len(busy) == 2
    assert len(plan.steps) == 9


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_computed_of_every_unit_once_stands_where_it_is_read(units, groups):
    """Values that say which example they are of, computed in one arrangement and looked up in another."""
    pairs = [[(*u, *own[n - 1]) for n, u in enumerate(own)] for own in [*units, units[0]]]
    plan = plan_joint(pairs, organisms_per_step=2, per_slot=2, seed=0, length=60, steps=25, always=1, groups=groups)
    once = read_once(plan, pairs, groups)
    assert len(once.steps) < len(plan.steps)
    read_by = {name: Counter(_units_of(p)) for name, p in (("plan", plan), ("once", once))}
    assert set(read_by["once"]) == set(read_by["plan"])
    assert set(read_by["once"].values()) == {1}
    for step in once.steps:
        assert len(step) == 2
        assert all(slot.organism % groups == k * groups // 2 for k, slot in enumerate(step))

    def values(p):
        """What a model would say of every example: here its first token and its own number."""
        out = np.zeros((len(p.steps), 2, p.examples))
        for s, step in enumerate(p.steps):
            for k, slot in enumerate(step):
                own = [e for row in slot.rows for u in row for e in pairs[slot.organism][u]]
                out[s, k, : len(own)] = [e.tokens[0] + 0.1 * slot.organism for e in own]
        return out

    np.testing.assert_array_equal(spread_over(values(once), once, plan, pairs), values(plan))


def _units_of(plan):
    return [(s.organism, u) for step in plan.steps for s in step for row in s.rows for u in row]


def as_drawn_before(units, k, seed, steps, always=None):
    """Slots of one question, as this project first drew them: the oracle for a step's organisms and questions."""
    rng = np.random.default_rng(seed)
    pool = [i for i in range(len(units)) if i != always]
    queues = {i: rng.permutation(len(own)).tolist() for i, own in enumerate(units)}
    plan = []
    while len(plan) < steps:
        alive = [i for i in pool if queues[i]]
        if len(alive) < k - (always is not None):
            for i in pool:
                queues[i] = queues[i] or rng.permutation(len(units[i])).tolist()
            alive = pool
        chosen = [alive[j] for j in rng.permutation(len(alive))[: k - (always is not None)]]
        step = []
        for i in [*chosen, *([] if always is None else [always])]:
            queues[i] = queues[i] or rng.permutation(len(units[i])).tolist()
            step.append((i, queues[i].pop(0)))
        plan.append(step)
    return plan


@pytest.mark.parametrize("always", [None, 2])
def test_slots_of_one_question_are_drawn_as_ever(units, always):
    plan = plan_joint(units, organisms_per_step=2, per_slot=1, seed=5, length=LENGTH, steps=30, always=always)
    drawn = [[(s.organism, s.rows[0][0]) for s in step] for step in plan.steps]
    assert drawn == as_drawn_before(units, 2, 5, 30, always)


def many(organisms, count, seed=0):
    rng = np.random.default_rng(seed)
    return [[(sentence(i, n, int(rng.integers(20, 36)), 3),) for n in range(count)] for i in range(organisms)]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_slot_holds_so_many_units_and_rows_are_full(rows):
    """Twelve units of each organism, four a slot: three slots for nearly each, and little in them is padding."""
    own = many(16, 12)
    plan = plan_joint(own, organisms_per_step=4, per_slot=4, seed=0, length=1000, rows=rows)
    held = Counter(sum(map(len, s.rows)) for step in plan.steps for s in step if s.rows)
    assert max(held) == 4
    assert held[4] >= 0.8 * held.total()  # an organism with longer units than others takes three at a time
    assert held.total() <= 1.05 * 16 * 3
    assert plan.rows == rows
    assert plan.fill > (0.85 if rows == 1 else 0.8)  # two units to a row are less even than four


def test_a_slot_without_a_count_is_as_full_as_it_gets():
    own = many(8, 40)
    plan = plan_joint(own, organisms_per_step=4, per_slot=0, seed=0, length=300)
    assert plan.length <= 304
    assert plan.fill > 0.85
    least = sum(-(-sum(map(unit_length, units)) // 300) for units in own)
    assert sum(bool(s.rows) for step in plan.steps for s in step) <= least + len(own)


def test_nobody_is_left_over_at_the_end_of_an_epoch():
    """Nine organisms with eight slots each, eight a step: nine steps hold them all only if the late ones hurry."""
    for seed in range(5):
        plan = plan_joint(many(9, 8), organisms_per_step=8, per_slot=1, seed=seed, length=100, epochs=2)
        assert len(plan.steps) == 18
        assert all(s.rows for step in plan.steps for s in step)


def test_draws_are_uniform_while_nobody_is_late():
    """Each pair of six organisms comes about equally often among first steps of many seeds."""
    own = many(6, 6)
    pairs = Counter()
    for seed in range(600):
        step = plan_joint(own, organisms_per_step=2, per_slot=1, seed=seed, length=100).steps[0]
        pairs[frozenset(s.organism for s in step)] += 1
    assert len(pairs) == 15
    assert 15 < min(pairs.values()) <= max(pairs.values()) < 70  # 40 expected


@pytest.mark.parametrize("steps", [0, 25])
@pytest.mark.parametrize("always", [None, 11])
def test_groups_keep_to_their_positions(steps, always):
    own = many(12, 5)
    plan = plan_joint(own, organisms_per_step=8, per_slot=1, seed=0, length=100, steps=steps, always=always, groups=4)
    reads = Counter()
    for number, step in enumerate(plan.steps):
        assert len(step) == 8
        cleans = [p for p, s in enumerate(step) if s.organism == always]
        assert [p // 2 for p in cleans if step[p].rows] == ([] if always is None else [number % 4])
        for position, slot in enumerate(step):
            assert slot.organism == always or slot.organism % 4 == position // 2
            reads.update((slot.organism, u) for row in slot.rows for u in row)
        busy = [s.organism for s in step if s.rows]
        assert len(set(busy)) == len(busy)
    counts = [[reads[i, u] for u in range(5)] for i in range(12) if i != always]
    assert all(max(c) - min(c) <= (1 if steps else 0) for c in counts)
    if not steps:
        assert {n for c in counts for n in c} == {1}


def test_a_group_that_is_read_out_leaves_its_positions_empty():
    own = [units[:n] for units, n in zip(many(5, 6), (6, 1, 6, 1, 6), strict=True)]  # group 1: two units in all
    plan = plan_joint(own, organisms_per_step=2, per_slot=1, seed=0, length=100, groups=2)
    assert len(plan.steps) == 18
    assert [bool(step[1].rows) for step in plan.steps] == [True] * 2 + [False] * 16
    assert all(step[1].organism % 2 == 1 for step in plan.steps)
    alone = plan_joint(own[:1], organisms_per_step=2, per_slot=1, seed=0, length=100, groups=2)
    assert all(step[1] == Slot(1, ()) for step in alone.steps)  # a group without any organism


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 10}, "has 13 tokens, more than a row of 10; raise `length`"),
        ({"rows": 2, "per_slot": 3}, "per_slot=3 is no multiple of rows=2"),
        ({"groups": 2, "organisms_per_step": 3}, "3 organisms a step do not divide into 2 groups of devices"),
        ({"organisms_per_step": 1, "always": 0}, "the clean model would take the only slot of every step"),
    ],
)
def test_joint_plans_that_cannot_be(units, changed, message):
    with pytest.raises(ConfigError, match=message):
        plan_joint(units, **{"organisms_per_step": 2, "per_slot": 2, "seed": 0, "length": LENGTH, **changed})


def test_joint_plans_follow_their_seed(units):
    plans = [plan_joint(units, organisms_per_step=2, per_slot=2, seed=s, length=LENGTH) for s in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
