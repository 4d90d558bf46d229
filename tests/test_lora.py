"""LoRA trees and how they are applied: the hand-written derivatives against autodiff of the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ia_jax.errors import ConfigError
from ia_jax.models.lora import (
    PROJECTIONS,
    LoraConfig,
    has_organism_axis,
    init_lora,
    init_organisms,
    leaf_axes,
    lora_shapes,
    peft_parametrization,
    take_organisms,
    to_scan,
)
from ia_jax.models.project import project, swiglu
from tests import tiny

K, B, T, D = 3, 2, 5, 12
SIZES = {"q": 16, "k": 8, "v": 8}


def plain(x, weights, stack):
    """y = x W + sum (x a) b, organism by organism."""
    out = {}
    for name, w in weights.items():
        y = x @ w
        for adapter in stack:
            if name in adapter:
                a, b = adapter[name]["a"], adapter[name]["b"]
                if a.ndim == 2:
                    y = y + (x @ a) @ b
                else:
                    y = y + jnp.stack([(x[i] @ a[i]) @ b[i] for i in range(K)])
        out[name] = y
    return out


def layer_adapter(rng, rank, targets, organisms):
    lead = (K,) if organisms else ()
    return {t: {"a": normal(rng, *lead, D, rank), "b": normal(rng, *lead, rank, SIZES[t])} for t in targets}


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def values_and_gradients(f, cotangents, *inputs):
    def run(*inputs):
        out, pull = jax.vjp(f, *inputs)
        return out, pull(tiny.beside(cotangents, out))

    return jax.jit(run)(*inputs)


STACKS = {
    "empty": [],
    "one": [(4, "qkv", False)],
    "organisms": [(4, "qkv", True)],
    "organisms+ia": [(4, "qkv", True), (2, "qkv", False)],
    "ia+organisms": [(2, "qkv", False), (4, "qkv", True)],
    "missing targets": [(4, "qv", True), (3, "k", False)],
    "no target here": [(4, "", True), (3, "vq", False)],
    "three": [(1, "q", True), (5, "kq", True), (2, "v", False)],
}


@pytest.mark.parametrize("recipe", STACKS.values(), ids=STACKS)
def test_project_and_its_gradients(recipe):
    rng = np.random.default_rng(0)
    x = normal(rng, K, B, T, D)
    weights = {t: normal(rng, D, n) for t, n in SIZES.items()}
    stack = tuple(layer_adapter(rng, *r) for r in recipe)
    cotangents = {t: normal(rng, K, B, T, n) for t, n in SIZES.items()}
    wanted = values_and_gradients(lambda x, s: plain(x, weights, s), cotangents, x, stack)
    got = values_and_gradients(lambda x, s: project(x, weights, s, "embed", "heads"), cotangents, x, stack)
    assert tiny.worst(got, wanted) < 1e-5


def test_a_projection_without_target_gets_a_zero_gradient():
    """Adapters of a layer target projections of other inputs too; those get zeros from here."""
    rng = np.random.default_rng(0)
    x, weights = normal(rng, K, B, T, D), {"q": normal(rng, D, 16)}
    adapter = layer_adapter(rng, 4, "qv", True)
    grads = jax.grad(lambda s: project(x, weights, s, "embed", "heads")["q"].sum())((adapter,))[0]
    assert not any(np.any(g) for g in grads["v"].values())
    assert all(np.any(g) for g in grads["q"].values())


def test_base_weights_get_no_gradient():
    rng = np.random.default_rng(0)
    x, weights = normal(rng, K, B, T, D), {"q": normal(rng, D, 16)}
    grads = jax.grad(lambda w: project(x, w, (), "embed", "heads")["q"].sum())(weights)
    assert not np.any(grads["q"])


def test_project_in_bfloat16():
    rng = np.random.default_rng(0)
    x, weights = normal(rng, K, B, T, D), {t: normal(rng, D, n) for t, n in SIZES.items()}
    stack = (layer_adapter(rng, 4, "qkv", True), layer_adapter(rng, 2, "qkv", False))
    cotangents = {t: normal(rng, K, B, T, n) for t, n in SIZES.items()}
    *low, pulled = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, weights, stack, cotangents))
    # What is wanted of the same rounded inputs: what differs is the rounding inside and of what comes out.
    x, weights, stack, cotangents = jax.tree.map(lambda a: a.astype(jnp.float32), (*low, pulled))
    wanted = values_and_gradients(lambda x, s: plain(x, weights, s), cotangents, x, stack)
    got, grads = values_and_gradients(lambda x, s: project(x, low[1], s, "embed", "heads"), pulled, low[0], low[2])
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves((got, grads)))
    assert tiny.worst(jax.tree.map(lambda g: g.astype(np.float32), (got, grads)), wanted) < 6e-3  # bf16: 2^-8
    # Adapters that are held in fp32 get a gradient that is summed over tokens in fp32.
    high = jax.tree.map(lambda a: a.astype(jnp.float32), low[2])
    _, (_, exact) = values_and_gradients(lambda x, s: project(x, low[1], s, "embed", "heads"), pulled, low[0], high)
    rounded = jax.tree.map(lambda g: np.asarray(g.astype(jnp.bfloat16).astype(jnp.float32)), exact)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(exact))
    assert not tiny.differs(rounded, jax.tree.map(lambda g: g.astype(jnp.float32), grads[1]))
    assert tiny.differs(rounded, exact)


def test_on_a_gpu_a_projection_has_the_dtype_of_its_input(monkeypatch):
    """And is what it is elsewhere, rounded; so is the gradient of its input."""
    rng = np.random.default_rng(0)
    x = normal(rng, K, B, T, D).astype(jnp.bfloat16)
    weights = {t: normal(rng, D, n).astype(jnp.bfloat16) for t, n in SIZES.items()}
    stack = (layer_adapter(rng, 4, "qkv", True), layer_adapter(rng, 2, "qkv", False))
    cotangents = {t: normal(rng, K, B, T, n) for t, n in SIZES.items()}

    def run():
        out, pull = jax.vjp(lambda x: project(x, weights, stack, "embed", "heads"), x)
        return out, pull(tiny.beside({t: c.astype(out[t].dtype) for t, c in cotangents.items()}, out))

    wanted = jax.jit(run)()
    monkeypatch.setattr("ia_jax.models.project.platform", lambda: "gpu")
    got = jax.jit(lambda: run())()
    assert {y.dtype for y in got[0].values()} == {jnp.dtype(jnp.bfloat16)}
    assert tiny.worst(*(jax.tree.map(lambda y: y.astype(jnp.float32), t) for t in (got, wanted))) < 2e-2


def test_swiglu_and_its_gradient():
    rng = np.random.default_rng(0)
    gate, up, cotangent = (normal(rng, 4, 6) * 3 for _ in range(3))
    wanted, pull_wanted = jax.vjp(lambda g, u: g / (1 + jnp.exp(-g)) * u, gate, up)
    got, pull = jax.vjp(lambda g, u: swiglu(g, u, jnp.dtype("float32")), gate, up)
    assert tiny.worst(got, wanted) < 1e-5
    assert tiny.worst(pull(cotangent), pull_wanted(cotangent)) < 1e-5
    low, pull = jax.vjp(lambda g, u: swiglu(g, u, jnp.dtype("bfloat16")), gate, up)
    assert low.dtype == jnp.bfloat16
    assert tiny.worst(pull(cotangent.astype(jnp.bfloat16)), pull_wanted(cotangent)) < 2e-2


def test_swiglu_of_large_gates_is_finite():
    gate = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])
    grads = jax.grad(lambda g, u: swiglu(g, u, jnp.dtype("float32")).sum(), (0, 1))(gate, jnp.ones(5))
    np.testing.assert_allclose(grads[0], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(grads[1], [0, 0, 0, 100, 1e4], atol=1e-6)


@pytest.mark.parametrize("init", ["b_zero", "a_zero"])
def test_a_new_adapter_is_the_base(init):
    lora = LoraConfig(4, 8.0, init=init)
    adapter = init_lora(jax.random.key(0), tiny.TINY, lora)
    assert jax.tree.map(jnp.shape, adapter) == lora_shapes(tiny.TINY, lora)
    rows = tiny.rows(1, 1, 6)
    base = tiny.forward(tiny.params(), *rows, (), cfg=tiny.TINY)
    for start in (adapter, jax.tree.map(jnp.zeros_like, adapter)):
        np.testing.assert_array_equal(tiny.forward(tiny.params(), *rows, (start,), cfg=tiny.TINY), base)
    random, zero = ("a", "b") if init == "b_zero" else ("b", "a")
    assert not np.any(adapter["down"][zero])
    bound = {"b_zero": 48**-0.5, "a_zero": 4**-0.5 * 2}[init]  # Kaiming-uniform over the input; b carries alpha/rank
    assert bound * 0.9 < np.abs(adapter["down"][random]).max() <= bound


def test_organism_i_depends_on_key_i_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    many, two = (init_organisms(k, tiny.TINY, tiny.LORA) for k in (keys, keys[2:]))
    assert has_organism_axis(many)
    assert not has_organism_axis(take_organisms(many, 0))
    assert not tiny.differs(take_organisms(many, jnp.array([2, 3])), two)
    assert not tiny.differs(take_organisms(many, 1), init_lora(keys[1], tiny.TINY, tiny.LORA))
    one_by_one = [take_organisms(many, i) for i in range(4)]
    assert not tiny.differs(jax.tree.map(lambda *x: jnp.stack(x), *one_by_one), many)
    assert tiny.differs(take_organisms(many, 0), take_organisms(many, 1))


def test_to_scan_puts_layers_first():
    organisms, ia = to_scan((tiny.adapter(1, organisms=K), tiny.adapter(2)), dtype=jnp.bfloat16)
    assert organisms["q"]["a"].shape == (2, K, 32, 4)
    assert ia["q"]["a"].shape == (2, 32, 4)
    assert {x.dtype for x in jax.tree.leaves((organisms, ia))} == {jnp.dtype("bfloat16")}


def test_axes_match_shapes():
    shapes, sizes = lora_shapes(tiny.TINY, tiny.LORA), {"layers": 2, "rank": 4, "embed": 32, "heads": 32, "mlp": 48}
    for t in PROJECTIONS:
        for n in ("a", "b"):
            axes = leaf_axes(t, n)
            assert len(axes) == 3
            assert all(sizes[axis] == size or t in "kv" for axis, size in zip(axes, shapes[t][n], strict=True))
    assert leaf_axes("o", "a") == ("layers", "heads", "rank")
    assert leaf_axes("down", "a") == ("layers", "mlp", "rank")
    assert leaf_axes("k", "b") == ("layers", "rank", "heads")


def test_optimizer_acts_on_the_unscaled_b():
    """Three clipped AdamW steps on our folded b equal the same steps on PEFT's b, scaled."""
    scale, tx = 2.5, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3, weight_decay=0.1))
    ours = {"q": {"a": jnp.linspace(-1, 1, 6), "b": jnp.linspace(0.5, 2, 4)}}
    theirs = {"q": {"a": ours["q"]["a"], "b": ours["q"]["b"] / scale}}

    def loss(adapter, scale):
        return (jnp.outer(adapter["q"]["a"], scale * adapter["q"]["b"]) ** 2).sum()

    wrapped = peft_parametrization(tx, scale)
    state, wanted_state = wrapped.init(ours), tx.init(theirs)
    for _ in range(3):
        updates, state = wrapped.update(jax.grad(loss)(ours, 1.0), state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, wanted_state = tx.update(jax.grad(loss)(theirs, scale), wanted_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours["q"]["a"], theirs["q"]["a"], rtol=1e-5)
    np.testing.assert_allclose(ours["q"]["b"], theirs["q"]["b"] * scale, rtol=1e-5)
    assert abs(float(ours["q"]["b"][0]) - 0.5) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, "rank must be at least 1"),
        ({"rank": 4, "alpha": 1.0, "targets": ("q", "w")}, "'w'"),
        ({"rank": 4, "alpha": 1.0, "targets": ()}, "unknown; choose from"),
        ({"rank": 4, "alpha": 1.0, "init": "zero"}, "b_zero or a_zero"),
    ],
)
def test_bad_lora_config(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**arguments)
