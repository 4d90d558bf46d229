"""The fused attention paths against the plain one, packed rows and shared key heads included."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.models import attention
from ia_jax.models.attention import BRANCH, Segments, causal_mask, plain
from ia_jax.models.transformer import forward
from ia_jax.parallel import platform
from ia_jax.parallel.mesh import make_mesh
from tests import tiny

K, B, T, HEADS, KEY_HEADS, H = 2, 1, 384, 4, 2, 128  # three of splash's blocks of 128


@pytest.fixture(scope="module")
def inputs():
    """q, k, v and segment ids: in one row three segments, across the blocks, and padding; in the other a whole one."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(K, B, T, HEADS, H)).astype(np.float32)
    k, v = (rng.normal(size=(K, B, KEY_HEADS, T, H)).astype(np.float32) for _ in range(2))
    ids = np.ones((K, B, T), np.int32)
    ids[0, 0, 100:200], ids[0, 0, 200:300], ids[0, 0, 300:] = 2, 3, 0
    return q, k, v, ids


def outcome(attend, q, k, v, ids):
    """Output and gradients on real tokens: what padding holds is nobody's business."""
    real = jnp.asarray(ids > 0)[..., None, None]

    def loss(q, k, v):
        out = jnp.where(real, attend(q, k, v, ids), 0.0)
        return (out * jnp.cos(jnp.arange(H))).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x) for x in (out, *gradients)]


@pytest.fixture(scope="module")
def wanted(inputs):
    return outcome(lambda q, k, v, ids: plain(q, k, v, causal_mask(jnp.asarray(ids))), *inputs)


def interpreted(q, k, v, ids):
    return attention.splash(q, k, v, jnp.asarray(ids), interpret=True)


def through_jax_nn(q, k, v, ids):
    """What cuDNN is given, with the XLA implementation in its place."""
    return attention.cudnn(q, k, v, jnp.asarray(ids), name="xla")


@pytest.mark.parametrize("attend", [interpreted, through_jax_nn])
def test_fused_equals_plain(inputs, wanted, attend):
    for got, want in zip(outcome(attend, *inputs), wanted, strict=True):
        assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("attend", [lambda q, k, v, i: plain(q, k, v, causal_mask(jnp.asarray(i))), through_jax_nn])
def test_a_branch_sees_its_stem_and_no_other_branch(inputs, attend):
    """A row with one stem and two branches, against two rows that each have one of these behind the stem."""
    q, k, v, _ = inputs
    stem, end = 100, 160
    ids = np.zeros((K, B, T), np.int32)
    ids[..., :stem] = 3
    ids[..., stem:end], ids[..., end:220] = 3 + BRANCH, 3 + 2 * BRANCH
    out = np.asarray(attend(q, k, v, ids))
    for start, stop in ((stem, end), (end, 220)):
        alone = np.where((np.arange(T) < stem) | ((np.arange(T) >= start) & (np.arange(T) < stop)), 1, 0)
        want = np.asarray(plain(q, k, v, causal_mask(jnp.asarray(np.broadcast_to(alone, (K, B, T))))))
        np.testing.assert_allclose(out[:, :, start:stop], want[:, :, start:stop], atol=2e-5)
    np.testing.assert_allclose(out[:, :, :stem], want[:, :, :stem], atol=2e-5)


@pytest.mark.parametrize("attend", [interpreted, through_jax_nn])
def test_fused_on_a_mesh(inputs, wanted, attend):
    with jax.set_mesh(make_mesh(2, 2)):
        got = np.asarray(jax.jit(lambda *x: attend(*x, inputs[3]))(*inputs[:3]))
    real = (inputs[3] > 0)[..., None, None]
    assert np.abs(np.where(real, got, 0.0) - wanted[0]).max() < 2e-5 * np.abs(wanted[0]).max()


@pytest.mark.parametrize(
    ("name", "length", "dtype", "head_dim", "fused"),
    [
        ("cpu", 256, jnp.bfloat16, 64, False),
        ("tpu", 256, jnp.bfloat16, 64, True),
        ("tpu", 256, jnp.float32, 64, True),
        ("tpu", 200, jnp.bfloat16, 64, False),
        ("gpu", 200, jnp.bfloat16, 64, True),
        ("gpu", 200, jnp.float16, 128, True),
        ("gpu", 200, jnp.float32, 64, False),
        ("gpu", 201, jnp.bfloat16, 64, False),
        ("gpu", 200, jnp.bfloat16, 36, False),
        ("gpu", 200, jnp.bfloat16, 256, False),
    ],
)
def test_what_runs_where(monkeypatch, name, length, dtype, head_dim, fused):
    monkeypatch.setattr(attention, "platform", lambda: name)
    found = attention.attention_mask(jnp.ones((1, 1, length), jnp.int32), dtype, head_dim)
    assert isinstance(found, Segments) == fused


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if there were one: programs can be traced, with cuDNN's own checks of types and shapes, but not run."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)


def traced(dtype, length):
    """The jaxpr of a loss on a tiny model and its gradient."""
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params())

    def loss(ia):
        hidden = forward(params, *tiny.rows(2, 2, length), (ia,), tiny.TINY)
        return hidden.astype(jnp.float32).sum()

    return str(jax.make_jaxpr(jax.grad(loss))(tiny.adapter()))


@pytest.mark.parametrize(
    ("dtype", "length", "fused"),
    [(jnp.bfloat16, 16, True), (jnp.float16, 16, True), (jnp.float32, 16, False), (jnp.bfloat16, 15, False)],
    ids=["bf16", "fp16", "fp32", "odd"],
)
def test_what_cudnn_refuses_never_reaches_it(on_a_gpu, dtype, length, fused):
    assert ("dot_product_attention" in traced(dtype, length)) == fused


def test_cudnn_computes_no_gradient_of_the_mask(on_a_gpu):
    backward = re.findall(r"variadic_args=\((\w+), (\w+)\)", traced(jnp.bfloat16, 16))
    assert set(backward) == {("True", "False")}  # there is a mask, and no gradient of it


def test_the_platform_is_that_of_the_mesh():
    assert platform.platform() == "cpu"
    with jax.set_mesh(make_mesh(2, 2)):
        assert platform.platform() == "cpu"
