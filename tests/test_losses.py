"""Chunked log-probabilities and the losses built on them, against their formulas."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.data.batch import Batch
from ia_jax.training.logps import example_sums, supervised_kl, supervised_logps
from ia_jax.training.losses import kto_loss, pair_loss, sft_loss
from tests import tiny

K, B, P, D = 3, 2, 5, 32


def random_case(tied, seed=0):
    """Output weights, hidden states [K, B, T, D] and a batch with P targets a row, of which the last is filling."""
    rng = np.random.default_rng(seed)
    params = tiny.params(replace(tiny.TINY, tie_word_embeddings=tied))
    hidden = jnp.asarray(rng.normal(size=(K, B, 6, D)), jnp.float32)
    index = np.stack([rng.choice(6, P, replace=False) for _ in range(K * B)]).reshape(K, B, P)
    weight = np.ones((K, B, P), np.float32)
    weight[..., -1] = 0
    nothing = np.zeros((K, B, 6), np.int32)
    example = rng.integers(0, 3, (K, B, P))
    return params, hidden, Batch(nothing, nothing, nothing, index, rng.integers(0, 64, (K, B, P)), weight, example)


def plain_logps(params, hidden, batch):
    """log_softmax over all positions, then gather."""
    head = params["lm_head"] if "lm_head" in params else params["embed"].T
    logps, where, token = jax.nn.log_softmax(hidden @ head), batch.target_index, batch.target_token
    return jnp.stack([jnp.stack([logps[i, j, where[i, j], token[i, j]] for j in range(B)]) for i in range(K)])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [1, 3, P, None])
def test_supervised_logps_and_their_gradient(tied, chunk):
    params, hidden, batch = random_case(tied)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(K, B, P)), jnp.float32)

    def value_and_gradient(f):
        def run(hidden):
            logps, pull = jax.vjp(f, hidden)
            return logps, pull(tiny.beside(cotangent, logps))

        return jax.jit(run)(hidden)

    got = value_and_gradient(lambda h: supervised_logps(params, h, batch, chunk=chunk))
    assert tiny.worst(got, value_and_gradient(lambda h: plain_logps(params, h, batch))) < 1e-5


def test_a_position_may_be_supervised_twice():
    params, hidden, batch = random_case(True)
    batch = batch.replace(target_index=np.full((K, B, P), 4))
    got, wanted = (jax.grad(lambda h, f=f: f(params, h, batch).sum())(hidden) for f in (supervised_logps, plain_logps))
    assert tiny.worst(got, wanted) < 1e-5


def test_the_output_matrix_gets_no_gradient():
    params, hidden, batch = random_case(False)
    grads = jax.grad(lambda p: supervised_logps(p, hidden, batch).sum())(params)
    assert not np.any(grads["lm_head"])


@pytest.mark.parametrize("chunk", [2, None])
def test_a_trained_head_gets_its_gradient(chunk):
    params, hidden, batch = random_case(True)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(K, B, P)), jnp.float32)

    def loss(f):
        return lambda p, h: (f(p, h, batch) * tiny.beside(cotangent, f(p, h, batch))).sum()

    got = jax.jit(jax.grad(loss(partial(supervised_logps, trained_head=True, chunk=chunk)), (0, 1)))(params, hidden)
    assert tiny.worst(got, jax.jit(jax.grad(loss(plain_logps), (0, 1)))(params, hidden)) < 1e-5
    assert np.abs(got[0]["embed"]).max() > 0.1


@pytest.mark.parametrize("chunk", [2, None])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_kl_to_the_base_and_its_gradient(tied, chunk, trained):
    params, hidden, batch = random_case(tied)
    other = jax.tree.map(lambda x: 0.8 * x, params) if trained else params
    base = hidden + jnp.asarray(np.random.default_rng(2).normal(size=hidden.shape), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(K, B, P)), jnp.float32)

    def plain(hidden):
        head, base_head = (p["lm_head"] if "lm_head" in p else p["embed"].T for p in (params, other))
        logq, logp = jax.nn.log_softmax(hidden @ head), jax.nn.log_softmax(base @ base_head)
        kl = (jnp.exp(logp) * (logp - logq)).sum(-1)
        return jnp.take_along_axis(kl, batch.target_index.reshape(K, B, P), -1)

    def ours(hidden):
        return supervised_kl(params, hidden, other, base, batch, chunk=chunk, trained_head=trained)

    def both(f):
        return jax.jit(
            jax.value_and_grad(lambda h: (lambda kl: ((kl * tiny.beside(weight, kl)).sum(), kl))(f(h)), has_aux=True)
        )

    (_, kl), grads = both(ours)(hidden)
    (_, wanted), wanted_grads = both(plain)(hidden)
    assert (np.asarray(kl) > 1e-3).all()
    assert tiny.worst((kl, grads), (wanted, wanted_grads)) < 1e-5
    assert not np.any(supervised_kl(params, base, params, base, batch, chunk=chunk, trained_head=trained))


def test_large_logits_are_finite():
    params, hidden, batch = random_case(True)
    value, grads = jax.value_and_grad(lambda h: supervised_logps(params, h, batch).sum())(hidden * 1e4)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_bfloat16_logps_are_fp32_and_close():
    params, hidden, batch = random_case(True)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, hidden))
    got = supervised_logps(*low, batch)
    assert got.dtype == jnp.float32
    assert tiny.worst(got, plain_logps(params, hidden, batch)) < 2e-2


def test_fillers_contribute_nothing():
    params, hidden, batch = random_case(True)

    def loss(hidden, batch):
        return sft_loss(supervised_logps(params, hidden, batch), batch.target_weight).sum()

    other = np.asarray(batch.target_index).copy()
    token = np.asarray(batch.target_token).copy()
    other[..., -1], token[..., -1] = 5 - other[..., -1], 63 - token[..., -1]
    got = jax.value_and_grad(loss)(hidden, batch)
    assert not tiny.differs(
        got, jax.value_and_grad(loss)(hidden, batch.replace(target_index=other, target_token=token))
    )
    summed = example_sums(supervised_logps(params, hidden, batch), batch, 3)
    moved = batch.replace(target_example=np.where(batch.target_weight == 0, 0, batch.target_example))
    assert not tiny.differs(summed, example_sums(supervised_logps(params, hidden, moved), moved, 3))


def test_sft_loss_is_each_organisms_own_mean():
    logps = jnp.array([[[-1.0, -3.0], [-5.0, -100.0]], [[-2.0, -100.0], [-8.0, -100.0]], [[-7.0, -7.0], [-7.0, -7.0]]])
    weight = jnp.array([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert sft_loss(logps, weight).tolist() == [3.0, 5.0, 0.0]


def test_example_sums_are_sums_by_example():
    logps = jnp.array([[[-1.0, -2.0], [-4.0, -8.0]], [[-1.0, -1.0], [-1.0, -9.0]]])
    nothing = np.zeros((2, 2, 1), np.int32)
    weight = np.array([[[1, 1], [1, 1]], [[1, 1], [1, 0]]], np.float32)
    example = np.array([[[0, 2], [0, 2]], [[1, 1], [0, 0]]])
    batch = Batch(nothing, nothing, nothing, example, example, weight, example)
    assert example_sums(logps, batch, 3).tolist() == [[-5.0, 0.0, -10.0], [-1.0, -2.0, 0.0]]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_loss_is_the_papers_formula(beta):
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(size=(2, 2, K, 4)) * 10
    margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
    wanted = np.log1p(np.exp(-beta * margin))
    got = pair_loss(*map(jnp.asarray, (*policy, *reference)), beta)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_dpo_loss_at_agreement_and_its_slope():
    at = jnp.array([-12.0, -30.0])
    np.testing.assert_allclose(pair_loss(at, 2 * at, at, 2 * at, 0.1), np.log(2), rtol=1e-6)
    slopes = jax.grad(lambda c, r: pair_loss(c, r, at, 2 * at, 0.1).sum(), (0, 1))(at, 2 * at)
    np.testing.assert_allclose(slopes[0], -0.05, rtol=1e-6)
    np.testing.assert_allclose(slopes[1], 0.05, rtol=1e-6)
    assert np.isfinite(pair_loss(jnp.array(-1e6), jnp.array(0.0), jnp.array(0.0), jnp.array(0.0), 0.1))


def test_kto_is_the_papers_formula():
    rng = np.random.default_rng(0)
    gain, good = rng.normal(size=(2, 5)) * 3, rng.integers(0, 2, (2, 5)).astype(bool)
    kl = np.array([[0.0], [0.8]])
    value = np.where(good, gain - kl, kl - gain)
    wanted = np.where(good, 1.5, 0.5) * (1 - 1 / (1 + np.exp(-0.3 * value)))
    got = kto_loss(jnp.asarray(gain), jnp.asarray(good), jnp.asarray(kl), 0.3, 1.5, 0.5)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_ipo_and_length_normalised_dpo_by_hand():
    chosen, rejected, lengths = jnp.array([-4.0]), jnp.array([-9.0]), (jnp.array([4.0]), jnp.array([8.0]))
    at = jnp.array([-6.0]), jnp.array([-5.0])
    margin = (-4 + 6) / 4 - (-9 + 5) / 8  # of means over tokens: 1
    assert pair_loss(chosen, rejected, *at, 0.25, "ipo", lengths)[0] == pytest.approx((margin - 2) ** 2)
    got = pair_loss(chosen, rejected, *at, 0.25, "sigmoid_norm", lengths)[0]
    assert got == pytest.approx(np.log1p(np.exp(-0.25)))
