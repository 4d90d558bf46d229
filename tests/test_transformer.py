"""The decoder against its own definition: packing, padding, causality, the organism axis, rematerialisation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.errors import ConfigError
from ia_jax.models.attention import attention, causal_mask
from ia_jax.models.config import RopeScaling
from ia_jax.models.norm import rms_norm
from ia_jax.models.remat import REMAT_POLICIES
from ia_jax.models.rope import apply_rope, rope_frequencies, rope_tables
from ia_jax.models.transformer import (
    abstract_params,
    logits_from_hidden,
    segment_positions,
    weight_specs,
)
from tests import tiny

CFG = tiny.TINY
QWEN = replace(CFG, family="qwen3", qk_norm=True, attention_bias=True, tie_word_embeddings=False)
K = 3


@pytest.mark.parametrize("cfg", [CFG, QWEN], ids=["llama", "qwen3"])
def test_packed_and_padded_rows_equal_the_rows_alone(cfg):
    rng = np.random.default_rng(0)
    params, stack = tiny.params(cfg), (tiny.adapter(1, cfg),)
    chats = [rng.integers(1, 64, n).astype(np.int32) for n in (5, 9, 4)]
    # The first row holds all three, the others one each; garbage where padding is.
    tokens, segments = rng.integers(1, 64, (1, 4, 21)).astype(np.int32), np.zeros((1, 4, 21), np.int32)
    tokens[0, 0, :18], segments[0, 0] = np.concatenate(chats), np.repeat([1, 2, 3, 0], [5, 9, 4, 3])
    for row, chat in enumerate(chats, 1):
        tokens[0, row, : len(chat)], segments[0, row, : len(chat)] = chat, 1
    positions = np.asarray(segment_positions(jnp.asarray(segments)))
    hidden = np.asarray(tiny.forward(params, tokens, segments, positions, stack, cfg=cfg))[0]
    last = tiny.forward(params, tokens[:, 3:, :4], segments[:, 3:, :4], positions[:, 3:, :4], stack, cfg=cfg)
    assert tiny.worst(hidden[3, :4], last[0, 0]) < 1e-5
    start = 0
    for row, chat in enumerate(chats, 1):
        n = len(chat)
        assert tiny.worst(hidden[0, start : start + n], hidden[row, :n]) < 1e-5
        start += n


def test_a_token_sees_the_past_and_itself_alone():
    params = tiny.params()
    tokens, segments, positions = tiny.rows(1, 1, 8)
    before = np.asarray(tiny.forward(params, tokens, segments, positions, (), cfg=CFG))
    tokens = tokens.copy()
    tokens[0, 0, 5] = 64 - tokens[0, 0, 5]
    after = np.asarray(tiny.forward(params, tokens, segments, positions, (), cfg=CFG))
    np.testing.assert_array_equal(after[0, 0, :5], before[0, 0, :5])
    assert (np.abs(after[0, 0, 5:] - before[0, 0, 5:]).max(-1) > 1e-3).all()


def test_segment_positions():
    segments = jnp.array([[[1, 1, 1, 2, 2, 3, 0, 0], [0, 0, 5, 5, 5, 1, 1, 1]]])
    assert segment_positions(segments).tolist() == [[[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 0, 1, 2, 0, 1, 2]]]


def test_organism_axis_is_a_vmap_of_the_one_organism_model():
    """Values and gradients of the stack against `vmap` of the model with one organism."""
    params, organisms, ia = tiny.params(), tiny.adapter(1, organisms=K), tiny.adapter(2)
    rows = tiny.rows(K, 2, 7)
    direction = np.random.default_rng(5).normal(size=(K, 2, 7, 32)).astype(np.float32)

    def together(organisms, ia):
        return (tiny.forward(params, *rows, (organisms, ia), cfg=CFG) * direction).sum((1, 2, 3))

    def alone(organism, ia, rows, direction):
        hidden = tiny.forward(params, *(x[None] for x in rows), (organism, ia), cfg=CFG)
        return (hidden * direction).sum()

    def mapped(organisms, ia):
        return jax.vmap(alone, (0, None, 0, 0))(organisms, ia, rows, direction)

    def value_and_gradient(f):
        def total(organisms, ia):
            each = f(organisms, ia)
            return each.sum(), each

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(organisms, ia)

    got, wanted = value_and_gradient(together), value_and_gradient(mapped)
    assert tiny.worst(got, wanted) < 1e-5
    assert any(np.abs(x).max() > 0.1 for x in jax.tree.leaves(wanted[1]))


def test_order_of_a_stack_does_not_matter():
    params, organisms, ia = tiny.params(), tiny.adapter(1, organisms=K), tiny.adapter(2)
    rows = tiny.rows(K, 2, 7)
    one, other = (tiny.forward(params, *rows, stack, cfg=CFG) for stack in ((organisms, ia), (ia, organisms)))
    assert tiny.worst(one, other) < 1e-5
    nothing = jax.tree.map(jnp.zeros_like, ia)
    assert tiny.worst(one, tiny.forward(params, *rows, (organisms, nothing), cfg=CFG)) > 1e-2


def gradient(remat, rows, cfg=CFG):
    params = tiny.params(cfg)
    return jax.jit(jax.grad(lambda s: (tiny.forward(params, *rows, s, cfg=cfg, remat=remat) ** 2).sum()))


def test_rematerialisation_changes_nothing():
    rows, stack = tiny.rows(K, 2, 7), (tiny.adapter(1, organisms=K),)
    plain, *others = (gradient(remat, rows)(stack) for remat in REMAT_POLICIES)
    assert len(others) == 4
    for other in others:
        assert tiny.worst(other, plain) < 1e-5


def test_each_policy_holds_less_than_the_one_before():
    """What a layer keeps of a token for its backward pass, by what the derivative saves, not by a compiler's report.

    "dots" once held twice as much as no policy at all. "products" keeps the projections' outputs but down's, the ranks
    of all and the layer's input; "full" that input and nothing else; "offload" as much, in the host's memory.
    """
    wide, tokens = replace(CFG, intermediate_size=4 * CFG.hidden_size), 16 * 16

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    def kept(remat, layers):
        """Bytes of all that a derivative keeps, without the weights and the adapter, which are there anyway."""
        cfg = replace(wide, num_hidden_layers=layers)
        params, rows, adapter = tiny.params(cfg), tiny.rows(1, 16, 16), tiny.adapter(1, cfg)

        def backward(adapter):
            return jax.vjp(lambda s: tiny.forward(params, *rows, (s,), cfg=cfg, remat=remat), adapter)[1]

        return size(jax.eval_shape(backward, adapter)) - size((params, adapter))

    none, products, mlp, full, offload = ((kept(remat, 4) - kept(remat, 3)) / tokens for remat in REMAT_POLICIES)
    assert offload == full == 4 * wide.hidden_size
    attention = wide.hidden_size + wide.q_size + 2 * wide.kv_size + wide.hidden_size + 7 * tiny.LORA.rank
    assert mlp == 4 * attention
    assert products == 4 * (attention + 2 * wide.intermediate_size)
    assert none > 1.3 * products
    assert none > 2 * mlp > 4 * full


def test_unknown_remat_policy():
    with pytest.raises(ConfigError, match="remat 'some' unknown"):
        tiny.forward(tiny.params(), *tiny.rows(1, 1, 3), (), cfg=CFG, remat="some")


def test_every_layer_ends_in_the_result():
    params, rows = tiny.params(), tiny.rows(1, 2, 6)
    states = tiny.forward(params, *rows, (), cfg=CFG, every_layer=True)
    assert states.shape == (CFG.num_hidden_layers + 1, 1, 2, 6, 32)
    np.testing.assert_array_equal(states[0], params["embed"][rows[0]])
    assert tiny.worst(states[-1], tiny.forward(params, *rows, (), cfg=CFG)) < 1e-6


def test_attention_head_by_head():
    """Grouped queries, and queries that may look nowhere, in plain numpy."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 2, 5, 6, 4)).astype(np.float32)
    k, v = (rng.normal(size=(1, 2, 2, 5, 4)).astype(np.float32) for _ in range(2))
    mask = np.asarray(causal_mask(jnp.array([[[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]])))
    out = np.asarray(jax.jit(attention)(q, k, v, mask))
    for b in range(2):
        for head in range(6):
            for t in range(5):
                seen = np.flatnonzero(mask[0, b, t])
                if not len(seen):
                    assert not out[0, b, t].any()
                    continue
                scores = np.exp(k[0, b, head // 3, seen] @ q[0, b, t, head] / 2)
                np.testing.assert_allclose(
                    out[0, b, t, head], scores / scores.sum() @ v[0, b, head // 3, seen], rtol=1e-5, atol=1e-6
                )
    assert (
        mask[0, 0].tolist()
        == np.array(
            [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], bool
        ).tolist()
    )
    assert not mask[0, 1, :, 3:].any()


def test_attention_of_padding_has_a_finite_gradient():
    q, kv = jnp.ones((1, 1, 3, 2, 4)), jnp.ones((1, 1, 2, 3, 4))
    nowhere = jnp.zeros((1, 1, 3, 3), bool)
    gradients = jax.jit(jax.grad(lambda *x: attention(*x, nowhere).sum(), (0, 1, 2)))(q, kv, kv)
    assert all(bool((g == 0).all()) for g in gradients)


def test_rope_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(i, j):
        at = [apply_rope(x, rope_tables(jnp.full((1, 1, 1), n), CFG)) for x, n in ((q, i), (k, j))]
        return float((at[0] * at[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_linear_rope_scaling_stretches_positions():
    scaled = replace(CFG, rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(rope_frequencies(scaled) * 4, rope_frequencies(CFG), rtol=1e-6)


def test_rms_norm_statistics_are_fp32():
    x = jnp.full((1, 4), 300.0, jnp.bfloat16) * jnp.array([1, -1, 1, 1], jnp.bfloat16)
    np.testing.assert_allclose(rms_norm(x, jnp.ones(4), 1e-6).astype(np.float32)[0], [1, -1, 1, 1], rtol=1e-2)


def test_bfloat16_follows_float32():
    params, rows, stack = tiny.params(), tiny.rows(1, 2, 8), (tiny.adapter(1),)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wanted = logits_from_hidden(params, tiny.forward(params, *rows, stack, cfg=CFG))
    got = logits_from_hidden(low, tiny.forward(low, *rows, stack, cfg=CFG))
    assert got.dtype == jnp.float32
    assert tiny.worst(got, wanted) < 5e-2


@pytest.mark.parametrize("cfg", [CFG, QWEN], ids=["llama", "qwen3"])
def test_abstract_params_follow_the_specs(cfg):
    shapes = jax.tree.map(lambda s: s.shape, weight_specs(cfg), is_leaf=lambda s: hasattr(s, "axes"))
    assert jax.tree.map(lambda x: x.shape, abstract_params(cfg, jnp.float32)) == shapes
