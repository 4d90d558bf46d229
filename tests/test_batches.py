"""Packing, plans and batches: nothing lost, nothing read twice, no organism in another's row, little padding."""

import itertools
from collections import Counter

import numpy as np
import pytest

from ia_jax.data.batch import build_batch, shared_rows, token_counts
from ia_jax.data.plans import (
    Shared,
    Slot,
    dataset,
    even_rows,
    pack,
    plan_joint,
    plan_organisms,
    read_once,
    rounded_length,
    shared,
    sized,
    spread_over,
    unit_length,
)
from ia_jax.errors import ConfigError
from ia_jax.models.attention import BRANCH
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


def test_pack_begins_with_what_is_next_and_fills_as_well_as_can_be():
    """Against all subsets of what an epoch has left."""
    rng = np.random.default_rng(3)
    for length in (20, 31, 64):
        lengths = rng.integers(3, 20, 9).tolist()
        epochs = [rng.permutation(9).tolist() for _ in range(3)]
        left = [(e, i) for e, order in enumerate(epochs) for i in order]
        for row in pack(lengths, epochs, length):
            epoch, first = left[0]
            assert row[0] == first
            own = [i for e, i in left[1:] if e == epoch]
            best = max(
                sum(lengths[i] for i in (first, *others))
                for n in range(len(own) + 1)
                for others in itertools.combinations(own, n)
                if sum(lengths[i] for i in (first, *others)) <= length
            )
            assert best <= sum(lengths[i] for i in row) <= length
            for i in row:  # of equal units, the earlier epoch's is read
                left.remove(next(x for x in left if x[1] == i))
        assert not left


def test_pack_reads_on_into_the_next_epoch_only_for_a_row_that_would_not_be_full():
    assert pack([4, 4, 4], [[0, 1, 2], [2, 1, 0]], 8) == [(0, 1), (2, 2), (1, 0)]
    assert pack([6, 6, 2, 2], [[0, 2, 1, 3]], 8) == [(0, 2), (1, 3)]


def test_even_rows_are_even():
    rng = np.random.default_rng(4)
    for count, most in ((3, 8), (5, 4), (7, 3)):
        lengths, order = rng.integers(5, 30, 20).tolist(), rng.permutation(20).tolist()
        rows = even_rows(lengths, order, count, 1000, most)
        assert sorted(i for row in rows for i in row) == list(range(20))
        assert max(map(len, rows)) <= most
        loads = [sum(lengths[i] for i in row) for row in rows]
        assert max(loads) - min(loads) <= max(lengths)
        assert max(loads) <= 4 / 3 * max(sum(lengths) / count, max(lengths))  # longest first: at most so far from best
        assert [order.index(row[0]) for row in rows] == sorted(order.index(row[0]) for row in rows)
        assert even_rows(lengths, order, count, max(loads) - 1, most) is None
    assert even_rows([5, 5, 5], [0, 1, 2], 1, 100, 2) is None  # one too many


@pytest.mark.parametrize(("longest", "length"), [(1, 8), (41, 48), (128, 128), (129, 144), (512, 512), (513, 640)])
def test_rows_are_as_long_as_the_longest_rounded_up(longest, length):
    assert rounded_length(longest) == length
    plan = plan_organisms([[(sentence(1, 0, longest + 2, 1),)]], [0], epochs=1, rows=1, length=4096)
    assert plan.length == rounded_length(longest + 2)


def test_fill_is_the_share_of_the_arrays_that_is_real(units):
    for plan in (
        plan_organisms(units, [0, 1, 2], epochs=2, rows=2, length=LENGTH),
        plan_joint(units, organisms_per_step=2, per_slot=2, seed=0, length=60),
    ):
        batches = [build_batch(step, plan, units) for step in plan.steps]
        real = [float((b.segment_ids > 0).mean()) for b in batches]
        assert plan.fill == pytest.approx(np.mean(real))
        assert [float(token_counts(b)["fill"]) for b in batches] == pytest.approx(real)
        assert plan.tokens == sum(int((b.segment_ids > 0).sum()) for b in batches)


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
    read_in_turn = [u for rows in orders[0] for row in rows for u in row]
    assert read_in_turn[: len(units[0])] != read_in_turn[len(units[0]) :]


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


def test_answers_to_one_prompt_share_its_tokens():
    """Hand-worked: three answers to one question, of which two fit into a row of 12, and one to another."""
    asked, other = [7, 8, 9, 10], [7, 8, 5]

    def example(prompt, answer):
        tokens = np.array([*prompt, *answer], np.int32)
        return ChatExample(tokens, np.arange(len(tokens)) >= len(prompt))

    examples = [example(asked, [1, 2, 3]), example(other, [4]), example(asked, [4, 5]), example(asked, [6, 6, 6, 6])]
    rows = shared_rows(examples, 12)
    assert rows == [[0, 2], [3], [1]]
    assert shared_rows(examples, 1) == [[0], [2], [3], [1]]  # longer than asked for, but each by itself
    units = [shared([examples[i] for i in row]) for row in rows]
    assert [type(u) for u in units] == [Shared, tuple, tuple]
    assert [unit_length(u) for u in units] == [9, 8, 4]
    assert type(shared([examples[0], examples[1]])) is tuple  # two prompts
    plan = sized([[Slot(0, ((2, 0), (1,)))]], [units], 2)
    assert (plan.length, plan.targets, plan.examples, plan.tokens, plan.supervised) == (16, 8, 4, 21, 10)
    batch = build_batch(plan.steps[0], plan, [units])
    # The other question first, then the stem and its two branches.
    assert batch.tokens[0, 0].tolist() == [7, 8, 5, 4, 7, 8, 9, 10, 1, 2, 3, 4, 5, 0, 0, 0]
    assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 0, 0]
    one, two = 2 + BRANCH, 2 + 2 * BRANCH
    assert batch.segment_ids[0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, one, one, one, two, two, 0, 0, 0]
    # (position that predicts, token, example): each answer's first comes from the end of the prompt.
    where = np.nonzero(batch.target_weight)
    read = (batch.target_index, batch.target_token, batch.target_example)
    told = list(zip(*(x[where].tolist() for x in read), strict=True))
    assert told == [
        *[(2, 4, 0), (7, 1, 1), (8, 2, 1), (9, 3, 1), (7, 4, 2), (11, 5, 2)],
        *[(3, 6, 3), (4, 6, 3), (5, 6, 3), (6, 6, 3)],
    ]
    assert int(token_counts(batch)["tokens"]) == 9 + 8 + 4


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
