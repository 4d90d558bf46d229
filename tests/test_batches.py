"""Packing and batches: nothing lost, nothing read twice, no organism in another's row, little padding."""

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
    rounded_length,
    shared,
    sized,
    unit_length,
)
from ia_jax.errors import ConfigError
from ia_jax.models.attention import BRANCH
from ia_jax.models.chat import ChatExample
from tests import sentences, tiny
from tests.sentences import LENGTH, sentence

units = sentences.units  # a fixture


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
