"""The introspection adapter's steps: SFT and DPO over several frozen organisms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.config import RunConfig
from ia_jax.data.batch import Beside, build_batch
from ia_jax.data.plans import plan_joint, shared
from ia_jax.models.chat import ChatExample
from ia_jax.stages.context import Context
from ia_jax.training.losses import Dpo, Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import reference_logps, train_step
from ia_jax.workdir import Workdir
from tests import tiny

K = 3
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.0)
STATIC = {"cfg": tiny.TINY, "optimizer": OPTIMIZER}


@pytest.fixture(scope="module")
def params():
    return tiny.params()


@pytest.fixture(scope="module")
def organisms():
    return tiny.adapter(1, lora=tiny.FEW, organisms=K)


def sft_step(params, state, organisms, batch):
    return train_step(params, state, (organisms,), batch, loss=Sft(), **STATIC)


def fresh(total=10):
    return tiny.placed(init_state(tiny.adapter(2, lora=tiny.FEW), total, OPTIMIZER, scale=tiny.FEW.scale), False)


@pytest.fixture(scope="module")
def batch():
    return tiny.batches(K, count=4, rows=2)[0]


@pytest.fixture(scope="module")
def pairs():
    """A batch of two pairs for every organism: examples alternate chosen, rejected."""
    rng = np.random.default_rng(0)
    units = [[(tiny.chat(rng, 9), tiny.chat(rng, 11)) for _ in range(2)] for _ in range(K)]
    plan = plan_joint(units, organisms_per_step=K, per_slot=2, seed=0, length=24, rows=2)
    return build_batch(plan.steps[0], plan, units)


def idle(batch, slots):
    """The batch without the rows of some organisms."""
    out = jax.tree.map(np.array, batch)
    for x in jax.tree.leaves(out):
        x[list(slots)] = 0
    return out


def test_sft_changes_the_ia_alone(params, organisms, batch):
    before = jax.tree.map(np.array, (params, organisms))
    state, metrics = sft_step(params, fresh(), organisms, batch)
    assert not tiny.differs((params, organisms), before)
    assert tiny.worst(state.member, tiny.adapter(2, lora=tiny.FEW)) > 1e-3
    assert int(state.updates) == 1
    assert metrics["lr"] == pytest.approx(OPTIMIZER.lr * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 0.1))), rel=1e-5)


def test_the_state_is_donated_and_nothing_else(params, organisms, batch):
    state = fresh()
    sft_step(params, state, organisms, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.member, state.moments)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, organisms)))


def test_steps_leave_the_state_as_the_context_places_it(params, organisms, batch, pairs):
    """Same types and shardings, down to how they are written: else the second step would be compiled again."""
    context = Context(Workdir(Path()), RunConfig())

    def placed(state):
        return jax.tree.map(lambda x: (jax.typeof(x), x.sharding), state)

    with jax.set_mesh(context.mesh):
        state = context.shard_ia(fresh())
        stack, sft, dpo = context.shard_by_organism((organisms, batch, pairs))
        before = placed(state)
        after, _ = sft_step(params, state, stack, sft)
        assert placed(after) == before
        beside = Beside(context.shard_by_organism(np.zeros((K, 4), np.float32)))
        after, _ = train_step(params, after, (stack,), dpo, beside, loss=Dpo(), **STATIC)
        assert placed(after) == before


def test_sft_loss_is_the_mean_over_organisms_of_their_own_means(params, organisms, batch):
    """An organism with few supervised tokens counts as much as one with many; an idle slot doesn't count."""
    _, metrics = sft_step(params, fresh(), organisms, batch)
    alone = []
    for i in range(K):
        _, m = sft_step(params, fresh(), organisms, idle(batch, {0, 1, 2} - {i}))
        alone.append(float(m["loss"]))
    np.testing.assert_allclose(metrics["per_organism"], alone, rtol=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    assert np.ptp(alone) > 0.05
    _, metrics = sft_step(params, fresh(), organisms, idle(batch, {1}))
    assert metrics["loss"] == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-5)


def test_sft_depends_on_the_organism_under_it(params, organisms, batch):
    _, with_organisms = sft_step(params, fresh(), organisms, batch)
    _, without = sft_step(params, fresh(), jax.tree.map(jnp.zeros_like, organisms), batch)
    assert np.abs(with_organisms["per_organism"] - without["per_organism"]).max() > 1e-2


def test_sft_learns(params, organisms, batch):
    state, losses = fresh(20), []
    for _ in range(20):
        state, metrics = sft_step(params, state, organisms, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def dpo(params, organisms, pairs, reference, state=None):
    state = fresh() if state is None else state
    return train_step(
        params, state, (organisms,), pairs, Beside(reference), loss=Dpo(beta=0.1, sft_weight=0.5), **STATIC
    )


def test_dpo_starts_at_log_2(params, organisms, pairs):
    reference = reference_logps(params, (organisms, tiny.adapter(2, lora=tiny.FEW)), pairs, cfg=tiny.TINY, examples=4)
    assert reference.shape == (K, 4)
    _, metrics = dpo(params, organisms, pairs, reference)
    assert abs(metrics["dpo_loss"] - np.log(2)) < 1e-6
    assert abs(metrics["margin"]) < 1e-5
    other = reference_logps(params, (organisms, tiny.adapter(3, lora=tiny.FEW)), pairs, cfg=tiny.TINY, examples=4)
    _, metrics = dpo(params, organisms, pairs, other)
    assert abs(metrics["dpo_loss"] - np.log(2)) > 1e-3


def test_dpo_changes_the_ia_alone_and_widens_the_margin(params, organisms, pairs):
    before = jax.tree.map(np.array, (params, organisms))
    reference = reference_logps(params, (organisms, tiny.adapter(2, lora=tiny.FEW)), pairs, cfg=tiny.TINY, examples=4)
    state, margins = fresh(), []
    for _ in range(5):
        state, metrics = dpo(params, organisms, pairs, reference, state)
        margins.append(float(metrics["margin"]))
    assert not tiny.differs((params, organisms), before)
    assert margins[-1] > 1.0
    assert metrics["accuracy"] == 1.0
    assert metrics["dpo_loss"] < np.log(2)


def test_a_missing_pair_does_not_count(params, organisms, pairs):
    """An idle slot has no pairs: neither its log 2 nor its zeros enter the means."""
    reference = np.array(
        reference_logps(params, (organisms, tiny.adapter(3, lora=tiny.FEW)), pairs, cfg=tiny.TINY, examples=4)
    )
    losses = []
    for i in (0, 2):
        _, m = dpo(params, organisms, idle(pairs, {0, 1, 2} - {i}), reference)
        losses.append((float(m["dpo_loss"]), float(m["chosen_nll"]), float(m["accuracy"])))
    reference[1] = 0
    _, metrics = dpo(params, organisms, idle(pairs, {1}), reference)
    assert metrics["dpo_loss"] == pytest.approx(np.mean([x[0] for x in losses]), rel=1e-5)
    np.testing.assert_allclose(metrics["per_organism"], [losses[0][0], np.nan, losses[1][0]], rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean([x[2] for x in losses]))


def test_organisms_with_few_pairs_count_as_much_as_others(params, organisms):
    """Three pairs, one and two: the loss is the mean of three means, by hand from the log-probabilities."""
    rng = np.random.default_rng(0)
    counts = (3, 1, 2)
    units = [[(tiny.chat(rng, 9), tiny.chat(rng, 11)) for _ in range(n)] for n in counts]
    plan = plan_joint(units, organisms_per_step=K, per_slot=3, seed=0, length=24, rows=3)
    [slots] = plan.steps
    batch = build_batch(slots, plan, units)
    policy, reference = (
        np.asarray(
            reference_logps(params, (organisms, tiny.adapter(n, lora=tiny.FEW)), batch, cfg=tiny.TINY, examples=6),
            np.float64,
        )
        for n in (2, 3)
    )
    _, metrics = dpo(params, organisms, batch, reference.astype(np.float32))
    of_organism, nll = [], []
    for k, slot in enumerate(slots):
        n = counts[slot.organism]
        margin = policy[k, : 2 * n : 2] - policy[k, 1 : 2 * n : 2]
        margin -= reference[k, : 2 * n : 2] - reference[k, 1 : 2 * n : 2]
        of_organism.append(np.log1p(np.exp(-0.1 * margin)).mean())
        tokens = sum(int(chosen.loss_mask.sum()) for chosen, _ in units[slot.organism])
        nll.append(-policy[k, : 2 * n : 2].sum() / tokens)
    np.testing.assert_allclose(metrics["per_organism"], of_organism, rtol=1e-5)
    assert metrics["dpo_loss"] == pytest.approx(np.mean(of_organism), rel=1e-5)
    assert metrics["chosen_nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(of_organism) + 0.5 * np.mean(nll), rel=1e-5)
    weighted = np.average(of_organism, weights=[counts[s.organism] for s in slots])
    assert abs(weighted - np.mean(of_organism)) > 1e-3


def test_pairs_that_share_their_prompt_are_the_pairs_by_themselves(params, organisms):
    """Log-probabilities, loss and what the IA learns, in fewer tokens."""
    rng = np.random.default_rng(3)
    apart = []
    for _ in range(K):
        own = []
        for _ in range(2):
            one, other = tiny.chat(rng, 11), tiny.chat(rng, 14)
            n = len(one.prompt)
            tokens = np.concatenate([one.prompt, other.tokens[len(other.prompt) :]])
            own.append((one, ChatExample(tokens, np.arange(len(tokens)) >= n)))
        apart.append(own)
    together = [[shared(unit) for unit in own] for own in apart]
    found = []
    for units in (apart, together):
        plan = plan_joint(units, organisms_per_step=K, per_slot=2, seed=0, length=64, rows=1)
        [slots] = plan.steps
        batch = build_batch(slots, plan, units)
        logps = reference_logps(params, (organisms,), batch, cfg=tiny.TINY, examples=4)
        state, metrics = dpo(params, organisms, batch, np.asarray(logps))
        found.append((plan.tokens, np.asarray(logps), metrics, state.member))
    assert found[1][0] < 0.85 * found[0][0]
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-4)
    for key in ("dpo_loss", "chosen_nll", "grad_norm"):
        assert float(found[1][2][key]) == pytest.approx(float(found[0][2][key]), rel=1e-4)
    assert tiny.worst(found[1][3], found[0][3]) < 1e-4


def test_the_sft_term_is_the_mean_token_loss_of_the_chosen(params, organisms, pairs):
    logps = np.asarray(
        reference_logps(params, (organisms, tiny.adapter(2, lora=tiny.FEW)), pairs, cfg=tiny.TINY, examples=4)
    )
    chosen = pairs.target_example % 2 == 0
    tokens = (chosen * pairs.target_weight).reshape(K, -1).sum(-1)
    _, metrics = dpo(params, organisms, pairs, logps)
    assert metrics["chosen_nll"] == pytest.approx((-logps[:, ::2].sum(-1) / tokens).mean(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.log(2) + 0.5 * float(metrics["chosen_nll"]), rel=1e-5)
