"""Rows with settings of their own: in one batch they get what each gets alone."""

import jax
import numpy as np
import pytest

from ia_jax.models.lora import take_organisms
from ia_jax.models.rows import Row, continue_rows, prompt_room, score_rows
from ia_jax.models.sampling import pick_tokens
from ia_jax.models.transformer import logits_from_hidden
from ia_jax.parallel.mesh import make_mesh
from tests import tiny

CFG, NEVER = tiny.TINY, (10**6,)
SETTINGS = ((5, 0.0, 1.0, 0), (6, 1.0, 1.0, 1), (7, 0.7, 0.8, 2), (3, 2.0, 0.3, 3), (6, 1.0, 1.0, 9), (1, 0.0, 1.0, 0))


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(1, 64, 4 + n).astype(np.int32), *s) for n, s in enumerate(SETTINGS)]
    grouped = [rows[0:2], rows[2:3], rows[3:5], rows[5:6]]
    params, organisms = tiny.params(), tiny.adapter(1, organisms=4)
    return params, organisms, grouped, continue_rows(params, CFG, grouped, (organisms,), NEVER, 2)


def test_a_row_in_company_gets_what_it_gets_alone(made):
    params, organisms, grouped, found = made
    for i, own in enumerate(grouped):
        alone = jax.tree.map(lambda x: x[None], take_organisms(organisms, i))
        for row, reply in zip(own, found[i], strict=True):
            assert [[reply]] == continue_rows(params, CFG, [[row]], (alone,), NEVER, 1)
            assert len(reply.tokens) == row.max_new_tokens
            assert not reply.stopped


def test_a_row_goes_on_as_if_it_had_not_been_interrupted(made):
    params, organisms, grouped, whole = made
    first = [[r._replace(max_new_tokens=min(2, r.max_new_tokens)) for r in own] for own in grouped]
    begun = continue_rows(params, CFG, first, (organisms,), NEVER, 2)
    second = [
        [
            r._replace(tokens=np.array([*r.tokens, *c.tokens], np.int32), begun=len(c.tokens))
            for r, c in zip(own, said, strict=True)
        ]
        for own, said in zip(grouped, begun, strict=True)
    ]
    left = [[r._replace(max_new_tokens=max(1, r.max_new_tokens - r.begun)) for r in own] for own in second]
    rest = continue_rows(params, CFG, left, (organisms,), NEVER, 2)
    for own, before, after, all_of_it in zip(grouped, begun, rest, whole, strict=True):
        for r, a, b, c in zip(own, before, after, all_of_it, strict=True):
            assert (a.tokens + b.tokens)[: r.max_new_tokens] == c.tokens


def test_the_seed_decides(made):
    params, organisms, grouped, found = made
    other = [[r._replace(seed=r.seed + 1) for r in own] for own in grouped]
    again = continue_rows(params, CFG, other, (organisms,), NEVER, 2)
    assert again[0][0] == found[0][0]  # greedy
    assert again[0][1] != found[0][1]
    stop = found[0][0].tokens[2]
    cut = continue_rows(params, CFG, grouped, (organisms,), (stop,), 2)
    first = found[0][0].tokens.index(stop)
    assert cut[0][0] == (found[0][0].tokens[:first], True)


def test_scores_are_those_of_full_forwards(made):
    params, organisms, grouped, found = made
    new = [[r.tokens for r in own] for own in found]
    scores = score_rows(params, CFG, grouped, new, (organisms,), 2, best=3)
    for i, own in enumerate(grouped):
        for j, row in enumerate(own):
            text = [*row.tokens, *new[i][j]]
            segments = (np.arange(32) < len(text)).astype(np.int32)[None, None]
            padded = np.pad(np.asarray(text, np.int32), (0, 32 - len(text)))[None, None]
            stack = (take_organisms(organisms, i),)
            hidden = tiny.forward(params, padded, segments, np.arange(32)[None, None], stack, cfg=CFG)
            logp = np.asarray(jax.nn.log_softmax(logits_from_hidden(params, hidden)))[0, 0]
            wanted = logp[len(row.tokens) - 1 : len(text) - 1]
            np.testing.assert_allclose(scores[i][j].own, wanted[np.arange(len(wanted)), new[i][j]], atol=1e-4)
            assert (scores[i][j].best == np.argsort(-wanted, axis=-1)[:, :3]).all()
    greedy = scores[0][0]
    assert (greedy.best[:, 0] == new[0][0]).all()


def test_scores_on_devices_that_share_rows(made):
    params, organisms, grouped, found = made
    new = [[r.tokens for r in own] for own in found]
    alone = score_rows(params, CFG, grouped, new, (organisms,), 2, best=3)
    one = [own[:1] for own in grouped], [own[:1] for own in new]
    with jax.set_mesh(make_mesh(rows=2, devices=jax.devices()[:2])):
        spread = score_rows(jax.tree.map(np.asarray, params), CFG, *one, (jax.tree.map(np.asarray, organisms),), 1, 3)
    for own, [x] in zip(alone, spread, strict=True):
        np.testing.assert_allclose(x.own, own[0].own, atol=1e-4)


def test_each_rows_own_temperature_and_nucleus():
    logits = np.log(np.tile([0.5, 0.3, 0.15, 0.05], (3000, 1))).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 3000)
    heat = np.repeat([0.0, 1.0, 1.0], 1000).astype(np.float32)
    mass = np.repeat([1.0, 0.6, 1.0], 1000).astype(np.float32)
    drawn = np.asarray(pick_tokens(logits, keys, heat, mass)).reshape(3, 1000)
    assert set(drawn[0]) == {0}
    assert set(drawn[1]) == {0, 1}
    np.testing.assert_allclose(np.bincount(drawn[1], minlength=4) / 1000, [0.625, 0.375, 0, 0], atol=0.05)
    np.testing.assert_allclose(np.bincount(drawn[2], minlength=4) / 1000, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_prompts_are_padded_by_less_than_half():
    rooms = [prompt_room(n) for n in range(40, 2049)]
    assert all(n <= room < 1.5 * n for n, room in zip(range(40, 2049), rooms, strict=True))
    assert len(set(rooms)) <= 12  # each is a program
