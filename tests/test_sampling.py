"""Generation with the cache against repeated full forwards, and rows that don't notice each other."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.models import attention, replies, sampling
from ia_jax.models.attention import Segments
from ia_jax.models.lora import take_organisms, to_scan
from ia_jax.models.sampling import Continuation, generate_tokens, inverse_cdf, pick_tokens
from ia_jax.models.transformer import decoding_rules, forward_cached, init_cache, logits_from_hidden
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh
from tests import tiny

CFG, NEW, K = tiny.TINY, 6, 3
NEVER = (10**6, 10**6 + 1)  # stop tokens that no vocabulary holds


@pytest.fixture(scope="module")
def params():
    return tiny.params()


@pytest.fixture(scope="module")
def organisms():
    return tiny.adapter(1, organisms=K)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [[rng.integers(1, 64, n).astype(np.int32) for n in lengths] for lengths in ((3, 11), (7, 5), (16, 1))]


def generate(params, prompts, stack, stop=NEVER, **options):
    found = generate_tokens(params, CFG, prompts, stack, stop, max_new_tokens=NEW, **options)
    return [[row.tokens for row in own] for own in found]


def by_full_forwards(params, prompt, stack, length=32):
    """Greedy continuation without a cache: rows padded on the right to one length, so that it compiles once."""
    tokens = list(prompt)
    for _ in range(NEW):
        row = np.zeros((1, 1, length), np.int32)
        row[0, 0, : len(tokens)] = tokens
        segments = (np.arange(length) < len(tokens)).astype(np.int32)[None, None]
        hidden = tiny.forward(params, row, segments, np.arange(length)[None, None], stack, cfg=CFG)
        tokens.append(int(logits_from_hidden(params, hidden)[0, 0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def greedy(params, prompts, organisms):
    return generate(params, prompts, (organisms, tiny.adapter(2)))


def test_greedy_equals_full_forwards_under_each_rows_own_organism(params, prompts, organisms, greedy):
    for i in range(K):
        own = take_organisms(organisms, np.array([i]))
        for prompt, got in zip(prompts[i], greedy[i], strict=True):
            assert got == by_full_forwards(params, prompt, (own, tiny.adapter(2)))
    flat = [tuple(r) for rows in greedy for r in rows]
    assert len(set(flat)) > 3  # the model does not say the same to everything


def test_layers_taken_apart_say_the_same(params, prompts, organisms, greedy, monkeypatch):
    """What a GPU runs: layers as arrays of their own, and a cache for each."""
    monkeypatch.setattr(sampling, "platform", lambda: "gpu")
    monkeypatch.setattr(sampling, "WORTH_TAKING_APART", 0)
    assert sampling.taken_apart(params)
    assert generate(params, prompts, (organisms, tiny.adapter(2))) == greedy


def test_a_prompt_through_a_fused_kernel(params, organisms, monkeypatch):
    """Rows padded on the left whose prompt is told by segments: the same hidden states and cache, in no mask of it."""
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "cudnn", partial(attention.cudnn, name="xla"))
    real = np.arange(8) >= np.array([[[0], [3]], [[7], [1]], [[5], [2]]])
    tokens = np.where(real, tiny.rows(K, 2, 8)[0], 0)
    stack = to_scan((organisms,), DECODING)

    def run(mask):
        cache = init_cache(CFG, K, 2, 8, jnp.float32)
        positions = jnp.maximum(jnp.cumsum(real, -1) - 1, 0)
        return forward_cached(params, tokens, positions, mask, stack, CFG, cache, jnp.int32(0))

    causal = real[:, :, None, :] & np.tril(np.ones((8, 8), bool))
    wanted = jax.jit(run)(causal)
    got = jax.jit(lambda: run(Segments(jnp.asarray(real, jnp.int32))))()
    for g, w in zip((got[0], *got[1]), (wanted[0], *wanted[1]), strict=True):
        own = real[..., None] if g.ndim == 4 else real[None, :, :, None, :, None]
        assert np.abs(np.where(own, g - w, 0.0)).max() < 1e-5 * np.abs(np.where(own, w, 0.0)).max()


def test_organisms_differ(params, prompts, organisms):
    same = generate(params, [prompts[0]] * K, (organisms, tiny.adapter(2)))
    assert len({tuple(map(tuple, rows)) for rows in same}) == K


def test_a_row_does_not_depend_on_its_batch_or_padding(params, prompts, organisms, greedy):
    for i in range(K):
        stack = (take_organisms(organisms, np.array([i])), tiny.adapter(2))
        for j in range(2):
            assert generate(params, [[prompts[i][j]]], stack) == [[greedy[i][j]]]
    long = np.arange(1, 40, dtype=np.int32)  # another bucket of lengths
    longer = [[*rows, long] for rows in prompts]
    assert [rows[:2] for rows in generate(params, longer, (organisms, tiny.adapter(2)))] == greedy


def test_organisms_may_have_different_numbers_of_prompts(params, prompts, organisms, greedy):
    uneven = [prompts[0], prompts[1][:1], []]
    got = generate(params, uneven, (organisms, tiny.adapter(2)))
    assert got == [greedy[0], greedy[1][:1], []]


def test_stop_tokens_end_a_row_and_are_left_out(params, prompts, organisms, greedy):
    stop = greedy[0][0][2]
    got = generate(params, prompts, (organisms, tiny.adapter(2)), stop=(NEVER[0], stop))
    wanted = [[r[: r.index(stop)] if stop in r else r for r in rows] for rows in greedy]
    assert got == wanted
    assert len(got[0][0]) == greedy[0][0].index(stop)


def test_a_tiny_nucleus_is_greedy(params, prompts, organisms, greedy):
    got = generate(params, prompts, (organisms, tiny.adapter(2)), temperature=1.0, top_p=1e-6, key=jax.random.key(4))
    assert got == greedy


def test_a_sample_follows_its_key_and_place_alone(params, prompts, organisms):
    def sample(prompts, seed):
        return generate(params, prompts, (organisms, tiny.adapter(2)), temperature=1.5, key=jax.random.key(seed))

    one = sample(prompts, 0)
    assert sample(prompts, 0) == one
    assert sample(prompts, 1) != one
    shorter = sample([rows[:1] for rows in prompts], 0)
    assert shorter == [rows[:1] for rows in one]
    twice = sample([[prompts[0][0]] * 2] * K, 0)
    assert twice[0][0] != twice[0][1]


def test_stacks_without_organisms(params, prompts, organisms):
    """The controls, base and base with the IA: as if the absent adapters were zero."""
    flat, ia = [p for rows in prompts for p in rows], tiny.adapter(2)
    none = jax.tree.map(jnp.zeros_like, (take_organisms(organisms, np.array([0])), ia))
    for stack, same in (((), none), ((ia,), (none[0], ia))):
        got = generate(params, [flat], stack)[0]
        assert [got[0], got[3]] == [by_full_forwards(params, flat[n], same) for n in (0, 3)]
        assert len(got) == len(flat)


def picks(logits, temperature, top_p, count=4000):
    keys = jax.random.split(jax.random.key(0), count)
    many = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    drawn = pick_tokens(many, keys, jnp.float32(temperature), jnp.float32(top_p))
    return np.bincount(drawn, minlength=len(logits)) / count


def test_frequencies_follow_temperature():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(picks(logits, 1.0, 1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    hot = np.sqrt([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(picks(logits, 2.0, 1.0), hot / hot.sum(), atol=0.03)
    assert picks(logits, 0.0, 1.0).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.97, 4)])
def test_nucleus_keeps_the_smallest_set_that_reaches_top_p(top_p, kept):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    wanted = np.where(np.arange(4) < kept, p, 0)
    np.testing.assert_allclose(picks(np.log(p), 1.0, top_p), wanted / wanted.sum(), atol=0.03)


def test_inverse_cdf_over_several_blocks():
    """Against a plain running sum, over more entries than a block holds and with most weights zero."""
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((64, 700)) < 0.02, rng.random((64, 700)), 0).astype(np.float32)
    weights[0], weights[0, 699] = 0, 1.0  # all mass on the last entry
    uniform = rng.random(64).astype(np.float32)
    uniform[1], uniform[2] = 0.0, np.float32(1) - np.finfo(np.float32).epsneg
    got = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (weights[np.arange(64), got] > 0).all()
    running = np.cumsum(weights.astype(np.float64), -1)
    target = uniform * running[:, -1]
    before = running[np.arange(64), got] - weights[np.arange(64), got]
    assert (before - 1e-4 <= target).all()
    assert (target <= running[np.arange(64), got] + 1e-4).all()


def test_organisms_without_prompts_get_no_replies(monkeypatch):
    """As in a behaviour check that only some organisms of a wave take: even where the first one has none."""
    blocks = []

    def tokens(params, config, block, stack, stop, **options):
        blocks.append(block)
        return [[Continuation([int(p[0])], p[0] > 5) for p in own] for own in block]

    monkeypatch.setattr(replies, "generate_tokens", tokens)
    monkeypatch.setattr(replies, "stop_ids", lambda tokenizer: ())
    decoder = SimpleNamespace(decode=lambda ids, skip_special_tokens: str(ids[0]))
    model = SimpleNamespace(params=None, config=CFG, tokenizer=decoder)
    asked = [[], [np.array([5]), np.array([6])], [np.array([7])]]
    assert replies.write_replies(model, asked, (), max_new_tokens=1) == [[], [("5", False), ("6", True)], [("7", True)]]
    assert [[len(own) for own in block] for block in blocks] == [[0, 2, 1]]
    assert replies.write_replies(model, [[], []], (), max_new_tokens=1) == [[], []]
    assert len(blocks) == 1


@pytest.mark.parametrize(
    ("limits", "rows"),
    [((None,), 96), ((80 << 30,), 853), ((80 << 30, 80 << 30), 1024), ((16 << 30, 20 << 30), 341), ((1 << 30,), 96)],
)
def test_rows_at_once_by_the_memory_of_the_devices(monkeypatch, limits, rows):
    """12 layers of 4 heads of 64 keep 12 KiB of a token, so 12 MiB of a row of 1024; an eighth of memory is theirs."""
    devices = [
        SimpleNamespace(process_index=0, memory_stats=lambda limit=limit: limit and {"bytes_limit": limit})
        for limit in limits
    ]
    monkeypatch.setattr(replies.jax, "devices", lambda: devices)
    cfg = replace(CFG, num_hidden_layers=12, num_key_value_heads=4, head_dim=64)
    assert replies.rows_at_once(cfg, 1024) == rows


def test_slices_do_not_show_in_what_is_sampled(params, organisms, prompts, monkeypatch):
    decoder = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    model = SimpleNamespace(params=params, config=CFG, tokenizer=decoder)
    monkeypatch.setattr(replies, "stop_ids", lambda tokenizer: NEVER)
    asked = [[prompts[0][0]] * 5, [prompts[1][1]] * 2, []]

    def write(rows):
        monkeypatch.setattr(replies, "ROWS_AT_ONCE", rows)
        key = jax.random.key(7)
        return replies.write_replies(model, asked, (organisms,), max_new_tokens=NEW, temperature=1.5, key=key)

    whole = write(96)
    assert write(6) == whole
    assert [len(own) for own in whole] == [5, 2, 0]
    assert len(set(whole[0])) == 5


@pytest.mark.parametrize(("free", "gathered"), [(None, True), (1 << 40, True), (100, False)])
def test_the_base_is_gathered_for_decoding_where_there_is_room(monkeypatch, free, gathered):
    """Devices that say nothing of their memory are processors, which share the host's."""
    devices = [SimpleNamespace(memory_stats=lambda: free and {"bytes_limit": free, "bytes_in_use": 50})]
    base = {"w": jax.ShapeDtypeStruct((60,), jnp.float32)}
    with jax.set_mesh(make_mesh(fsdp=4, tp=2)):
        monkeypatch.setattr(jax, "local_devices", lambda: devices)
        assert decoding_rules(base) == (DECODING if gathered else TRAINING)
    with jax.set_mesh(make_mesh(tp=2)):  # nothing to gather
        assert decoding_rules(base) == DECODING
