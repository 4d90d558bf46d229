"""K organisms in one step: organism i of a stack is organism i alone, and nobody's trouble is anybody else's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ia_jax.data.batch import batch_shardings
from ia_jax.errors import ConfigError
from ia_jax.models.lora import LoraConfig, init_lora, pad_rank, strip_rank, take_organisms
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import Diverged, init_on_mesh, init_organisms_state
from ia_jax.training.trainer import train_step
from tests import tiny

K = 8
LORA = tiny.FEW
# A large eps: Adam's direction is then smooth in the gradient, where 1e-8 would magnify rounding.
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.2, clip_norm=0.5, weight_decay=0.1, eps=1e-3)


@pytest.fixture(scope="module")
def params():
    return tiny.params()


@pytest.fixture(scope="module")
def batches():
    return tiny.batches(K, count=6, rows=1, length=24)


def fresh(keys=range(K), total=8, adapters=None):
    total, kinds = jnp.full(len(keys), total, jnp.int32), np.zeros(len(keys), int)
    state = init_organisms_state(
        jnp.stack([jax.random.key(k) for k in keys]), total, kinds, tiny.TINY, (LORA,), OPTIMIZER
    )
    return state if adapters is None else state.replace(member=adapters)


def step(params, state, batch):
    return train_step(params, state, (), batch, cfg=tiny.TINY, loss=Sft(), optimizer=OPTIMIZER)


def train(params, batches, state=None, pick=None):
    state = fresh() if state is None else state
    for batch in batches:
        state, metrics = step(params, state, batch if pick is None else take(batch, pick))
    return state, metrics


def take(batch, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], batch)


@pytest.fixture(scope="module")
def trained(params, batches):
    return train(params, batches[:3])


def test_stacked_equals_alone(params, batches, trained):
    for i in range(K):
        state, metrics = train(params, batches[:3], fresh([i]), [i])
        assert tiny.furthest(take_organisms(state.member, 0), take_organisms(trained[0].member, i)) <= 1e-6
        assert tiny.furthest(metrics["loss"][0], trained[1]["loss"][i]) <= 2e-6
    assert tiny.furthest(trained[0].member, fresh().member) > 1e-2


def test_permuting_organisms_permutes_results(params, batches, trained):
    order = [3, 0, 6, 4, 7, 2, 1, 5]
    state, metrics = train(params, batches[:3], fresh(order), order)
    assert tiny.furthest(state.member, take_organisms(trained[0].member, np.array(order))) <= 1e-6
    assert tiny.worst(metrics["grad_norm"], trained[1]["grad_norm"][np.array(order)]) < 1e-5


def test_one_update_is_the_plain_recipe(params, batches):
    """Loss, gradient, clip, Adam, decay and schedule of one organism, written out for PEFT's unscaled b."""
    batch = take(batches[0], [1])

    def loss(peft):
        adapter = {t: {"a": ab["a"], "b": LORA.scale * ab["b"]} for t, ab in peft.items()}
        hidden = tiny.forward(params, batch.tokens, batch.segment_ids, batch.positions, (adapter,), cfg=tiny.TINY)
        logps = jax.nn.log_softmax(hidden @ params["embed"].T).reshape(-1, 64)  # of its one row
        on = batch.target_weight[0, 0] > 0
        return -logps[batch.target_index[0, 0][on], batch.target_token[0, 0][on]].mean()

    peft = init_lora(jax.random.key(1), tiny.TINY, LORA)
    peft = {t: {"a": ab["a"], "b": ab["b"] + 0.05} for t, ab in peft.items()}
    start = {t: {"a": ab["a"][None], "b": LORA.scale * ab["b"][None]} for t, ab in peft.items()}
    value, grads = jax.jit(jax.value_and_grad(loss))(peft)
    tx = optax.chain(
        optax.clip_by_global_norm(0.5), optax.scale_by_adam(0.9, 0.95, 1e-3), optax.add_decayed_weights(0.1)
    )
    direction = tx.update(grads, tx.init(peft), peft)[0]
    warm = (1 / 8) / 0.2  # the first of 8 updates lies within the first fifth, where the rate rises
    wanted = jax.tree.map(lambda p, d: p - 1e-2 * warm * d, peft, direction)
    state, metrics = step(params, fresh([1], adapters=start), batch)
    got = {t: {"a": ab["a"][0], "b": ab["b"][0] / LORA.scale} for t, ab in state.member.items()}
    assert optax.global_norm(grads) > 0.5  # so that clipping is at work
    assert metrics["loss"][0] == pytest.approx(float(value), rel=1e-5)
    assert tiny.worst(got, wanted) < 1e-5


def with_nan(state, organism):
    q = state.member["q"]
    return state.replace(member=state.member | {"q": q | {"b": q["b"].at[organism, 0, 0, 0].set(jnp.nan)}})


def test_a_nan_stays_with_its_organism(params, batches, trained):
    others = np.array([i for i in range(K) if i != 2])
    state, metrics = train(params, batches[:3], with_nan(fresh(), 2))
    assert state.diverged.tolist() == [0, 0, Diverged.LOSS, *[0] * 5]
    assert not metrics["updated"][2]
    assert state.updates[2] == 0
    assert not tiny.differs(take(metrics["updated"], others), take(trained[1]["updated"], others))
    assert not tiny.differs(take(state.updates, others), take(trained[0].updates, others))
    assert not tiny.differs(take_organisms(state.member, others), take_organisms(trained[0].member, others))
    assert not tiny.differs(take_organisms(state.moments, others), take_organisms(trained[0].moments, others))
    assert not tiny.differs(take_organisms(state.member, 2), take_organisms(with_nan(fresh(), 2).member, 2))


def test_once_diverged_an_organism_is_left_alone(params, batches):
    state, _ = train(params, batches[:1], with_nan(fresh(), 2))
    state, metrics = train(params, batches[1:2], state.replace(member=fresh().member))
    assert np.isfinite(metrics["loss"]).all()
    assert state.diverged.tolist() == [0, 0, Diverged.LOSS, *[0] * 5]
    assert not tiny.differs(take_organisms(state.member, 2), take_organisms(fresh().member, 2))


def test_an_organism_without_rows_is_unchanged(params, batches, trained):
    idle = jax.tree.map(np.array, batches[1])
    for x in jax.tree.leaves(idle):
        x[2] = 0
    state, _ = train(params, batches[:1])
    before = take_organisms((state.member, state.moments, state.updates), 2)
    before = jax.tree.map(np.array, before)
    state, metrics = step(params, state, idle)
    assert not tiny.differs(take_organisms((state.member, state.moments, state.updates), 2), before)
    assert metrics["updated"].tolist() == [i != 2 for i in range(K)]
    assert not state.diverged.any()
    wanted, _ = train(params, batches[:2])
    assert not tiny.differs(take_organisms(state.member, 3), take_organisms(wanted.member, 3))


def test_clipping_is_per_organism(params, batches):
    """A huge gradient of one organism shrinks nobody else's update."""
    loud = fresh()
    loud = loud.replace(member=jax.tree.map(lambda x: x.at[0].multiply(30.0), loud.member))
    state, metrics = train(params, batches[:1], loud)
    quiet, quiet_metrics = train(params, batches[:1])
    assert metrics["grad_norm"][0] > 5 * quiet_metrics["grad_norm"][0]
    assert not tiny.differs(
        take_organisms(state.member, np.arange(1, K)), take_organisms(quiet.member, np.arange(1, K))
    )


def test_each_organism_follows_its_own_schedule(params, batches):
    """The rate depends on the organism's own count and total."""
    totals = jnp.array([2] + [40] * (K - 1))
    state, _ = train(params, batches[:1], fresh().replace(total=totals))
    alone, _ = train(params, batches[:1], fresh([0], total=2), [0])
    assert tiny.furthest(take_organisms(state.member, 0), take_organisms(alone.member, 0)) <= 1e-6
    slow, _ = train(params, batches[:1], fresh(total=40))
    assert tiny.furthest(take_organisms(state.member, 0), take_organisms(slow.member, 0)) > 1e-4
    assert not tiny.differs(take_organisms(state.member, 1), take_organisms(slow.member, 1))


def test_the_base_receives_no_update(batches):
    params = tiny.params()
    before = jax.tree.map(np.array, params)
    train(params, batches[:2])
    assert not tiny.differs(params, before)
    jax.tree.map(lambda x: x.block_until_ready(), params)  # nor is it donated


def test_a_step_leaves_the_state_as_it_found_it_on_the_mesh(batches):
    """Same shapes, dtypes and shardings: another type would compile the second step again, which took seconds."""
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        keys = jnp.stack([jax.random.key(k) for k in range(K)])
        total, kinds = np.full(K, 8, np.int32), np.arange(K) % 2
        state = init_on_mesh(mesh, keys, total, 0 * kinds, tiny.TINY, (LORA,), OPTIMIZER)
        before = jax.tree.map(jax.typeof, state)
        mixed = init_on_mesh(mesh, keys, total, kinds, tiny.TINY, (replace(LORA, rank=1), LORA), OPTIMIZER)
        assert jax.tree.map(jax.typeof, mixed) == before
        after, _ = step(tiny.params(), state, jax.device_put(batches[0], batch_shardings(batches[0], mesh)))
        assert jax.tree.map(jax.typeof, after) == before


def test_training_learns(params, batches):
    state, first = train(params, batches[:1], fresh(total=60))
    state, last = train(params, batches[:1] * 40, state)
    assert (last["loss"] < 0.7 * first["loss"]).all()


def test_why_an_organism_diverged(params, batches):
    state = with_nan(fresh(), 0)
    nu = jax.tree.map(lambda x: x.at[2].set(jnp.inf) if x.ndim > 1 else x, state.moments)
    after, _ = train(params, batches[:1], state.replace(moments=nu))
    assert after.diverged.tolist() == [Diverged.LOSS, 0, Diverged.UPDATE, *[0] * 5]
    assert after.updates.tolist() == [0, 1, 0, *[1] * 5]
    assert Diverged(int(after.diverged[0])).reason(12) == "its loss was not finite at update 13"
    sure = params | {"final_norm": 30 * params["final_norm"]}  # of what is wrong
    after, metrics = train(sure, batches[:1])
    assert (metrics["loss"] > 2 * np.log(64)).all()
    assert after.diverged.tolist() == [Diverged.WORSE_THAN_GUESSING] * K
    assert not tiny.differs(after.member, fresh().member)


def test_padding_to_the_largest_rank_stays_zero_and_changes_nothing(params, batches):
    """Organisms of ranks 2, 4 and 1 and three scales in a stack: each is itself alone, and padding is stripped."""
    own = [LoraConfig(rank, alpha, LORA.targets) for rank, alpha in ((2, 3.0), (4, 12.0), (1, 2.0))]
    keys, total = [jax.random.key(i) for i in range(3)], np.full(3, 8, np.int32)
    start = init_organisms_state(jnp.stack(keys), total, np.arange(3), tiny.TINY, own, OPTIMIZER)
    stacked, _ = train(params, batches[:3], start, [0, 1, 2])
    for i, lora in enumerate(own):
        state = init_organisms_state(
            jnp.stack(keys[i : i + 1]), total[:1], np.zeros(1, int), tiny.TINY, (lora,), OPTIMIZER
        )
        begun = strip_rank(take_organisms(jax.tree.map(np.array, state.member), 0), lora.rank)
        state, _ = train(params, batches[:3], state, [i])
        got = strip_rank(take_organisms(stacked.member, i), lora.rank)  # raises if the rest is not zero
        assert tiny.furthest(got, take_organisms(state.member, 0)) <= 1e-6
        assert tiny.furthest(got, begun) > 1e-2
    with pytest.raises(ConfigError, match="ranks beyond it are not zero"):
        strip_rank(take_organisms(stacked.member, 1), 2)
    with pytest.raises(ConfigError, match="rank 4 cannot be padded to rank 3"):
        pad_rank(init_lora(keys[1], tiny.TINY, own[1]), 3)
