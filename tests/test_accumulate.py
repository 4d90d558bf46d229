"""Gradient accumulation: rows in parts give the loss, gradient and update of all rows at once, in less memory."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.config import parse_config
from ia_jax.data.batch import Beside, batch_shardings, build_batch
from ia_jax.data.plans import plan_joint
from ia_jax.errors import ConfigError
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.losses import Dpo, Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_organisms_state, init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny

K, ROWS = 2, 4
LORA = tiny.FEW
# A large eps: else Adam divides rounding errors by rounding errors.
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.0, clip_norm=0.5, eps=0.1)
STATIC = {"cfg": tiny.TINY, "optimizer": OPTIMIZER}


@pytest.fixture(scope="module")
def batch():
    """Rows with unequal numbers of supervised tokens; the second organism's last row is empty."""
    [first, *_] = tiny.batches(K, count=9, rows=ROWS, length=24)
    first = jax.tree.map(np.array, first)
    for x in jax.tree.leaves(first):
        x[1, -1] = 0
    return first


@pytest.fixture(scope="module")
def pairs():
    """Four pairs of one organism and one of the other, each on a row."""
    rng = np.random.default_rng(0)
    units = [[(tiny.chat(rng, 9), tiny.chat(rng, 11)) for _ in range(n)] for n in (4, 1)]
    plan = plan_joint(units, organisms_per_step=K, per_slot=4, seed=0, length=24, rows=ROWS)
    return build_batch(plan.steps[0], plan, units)


def sft(batch, accumulate, put=lambda x: x, put_ia=lambda x: x, params=None):
    state = put_ia(init_state(tiny.adapter(2, lora=LORA), 4, OPTIMIZER, scale=LORA.scale))
    stack = put(tiny.adapter(1, lora=LORA, organisms=K))
    params = tiny.params() if params is None else params
    return train_step(params, state, (stack,), batch, loss=Sft(), accumulate=accumulate, **STATIC)


def dpo(batch, accumulate):
    stack, start, other = (tiny.adapter(n, lora=LORA, organisms=k) for n, k in ((1, K), (2, None), (3, None)))
    seen = {"cfg": tiny.TINY, "examples": 8, "accumulate": accumulate}
    reference = reference_logps(tiny.params(), (stack, other), batch, **seen)
    state = init_state(start, 4, OPTIMIZER, scale=LORA.scale)
    static = {**STATIC, "loss": Dpo(sft_weight=0.5), "accumulate": accumulate}
    return train_step(tiny.params(), state, (stack,), batch, Beside(reference), **static), reference


def train(batch, accumulate):
    keys, total = jax.random.split(jax.random.key(0), K), jnp.full(K, 4, jnp.int32)
    state = tiny.placed(init_organisms_state(keys, total, np.zeros(K, int), tiny.TINY, (LORA,), OPTIMIZER))
    for _ in range(2):
        state, metrics = train_step(tiny.params(), state, (), batch, loss=Sft(), accumulate=accumulate, **STATIC)
    return state, metrics


@pytest.mark.parametrize("parts", [2, 4])
def test_sft_in_parts_is_the_whole(batch, parts):
    (state, metrics), (wanted, wanted_metrics) = sft(batch, parts), sft(batch, 1)
    assert tiny.furthest(state.member, wanted.member) < 1e-6
    assert tiny.worst(metrics, wanted_metrics) < 1e-5
    assert tiny.furthest(wanted.member, tiny.adapter(2, lora=LORA)) > 1e-3


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dpo_in_parts_is_the_whole(pairs, parts):
    ((state, metrics), reference), ((wanted, wanted_metrics), wanted_reference) = dpo(pairs, parts), dpo(pairs, 1)
    assert tiny.furthest(state.member, wanted.member) < 1e-6
    assert tiny.worst(metrics, wanted_metrics) < 1e-4  # the margin is a small difference
    assert tiny.worst(reference, wanted_reference) < 1e-5
    assert abs(float(metrics["dpo_loss"]) - np.log(2)) > 1e-3


def test_organisms_in_parts_are_the_whole(batch):
    (state, metrics), (wanted, wanted_metrics) = train(batch, 2), train(batch, 1)
    assert tiny.furthest(state.member, wanted.member) < 1e-6
    for name in ("loss", "grad_norm"):
        assert tiny.worst(metrics[name], wanted_metrics[name]) < 1e-5
    assert state.updates.tolist() == [2, 2]


def test_on_a_mesh_with_rows(batch):
    """Parts of rows that are spread themselves."""
    wanted, wanted_metrics = sft(batch, 1)
    mesh = make_mesh(2, 2, rows=2)
    with jax.set_mesh(mesh):
        host = partial(jax.tree.map, np.asarray)
        state, metrics = sft(
            jax.device_put(batch, batch_shardings(batch, mesh)),
            2,
            lambda x: jax.device_put(host(x), adapter_shardings(x, mesh, organisms=True)),
            lambda x: jax.device_put(host(x), adapter_shardings(x, mesh)),
            jax.device_put(host(tiny.params()), param_shardings(tiny.TINY, mesh)),
        )
    assert tiny.furthest(state.member, wanted.member) < 1e-6
    assert tiny.worst(metrics["per_organism"], wanted_metrics["per_organism"]) < 1e-5


def test_parts_take_less_memory():
    """By the compiler's account of a step's temporaries."""
    cfg = replace(tiny.TINY, num_hidden_layers=4)
    [batch, *_] = tiny.batches(1, count=16, rows=8, length=64)
    state = init_state(tiny.adapter(2, cfg, LORA), 4, OPTIMIZER, scale=LORA.scale)
    stack = tiny.adapter(1, cfg, LORA, organisms=1)

    def held(parts):
        static = {"cfg": cfg, "loss": Sft(), "optimizer": OPTIMIZER, "accumulate": parts}
        lowered = train_step.lower(tiny.params(cfg), state, (stack,), batch, **static)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert held(4) < 0.5 * held(1)


def test_parts_that_do_not_divide(batch):
    with pytest.raises(ConfigError, match="4 rows of an organism are not accumulate=3 parts of equal size"):
        sft(batch, 3)
    with pytest.raises(ConfigError, match=r"config\.sft\.rows=3 must be a multiple of accumulate=2"):
        parse_config({"sft": {"rows": 3, "accumulate": 2}})
    with pytest.raises(ConfigError, match=r"config\.dpo\.rows=1 must be a multiple of config\.mesh\.rows=2"):
        parse_config({"mesh": {"rows": 2}, "organisms": {"rows": 2}, "sft": {"rows": 4}})
    with pytest.raises(ConfigError, match=r"config\.organisms\.accumulate=0 must be at least 1"):
        parse_config({"organisms": {"accumulate": 0}})
