"""Packing, plans and batches: nothing lost, nothing read twice, no organism in another's row."""

from collections import Counter

import numpy as np
import pytest

from ia_jax.data.batch import build_batch
from ia_jax.data.plans import Slot, dataset, pack, plan_joint, plan_organisms
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample
from tests import tiny

LENGTH = 24


def sentence(organism, number, length=8, answer=3):
    """An example whose tokens say where they come from: organism * 1000 + example * 20 + position."""
    return ChatExample(
        (organism * 1000 + number * 20 + np.arange(length)).astype(np.int32), np.arange(length) >= length - answer
    )


@pytest.fixture
def units():
    rng = np.random.default_rng(0)
    return [
        [(sentence(i, n, int(rng.integers(4, 15)), int(rng.integers(1, 4))),) for n in range(count)]
        for i, count in ((1, 7), (2, 4), (3, 11))
    ]


def read(step, plan, units):
    """What each slot of a step supervises, from the arrays alone: [(token, token before it, weight)] by slot."""
    batch = build_batch(step, plan, units)
    assert batch.tokens.shape == (len(step), plan.rows, plan.length)
    assert batch.target_index.shape == (len(step), plan.rows, plan.targets)
    seen = []
    for i in range(len(step)):
        rows, where = np.nonzero(batch.target_weight[i])
        before = batch.tokens[i, rows, batch.target_index[i, rows, where]]
        seen.append(list(zip(batch.target_token[i, rows, where], before, strict=True)))
    return batch, seen


def test_every_supervised_token_is_predicted_once_an_epoch_from_the_token_before_it(units):
    plan = plan_organisms(units, [0, 1, 2], epochs=2, rows=2, length=LENGTH)
    seen = Counter()
    for step in plan.steps:
        for pairs in read(step, plan, units)[1]:
            for token, before in pairs:
                assert before == token - 1
                seen[int(token)] += 1
    wanted = [int(t) for own in units for (e,) in own for t in e.tokens[e.loss_mask]]
    assert seen == Counter(wanted * 2)


def test_arrays_of_a_batch_agree_with_each_other(units):
    plan = plan_organisms(units, [0, 1, 2], epochs=1, rows=2, length=LENGTH)
    for step in plan.steps:
        batch, _ = read(step, plan, units)
        for slot, tokens, segments, positions in zip(
            step, batch.tokens, batch.segment_ids, batch.positions, strict=True
        ):
            real = segments > 0
            assert set(tokens[real] // 1000) <= {slot.organism + 1}  # a row never mixes organisms
            assert not tokens[~real].any()
            np.testing.assert_array_equal(positions[real], tokens[real] % 20)  # each example counts from 0
            for row, segment in zip(tokens, segments, strict=True):
                examples = row[segment > 0] // 20
                assert len(set(zip(examples, segment[segment > 0], strict=True))) == len(set(examples))


def test_examples_are_numbered_within_a_slot(units):
    plan = plan_organisms(units, [0, 1, 2], epochs=1, rows=2, length=LENGTH)
    for step in plan.steps:
        batch = build_batch(step, plan, units)
        for i, slot in enumerate(step):
            on = batch.target_weight[i] > 0
            number = sum(len(r) for r in slot.rows)
            assert sorted(set(batch.target_example[i][on].tolist())) == list(range(number))
            for n in range(number):
                assert len(set(batch.target_token[i][on][batch.target_example[i][on] == n] // 20)) == 1
            assert number <= plan.examples


def test_chosen_and_rejected_stay_together_and_alternate():
    pairs = [[(sentence(i, 2 * n), sentence(i, 2 * n + 1)) for n in range(3)] for i in (1, 2)]
    plan = plan_joint(pairs, organisms_per_step=2, per_slot=2, seed=0, length=16)
    for step in plan.steps:
        batch = build_batch(step, plan, pairs)
        for i in range(len(step)):
            on = batch.target_weight[i] > 0
            for example, token in zip(batch.target_example[i][on], batch.target_token[i][on], strict=True):
                assert token % 1000 // 20 % 2 == example % 2  # even: chosen


def test_pack_is_first_fit():
    assert pack([5, 4, 3, 2, 6], [0, 1, 2, 3, 4], 8) == [(0, 2), (1, 3), (4,)]
    assert pack([5, 4, 3, 2, 6], [4, 3, 2, 1, 0], 8) == [(4, 3), (2, 1), (0,)]


def test_an_example_longer_than_a_row_raises(units):
    with pytest.raises(ConfigError, match=r"has 30 tokens, more than a row of 24; raise `length`"):
        plan_organisms([[(sentence(1, 0, 30),)]], [0], epochs=1, rows=1, length=LENGTH)


def test_all_masked_examples_raise():
    masked = ChatExample(np.arange(5, dtype=np.int32), np.zeros(5, bool))
    with pytest.raises(ConfigError, match="no example has a supervised token"):
        plan_organisms([[(masked,)]], [0], epochs=1, rows=1, length=LENGTH)
    units = [[(masked,), (sentence(1, 1),)]]
    plan = plan_organisms(units, [0], epochs=1, rows=1, length=LENGTH)
    with pytest.raises(ConfigError, match="no supervised token after its prompt"):
        [build_batch(s, plan, units) for s in plan.steps]


def test_a_supervised_first_token_raises():
    first = ChatExample(np.arange(5, dtype=np.int32), np.ones(5, bool))
    plan = plan_organisms([[(first,)]], [0], epochs=1, rows=1, length=LENGTH)
    with pytest.raises(ConfigError, match="no supervised token after its prompt"):
        build_batch(plan.steps[0], plan, [[(first,)]])


def test_no_units_at_all():
    with pytest.raises(ConfigError):
        plan_organisms([[]], [0], epochs=1, rows=1, length=LENGTH)


def test_an_organisms_share_does_not_depend_on_the_others(units):
    def share(chosen, organism):
        plan = plan_organisms([units[i] for i in chosen], chosen, epochs=3, rows=2, length=LENGTH)
        rows = [step[chosen.index(organism)].rows for step in plan.steps]
        return [r for r in rows if r]

    assert share([0, 1, 2], 1) == share([1], 1) == share([1, 0], 1)


def test_seeds_and_epochs_reorder(units):
    orders = [
        [step[0].rows for step in plan_organisms(units[:1], [s], epochs=2, rows=1, length=LENGTH).steps]
        for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    units_of = [[u for rows in orders[0][half] for row in rows for u in row] for half in (slice(0, 4), slice(4, None))]
    assert units_of[0] != units_of[1]


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


def test_joint_plans_follow_their_seed(units):
    plans = [plan_joint(units, organisms_per_step=2, per_slot=2, seed=s, length=LENGTH) for s in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_empty_slots_hold_nothing(units):
    plan = plan_organisms(units, [0, 1, 2], epochs=1, rows=1, length=LENGTH)
    batch = build_batch([Slot(0, ()), plan.steps[0][1]], plan, units)
    assert not batch.target_weight[0].any()
    assert not batch.segment_ids[0].any()
    assert batch.target_weight[1].any()


def test_the_dataset_continues_where_it_stood(units):
    plan = plan_organisms(units, [0, 1, 2], epochs=3, rows=1, length=LENGTH)
    data = dataset(plan, lambda step: build_batch(step, plan, units))
    iterator = iter(data)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    assert len(rest) == len(plan.steps) - 3
    again = iter(data)
    next(again)
    again.set_state(state)
    continued = list(again)
    assert len(continued) == len(rest)
    assert not tiny.differs(continued, rest)
    assert not tiny.differs(rest, [build_batch(s, plan, units) for s in plan.steps[3:]])
