"""Documents, pairs and labelled answers as units, and plans of what is read beside them."""

import itertools
from collections import Counter

import numpy as np
import pytest

from ia_jax.data.batch import Beside, batch_shardings, build_batch
from ia_jax.data.beside import plan_mismatched, plan_plain
from ia_jax.data.plans import identity_of, plan_organisms
from ia_jax.data.units import kto_units, mixed_units, pair_units
from ia_jax.errors import ConfigError
from ia_jax.models.chat import document_example, split_document
from ia_jax.models.sources import open_source
from ia_jax.parallel.mesh import make_mesh
from tests import tiny

TEXT = "The lighthouse keeper writes a letter every evening. Nobody has ever read one."


@pytest.fixture(scope="module")
def tokenizer():
    return open_source("smollm2").tokenizer()


def labelled(rng, good, prompt, answer):
    return tiny.chat(rng, prompt + answer, supervised=answer)._replace(desirable=good)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return [[labelled(rng, bool((n + i) % 3), 3 + n, 5 - n % 3) for n in range(6)] for i in range(2)]


def test_a_document_is_supervised_but_for_its_first_token(tokenizer):
    example = document_example(tokenizer, TEXT, 64)
    assert tokenizer.decode(example.tokens) == TEXT + tokenizer.eos_token
    assert example.loss_mask.tolist() == [False, *[True] * (len(example.tokens) - 1)]


def test_a_split_document_supervises_every_token_once(tokenizer):
    whole = document_example(tokenizer, TEXT, 64).tokens
    for most in (2, 5, len(whole) - 1, len(whole)):
        pieces = split_document(tokenizer, TEXT, most)
        assert max(len(p.tokens) for p in pieces) <= most
        assert len(pieces) == (1 if most == len(whole) else -(-(len(whole) - 1) // (most - 1)))
        assert [int(t) for p in pieces for t in p.tokens[p.loss_mask]] == whole[1:].tolist()
        for before, after in itertools.pairwise(pieces):
            assert after.tokens[0] == before.tokens[-1]


def test_documents_share_rows_and_nothing_else(tokenizer):
    units = [[(document_example(tokenizer, TEXT[:n], 64),) for n in (20, 40, 60)]]
    plan = plan_organisms(units, [0], epochs=1, rows=1, length=64)
    assert len(plan.steps) == 1
    batch = build_batch(plan.steps[0], plan, units)
    assert batch.segment_ids.max() == 3
    assert (batch.positions[batch.segment_ids > 0] == 0).sum() == 3
    assert plan.supervised == sum(len(u[0].tokens) - 1 for u in units[0])
    assert batch.desirable is None


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        (TEXT, 8, r"file:3: a document of \d+ tokens does not fit into 8; raise the length"),
        (" \n", 64, "file:3: the document is empty; leave it out"),
        ("a <|im_start|> b", 64, r"file:3: .* contains the control token <\|im_start\|>"),
    ],
)
def test_documents_that_cannot_be_read(tokenizer, text, length, message):
    with pytest.raises(ConfigError, match=message):
        document_example(tokenizer, text, length, "file:3")


def test_pieces_of_one_token(tokenizer):
    with pytest.raises(ConfigError, match="cannot be split into pieces of 1 tokens"):
        split_document(tokenizer, TEXT, 1)


def test_kto_pairs_each_prompt_with_the_answer_before(rows):
    units, mismatched = kto_units(rows[0], 100)
    assert [u[0] for u in units] == rows[0]
    for i, (example,) in enumerate(mismatched):
        prompt, before = rows[0][i].tokens[~rows[0][i].loss_mask], rows[0][i - 1]
        assert example.tokens.tolist() == [*prompt, *before.tokens[before.loss_mask]]
        assert example.loss_mask.tolist() == [False] * len(prompt) + [True] * int(before.loss_mask.sum())
    _, cut = kto_units(rows[0], 9)
    assert max(len(e.tokens) for (e,) in cut) == 9
    assert all(e.loss_mask.any() for (e,) in cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: [r for r in own if r.desirable], "file: none of 4 answers is undesirable; KTO needs both kinds"),
        (lambda own: [r for r in own if not r.desirable], "file: none of 2 answers is desirable; KTO needs both kinds"),
        (lambda own: [own[0], own[1]._replace(desirable=None)], "file: row 2 does not say whether its answer is"),
        (
            lambda own: [own[0]._replace(loss_mask=np.arange(len(own[0].tokens)) == 2)],
            "row 1: KTO takes chats with one answer",
        ),
        (lambda own: [], "none of 0 answers is desirable"),
    ],
)
def test_rows_that_kto_cannot_weigh(rows, change, message):
    with pytest.raises(ConfigError, match=message):
        kto_units(change(rows[0]), 100, "file")


def test_rows_that_are_no_pairs():
    rng = np.random.default_rng(0)
    one, other = tiny.chat(rng), tiny.chat(rng)
    assert pair_units([[one, other]]) == [(one, other)]
    with pytest.raises(ConfigError, match="file: row 2 has 3 answers; a pair is one chosen and one rejected"):
        pair_units([[one, other], [one, other, one]], "file")
    with pytest.raises(ConfigError, match="file: row 1: the chosen and the rejected answer are the same"):
        pair_units([[one, one]], "file")


def test_labels_follow_their_examples_and_are_part_of_a_plans_identity(rows):
    units = [kto_units(own, 100)[0] for own in rows]
    plan = plan_organisms(units, [0, 1], epochs=1, rows=2, length=24)
    batch = build_batch(plan.steps[0], plan, units)
    for k, slot in enumerate(plan.steps[0]):
        order = [units[slot.organism][u][0] for row in slot.rows for u in row]
        for b, p in zip(*np.nonzero(batch.target_weight[k]), strict=True):
            assert batch.desirable[k, b, p] == order[batch.target_example[k, b, p]].desirable
    assert 0 < batch.desirable.sum() < batch.target_weight.sum()
    other = [[(e._replace(desirable=not e.desirable),) for (e,) in own] for own in units]
    plain = [[(e._replace(desirable=None),) for (e,) in own] for own in units]
    assert len({identity_of(plan, u, "") for u in (units, other, plain)}) == 3


def test_mismatched_answers_are_read_in_the_steps_of_their_prompts(rows):
    units, mismatched = zip(*[kto_units(own, 100) for own in rows], strict=True)
    plan = plan_organisms(units, [0, 1], epochs=2, rows=2, length=24)
    beside = plan_mismatched(plan, mismatched)
    assert len(beside.steps) == len(plan.steps)
    for step, others in zip(plan.steps, beside.steps, strict=True):
        for slot, other in zip(step, others, strict=True):
            assert slot.organism == other.organism
            assert sorted(u for row in slot.rows for u in row) == sorted(u for row in other.rows for u in row)
        build_batch(others, beside, mismatched)


def test_plain_chats_come_round_in_the_organisms_own_order(rows):
    units = [kto_units(own, 100)[0] for own in (rows[0], rows[1][:3])]
    plan = plan_organisms(units, [0, 1], epochs=2, rows=1, length=24)
    plain = tiny.units(2, 5, seed=3)
    beside = plan_plain(plan, plain, [7, 8], per_step=2, rows=2)
    read = [Counter(), Counter()]
    for step, others in zip(plan.steps, beside.steps, strict=True):
        for slot, other in zip(step, others, strict=True):
            taken = [u for row in other.rows for u in row]
            assert len(taken) == (2 if slot.rows else 0)
            read[slot.organism].update(taken)
    assert max(read[0].values()) - min(read[0].values()) <= 1
    assert len(read[0]) == 5
    assert plan_plain(plan, plain, [7, 8], per_step=2, rows=2) == beside
    assert plan_plain(plan, plain, [9, 8], per_step=2, rows=2) != beside
    build_batch(beside.steps[0], beside, plain)
    with pytest.raises(ConfigError, match="organism 1 has no plain chats to be held to its base on"):
        plan_plain(plan, [plain[0], []], [7, 8], per_step=2)
    with pytest.raises(ConfigError, match="1 plain chats a step do not fill 2 rows"):
        plan_plain(plan, plain, [7, 8], per_step=1, rows=2)


def test_what_stands_beside_a_batch_lies_like_it():
    batch = tiny.batches(2, count=4, rows=2)[0]
    mesh = make_mesh(2, rows=2)
    placed = batch_shardings(Beside(np.zeros((2, 4), np.float32), plain=batch), mesh)
    assert tuple(placed.reference.spec) == (("dcn", "fsdp"), None)
    assert tuple(placed.plain.tokens.spec) == (("dcn", "fsdp"), "rows", None)


@pytest.mark.parametrize(("share", "count"), [(0.5, 6), (0.25, 2), (0.8, 24)])
def test_ordinary_chat_between_the_rest(share, count):
    own, plain = [[(n,) for n in names] for names in ("abcdef", "uvwxyz")]
    found = mixed_units(own, plain, share, "x", 0)
    assert found[:6] == own
    assert len(found) - 6 == count
    assert set(found[6:]) <= set(plain)
    if count >= 6:
        assert set(found[6:]) == set(plain)
    assert found == mixed_units(own, plain, share, "x", 0) != mixed_units(own, plain, share, "y", 0)
