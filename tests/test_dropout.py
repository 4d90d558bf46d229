"""Dropout: the hand-written derivatives against autodiff of the definition, and masks that depend on nothing else."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.errors import ConfigError
from ia_jax.models.dropout import Dropout, fold, for_pass, keep_mask, of_group, row_keys
from ia_jax.models.lora import LoraConfig, adapter_shardings, take_organisms
from ia_jax.models.project import project
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.parallel.mesh import TRAINING, make_mesh
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.stored import fails
from tests.test_lora import SIZES, B, D, K, T, layer_adapter, normal, values_and_gradients

CFG = replace(tiny.TINY, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
RATE = 0.3


def keys(organisms, seed=0):
    return jax.random.split(jax.random.key(seed), organisms)


def mask(dropout, layer, group, rows, length, width):
    """[K, B, T, in]: what one group of projections of a layer keeps."""
    whole = for_pass(dropout, (len(dropout.keys), rows, length), 1)
    return np.asarray(keep_mask(of_group(fold(whole, layer), group), length, width))


@pytest.mark.parametrize("member", [0, 1, 2, -1])
def test_project_and_its_gradients(member):
    """Against autodiff of (keep x / (1 - rate)) a b."""
    rng = np.random.default_rng(0)
    x = normal(rng, K, B, T, D)
    weights = {t: normal(rng, D, n) for t, n in SIZES.items()}
    recipe = [(4, "qkv", True), (3, "vq", False), (2, "k", True)]
    stack = tuple(layer_adapter(rng, *r) for r in recipe)
    cotangents = {t: normal(rng, K, B, T, n) for t, n in SIZES.items()}
    dropout = for_pass(Dropout(RATE, keys(K), member), (K, B, T), len(stack))
    keep = np.asarray(keep_mask(of_group(dropout, "q"), T, D))
    assert 0.5 < keep.mean() < 0.9

    def plain(x, stack):
        out = {}
        for name, w in weights.items():
            y = x @ w
            for position, adapter in enumerate(stack):
                if name in adapter:
                    read = x * keep / (1 - RATE) if position == member % 3 else x
                    a, b = adapter[name]["a"], adapter[name]["b"]
                    y = y + (read @ a @ b if a.ndim == 2 else jnp.einsum("kbtd,kdr,krf->kbtf", read, a, b))
            out[name] = y
        return out

    wanted = values_and_gradients(plain, cotangents, x, stack)
    got = values_and_gradients(
        lambda x, s: project(x, weights, s, "embed", "heads", dropout=dropout), cotangents, x, stack
    )
    assert tiny.worst(got, wanted) < 1e-5


def test_a_mask_is_of_its_organism_row_layer_and_group_alone():
    one = Dropout(RATE, keys(3))
    whole = mask(one, 5, "gate", 4, 40, 64)
    assert abs(whole.mean() - (1 - RATE)) < 0.01
    assert abs(whole.mean((0, 1, 2)) - (1 - RATE)).max() < 0.1  # no column is favoured
    assert abs(whole.mean((0, 1, 3)) - (1 - RATE)).max() < 0.1
    # Fewer rows, fewer tokens (also an odd number), fewer organisms: the same numbers where they are.
    np.testing.assert_array_equal(mask(one, 5, "gate", 2, 17, 64), whole[:, :2, :17])
    np.testing.assert_array_equal(mask(Dropout(RATE, keys(3)[1:2]), 5, "gate", 4, 40, 64), whole[1:2])
    others = [
        mask(one, 4, "gate", 4, 40, 64),
        mask(one, 5, "q", 4, 40, 64),
        mask(Dropout(RATE, keys(3, 1)), 5, "gate", 4, 40, 64),
        np.roll(whole, 1, 0),
        np.roll(whole, 1, 1),
        np.roll(whole, 1, 2),
    ]
    by_chance = (1 - RATE) ** 2 + RATE**2
    for other in others:
        assert abs((other == whole).mean() - by_chance) < 0.02
    # A higher rate drops all that a lower one does.
    assert not np.any(mask(Dropout(0.6, keys(3)), 5, "gate", 4, 40, 64) & ~whole)


def loss_and_gradient(params, stack, rows, dropout, remat="none"):
    def loss(trained):
        states = forward(params, *rows, (*stack[:-1], trained), CFG, remat=remat, dropout=dropout)
        return (states**3).sum((1, 2, 3)).sum(), states

    return jax.jit(jax.grad(loss, has_aux=True))(stack[-1])


@pytest.fixture(scope="module")
def params():
    return tiny.params(CFG)


def test_no_rate_no_dropout(params):
    stack, rows = (tiny.adapter(1, CFG),), tiny.rows(K, 2, 9)
    plain = loss_and_gradient(params, stack, rows, None)
    assert not tiny.differs(loss_and_gradient(params, stack, rows, Dropout(0.0, None)), plain)
    dropped = loss_and_gradient(params, stack, rows, Dropout(0.5, keys(K)))
    assert tiny.worst(dropped[1], plain[1]) > 1e-2


@pytest.mark.parametrize("remat", [pytest.param("mlp", marks=pytest.mark.slow), "full"])
def test_what_is_recomputed_is_dropped_alike(params, remat):
    stack, rows = (tiny.adapter(1, CFG, organisms=K), tiny.adapter(2, CFG)), tiny.rows(K, 2, 9)
    wanted = loss_and_gradient(params, stack, rows, Dropout(RATE, keys(K)))
    assert tiny.worst(loss_and_gradient(params, stack, rows, Dropout(RATE, keys(K)), remat), wanted) < 1e-5


def test_the_frozen_member_is_not_dropped(params):
    """Where the IA is zero there is nothing to drop."""
    organisms, rows = tiny.adapter(1, CFG, organisms=K), tiny.rows(K, 2, 9)
    nothing = jax.tree.map(jnp.zeros_like, tiny.adapter(2, CFG))
    plain = loss_and_gradient(params, (organisms, nothing), rows, None)[1]
    assert not tiny.differs(loss_and_gradient(params, (organisms, nothing), rows, Dropout(RATE, keys(K)))[1], plain)
    assert tiny.differs(loss_and_gradient(params, (organisms, nothing), rows, Dropout(RATE, keys(K), 0))[1], plain)


def test_adapters_on_some_layers_are_dropped_as_on_all(params):
    """Keys go by the number of the layer in the model, not by its place in a run."""
    stack, rows = (tiny.adapter(1, CFG, LoraConfig(4, 8.0, layers=(1,))),), tiny.rows(K, 2, 9)
    wide = jax.tree.map(lambda x: jnp.concatenate([0 * x, x, 0 * x]), stack[0].sites)
    got = loss_and_gradient(params, stack, rows, Dropout(RATE, keys(K)))
    wanted = loss_and_gradient(params, (wide,), rows, Dropout(RATE, keys(K)))
    assert tiny.worst(got[1], wanted[1]) < 1e-5
    assert tiny.worst(got[0].sites, jax.tree.map(lambda g: g[1:2], wanted[0])) < 1e-5


def test_stacked_is_alone(params):
    organisms, rows = tiny.adapter(1, CFG, organisms=K), tiny.rows(K, 2, 9)
    grads, states = loss_and_gradient(params, (organisms,), rows, Dropout(RATE, keys(K)))
    for i in range(K):
        one = (take_organisms(organisms, jnp.array([i])),)
        own = [x[i : i + 1] for x in rows]
        own_grads, own_states = loss_and_gradient(params, one, own, Dropout(RATE, keys(K)[i : i + 1]))
        assert tiny.worst(own_states[0], states[i]) < 1e-5
        assert tiny.worst(take_organisms(own_grads, 0), take_organisms(grads, i)) < 1e-5


def test_parts_of_the_rows_with_their_keys_are_the_whole(params):
    stack, rows = (tiny.adapter(1, CFG, organisms=K),), tiny.rows(K, 4, 9)
    wanted, states = loss_and_gradient(params, stack, rows, Dropout(RATE, keys(K)))
    each = row_keys(keys(K), 4)
    assert each.shape == (K, 4)
    parts = [
        loss_and_gradient(params, stack, [x[:, n::2] for x in rows], Dropout(RATE, each[:, n::2])) for n in range(2)
    ]
    assert tiny.worst(parts[1][1], states[:, 1::2]) < 1e-5
    assert tiny.worst(jax.tree.map(jnp.add, parts[0][0], parts[1][0]), wanted) < 1e-5


SHAPES = [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 4, 2)))]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_a_mesh_is_one_device(params, shape):
    fsdp, rows_axis, tp = shape
    rows, drop = tiny.rows(8, 4, 9), keys(8)
    stack = tiny.adapter(0, CFG, tiny.FEW, 8), tiny.adapter(1, CFG)
    wanted, wanted_states = loss_and_gradient(params, stack, rows, Dropout(RATE, drop))
    mesh = make_mesh(fsdp, tp, rows=rows_axis)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, adapter_shardings(x, mesh, o)) for x, o in zip(stack, (True, False), strict=True)]
        base = jax.device_put(jax.tree.map(np.asarray, params), param_shardings(CFG, mesh))
        spread = jax.device_put(drop, TRAINING.sharding(mesh, "organism"))
        grads, states = loss_and_gradient(base, placed, rows, Dropout(RATE, spread))
    assert tiny.worst(states, wanted_states) < 1e-5
    assert tiny.worst(grads, wanted) < 1e-4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dropout(1.0, keys(2)), "dropout must be at least 0 and less than 1, got 1.0"),
        (lambda: Dropout(-0.1, keys(2)), "got -0.1"),
        (lambda: for_pass(Dropout(0.1, keys(2)), (3, 2, 9), 1), "a key for each of 3 organisms"),
        (lambda: for_pass(Dropout(0.1, row_keys(keys(2), 3)), (2, 2, 9), 1), "got an array of shape [2, 3]"),
        (lambda: for_pass(Dropout(0.1, keys(2), 2), (2, 2, 9), 2), "member 2 of a stack that has 2"),
        (lambda: for_pass(Dropout(0.1, keys(2)), (2, 2, 9), 0), "member -1 of a stack that has 0"),
    ],
)
def test_bad_dropout(make, said):
    with fails(ConfigError, said):
        make()


# ---------------------------------------------------------------------------------------------------------------------
# In training
# ---------------------------------------------------------------------------------------------------------------------

OPTIMIZER = AdamW(lr=1e-2, eps=0.1)


def trained(params, organisms, batches, rate=RATE, accumulate=1, pick=slice(None)):
    """The state after a step with each batch, of the organisms `pick` alone."""
    start = jax.tree.map(lambda x: jnp.copy(x[pick]), organisms)
    state = tiny.placed(init_state(start, np.full(K, 4)[pick], OPTIMIZER, scale=2.0, keys=keys(K)[pick]))
    how = {"cfg": CFG, "loss": Sft(), "optimizer": OPTIMIZER, "accumulate": accumulate, "dropout": rate}
    for batch in batches:
        state, metrics = train_step(params, state, (), jax.tree.map(lambda x: x[pick], batch), **how)
    return state, metrics


def test_a_step_drops_alike_in_parts_and_alone_and_otherwise_in_each_update(params):
    organisms = tiny.adapter(1, CFG, tiny.FEW, K)
    [batch, *_] = tiny.batches(K, count=6, rows=4, length=24)
    whole, metrics = trained(params, organisms, [batch] * 2)
    parts, metrics_of_parts = trained(params, organisms, [batch] * 2, accumulate=2)
    assert tiny.worst(parts.member, whole.member) < 1e-5
    assert tiny.worst(metrics_of_parts["loss"], metrics["loss"]) < 1e-5
    alone, metrics_alone = trained(params, organisms, [batch] * 2, pick=slice(1, 2))
    assert tiny.worst(alone.member, jax.tree.map(lambda x: x[1:2], whole.member)) < 1e-5
    assert tiny.worst(metrics_alone["loss"], metrics["loss"][1:2]) < 1e-5
    assert tiny.differs(trained(params, organisms, [batch] * 2)[0].member, whole.member) is False
    # The first two updates of one that learns nothing drop other inputs.
    still = replace(OPTIMIZER, lr=0.0)
    state = tiny.placed(init_state(jax.tree.map(jnp.copy, organisms), np.full(K, 4), still, scale=2.0, keys=keys(K)))
    how = {"cfg": CFG, "loss": Sft(), "optimizer": still}
    losses = []
    for _ in range(2):
        state, metrics = train_step(params, state, (), batch, **how, dropout=RATE)
        losses.append(np.asarray(metrics["loss"]))
    assert np.abs(losses[0] - losses[1]).min() > 1e-4
