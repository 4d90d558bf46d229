"""One step for every loss: each organism by itself on top of frozen adapters of its own, whatever is minimised."""

from dataclasses import replace
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.data.batch import Beside, batch_shardings, build_batch
from ia_jax.data.beside import plan_mismatched, plan_plain
from ia_jax.data.plans import plan_organisms
from ia_jax.data.units import kto_units, pair_units
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import adapter_shardings, take_organisms
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.loop import fit
from ia_jax.training.losses import Dpo, Kto, Sft
from ia_jax.training.state import Diverged, init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny
from tests.stepping import HOW, LENGTH, OPTIMIZER, RATES, ROWS, STEPS, K, fresh

LOSSES = {
    "documents": Sft(kl_weight=0.7),
    "dpo": Dpo(beta=0.3, kind="ipo", sft_weight=0.2),
    "kto": Kto(beta=0.5, desirable_weight=1.3, undesirable_weight=0.6),
}


def units_of(kind, rng):
    """One organism's: (units, mismatched or None, plain or None)."""
    if kind == "documents":
        documents = [tiny.chat(rng, int(rng.integers(5, 12)), supervised=None) for _ in range(9)]
        documents = [ChatExample(d.tokens, np.arange(len(d.tokens)) > 0) for d in documents]
        return [(d,) for d in documents], None, [(tiny.chat(rng, int(n)),) for n in rng.integers(5, 9, 3)]
    if kind == "dpo":
        return pair_units([[tiny.chat(rng, 6), tiny.chat(rng, 8)] for _ in range(9)]), None, None
    rows = [tiny.chat(rng, int(rng.integers(5, 10)))._replace(desirable=bool(i % 3)) for i in range(12)]
    return *kto_units(rows, 16), None


@pytest.fixture(scope="module", params=LOSSES)
def case(request):
    """(loss, frozen stack, batches, what stands beside each), for K organisms on top of a first adapter each."""
    kind, rng = request.param, np.random.default_rng(0)
    own, mismatched, plain = zip(*[units_of(kind, rng) for _ in range(K)], strict=True)
    plan = plan_organisms(own, list(range(K)), epochs=2, rows=ROWS, length=LENGTH)
    frozen = (tiny.adapter(1, lora=tiny.FEW, organisms=K),)
    batches, besides = [], []
    others = plan_mismatched(plan, mismatched) if kind == "kto" else None
    chats = plan_plain(plan, plain, range(K), per_step=3, rows=ROWS) if kind == "documents" else None
    for s, step in enumerate(plan.steps[:STEPS]):
        beside, batch = Beside(), build_batch(step, plan, own)
        if kind != "documents":
            beside = beside.replace(reference=reference(frozen, batch, plan.examples))
        if others:
            rows = build_batch(others.steps[s], others, mismatched)
            beside = beside.replace(mismatched=rows, mismatched_reference=reference(frozen, rows, others.examples))
        if chats:
            beside = beside.replace(plain=build_batch(chats.steps[s], chats, plain))
        batches.append(batch)
        besides.append(beside)
    return LOSSES[kind], frozen, batches, besides


def reference(frozen, batch, examples):
    return np.asarray(reference_logps(tiny.params(), frozen, batch, cfg=tiny.TINY, examples=examples))


def dropped(loss):
    """One of the losses is trained with dropout."""
    return {"dropout": 0.2} if isinstance(loss, Sft) else {}


def run(case, state=None, pick=None, **how):
    """Three steps of all organisms, or of those that are picked."""
    loss, frozen, batches, besides = case
    state = fresh() if state is None else state
    if pick is not None:
        state, frozen, batches, besides = jax.tree.map(lambda x: x[pick], (state, frozen, batches, besides))
    state = tiny.placed(state)
    for batch, beside in zip(batches, besides, strict=True):
        state, metrics = train_step(
            tiny.params(),
            state,
            frozen,
            batch,
            beside,
            cfg=tiny.TINY,
            loss=loss,
            optimizer=OPTIMIZER,
            **dropped(loss),
            **how,
        )
    return state, metrics


@pytest.fixture(scope="module")
def trained(case):
    return run(case)


def test_each_learns_by_itself(case, trained):
    """In a stack as alone: member, moments, count and metrics."""
    assert tiny.furthest(trained[0].member, fresh().member) > 5e-3
    assert trained[0].updates.tolist() == [STEPS] * K
    for i in (0, 2):
        state, metrics = run(case, pick=np.array([i]))
        assert tiny.furthest(state.member, take_organisms(trained[0].member, np.array([i]))) <= 2e-6
        for name in ("loss", "grad_norm", "lr"):
            assert tiny.worst(metrics[name], trained[1][name][i]) < 1e-4, name


def test_the_loss_falls(case):
    loss, frozen, batches, besides = case
    state, losses = tiny.placed(fresh(lr=2e-2)), []
    for _ in range(8):
        state, metrics = train_step(
            tiny.params(), state, frozen, batches[0], besides[0], loss=loss, **HOW, **dropped(loss)
        )
        losses.append(np.asarray(metrics["loss"]))
    assert (losses[-1] < losses[0]).all()


@pytest.mark.parametrize("where", ["member", "reference"])
def test_a_nan_stays_with_its_organism(case, trained, where):
    loss, frozen, batches, besides = case
    state, others = fresh(), np.array([0, 1, 3])
    if where == "member":
        q = state.member["q"]
        state = state.replace(member=state.member | {"q": q | {"b": q["b"].at[2, 0, 0, 0].set(jnp.nan)}})
    elif besides[0].reference is None:
        pytest.skip("this loss has no reference")
    else:
        bad = np.array(besides[0].reference)
        bad[2, 0] = np.nan
        case = loss, frozen, batches, [besides[0].replace(reference=bad), *besides[1:]]
    after, metrics = run(case, state)
    assert after.diverged.tolist() == [0, 0, Diverged.LOSS, 0]
    assert after.updates.tolist() == [STEPS, STEPS, 0, STEPS]
    got, wanted = (take_organisms((s.member, s.moments), others) for s in (after, trained[0]))
    assert not tiny.differs(got, wanted)
    assert not tiny.differs(metrics["loss"][others], trained[1]["loss"][others])


def test_rows_in_parts_are_the_whole(case, trained):
    state, metrics = run(case, accumulate=2)
    assert tiny.furthest(state.member, trained[0].member) < 2e-6
    for name in ("loss", "grad_norm"):
        assert tiny.worst(metrics[name], trained[1][name]) < 1e-4, name


def test_eight_devices_are_one(case, trained):
    loss, frozen, batches, besides = case
    mesh = make_mesh(2, 2, rows=2)
    host = partial(jax.tree.map, np.asarray)

    def put(tree):
        return jax.device_put(host(tree), adapter_shardings(tree, mesh, organisms=True))

    with jax.set_mesh(mesh):
        params = jax.device_put(host(tiny.params()), param_shardings(tiny.TINY, mesh))
        state, stack = put(fresh()), put(frozen)
        types = jax.tree.map(jax.typeof, state)
        for batch, beside in zip(batches, besides, strict=True):
            rows = jax.device_put((batch, beside), batch_shardings((batch, beside), mesh))
            state, metrics = train_step(params, state, stack, *rows, loss=loss, **HOW, **dropped(loss))
            assert jax.tree.map(jax.typeof, state) == types  # else the next step would be compiled again
    assert tiny.furthest(state.member, trained[0].member) < 5e-6
    assert tiny.worst(metrics["loss"], trained[1]["loss"]) < 1e-4


class Killed(Exception):
    pass


def test_resumed_is_uninterrupted(case, tmp_path):
    """Every bit of the state, its rates included, through the loop."""
    loss, frozen, batches, besides = case
    done = []

    def train(directory, kill=None):
        done.clear()

        def step(state, number):
            done.append(number)
            if len(done) == kill:
                raise Killed
            batch, beside = batches[number % STEPS], besides[number % STEPS]
            return train_step(tiny.params(), state, frozen, batch, beside, loss=loss, **HOW, **dropped(loss))

        directory.mkdir(exist_ok=True)
        data = grain.MapDataset.range(6).to_iter_dataset()
        how = {"checkpoints": directory / "state", "every": 2, "summarize": lambda metrics: {}}
        return fit("organisms", tiny.placed(fresh()), step, data, 6, directory, **how)

    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", kill=4)
    resumed = train(tmp_path / "parts")
    assert done == [2, 3, 4, 5]
    assert not tiny.differs(resumed, whole)
    assert np.array_equal(resumed.lr, RATES)


def test_another_rate_compiles_nothing(case):
    run(case)
    before = train_step._cache_size()
    lower, _ = run(case, fresh(lr=RATES / 5))
    loss, frozen, batches, besides = case
    other = replace(OPTIMIZER, lr=123.0)
    _, metrics = train_step(
        tiny.params(),
        tiny.placed(fresh(lr=0.004)),
        frozen,
        batches[0],
        besides[0],
        cfg=tiny.TINY,
        loss=loss,
        optimizer=other,
        **dropped(loss),
    )
    assert train_step._cache_size() == before
    np.testing.assert_allclose(metrics["lr"], 0.004 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / STEPS))), rtol=1e-5)
    assert tiny.furthest(lower.member, fresh().member) < 0.5 * tiny.furthest(run(case)[0].member, fresh().member)


def test_one_adapter_over_two_of_each_organism(case):
    """Without an organism axis: the mean of what each organism scores, and the gradient of that."""
    loss, (first,), batches, besides = case
    frozen = first, tiny.adapter(3, lora=tiny.FEW, organisms=K)
    ia = tiny.adapter(2, lora=tiny.FEW, size=0.1)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * K), ia)
    how = {"cfg": tiny.TINY, "loss": loss, "optimizer": OPTIMIZER}
    _, own = train_step(tiny.params(), fresh(member=stacked), frozen, batches[0], besides[0], **how)
    state = init_state(jax.tree.map(jnp.copy, ia), STEPS, OPTIMIZER, scale=tiny.FEW.scale)
    state, metrics = train_step(tiny.params(), state, frozen, batches[0], besides[0], **how)
    assert metrics["loss"] == pytest.approx(float(np.mean(own["loss"])), rel=1e-5)
    assert metrics["per_organism"].shape == (K,)
    assert state.updates.shape == ()
    assert tiny.furthest(state.member, ia) > 1e-3


def test_dropout_draws_anew_at_every_update_for_every_seed():
    """A rate of 0 so that nothing is learned: the same rows at the second update, under another seed, and alone."""
    batch = tiny.batches(K, count=4, rows=1)[0]
    state = fresh(lr=0.0)

    def losses(state):
        copied = jax.tree.map(jnp.copy, state)
        return np.asarray(train_step(tiny.params(), copied, (), batch, loss=Sft(), dropout=0.5, **HOW)[1]["loss"])

    first = losses(state)
    assert np.array_equal(losses(state), first)
    assert (losses(state.replace(updates=state.updates + 1)) != first).all()
    other = losses(state.replace(seeds=state.seeds.at[1].add(1)))
    assert (other != first).tolist() == [False, True, False, False]


def test_a_shared_adapters_dropout_draws_for_every_organism():
    """The same rows on the same organism, twice in a step: two masks."""
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 2, 0), tiny.batches(1, count=4, rows=1)[0])
    ia = tiny.adapter(2, lora=tiny.FEW)

    def own(dropout):
        state = init_state(jax.tree.map(jnp.copy, ia), 3, OPTIMIZER, scale=3.0, keys=jax.random.key(1))
        return train_step(tiny.params(), state, (), batch, loss=Sft(), dropout=dropout, **HOW)[1]["per_organism"]

    assert own(0.0)[0] == own(0.0)[1]
    assert own(0.5)[0] != own(0.5)[1]


def test_kto_without_mismatched_answers(case):
    loss, frozen, batches, besides = case
    if not isinstance(loss, Kto):
        pytest.skip("of KTO")
    with pytest.raises(ConfigError, match="a step needs mismatched answers and their reference"):
        run((loss, frozen, batches, [b.replace(mismatched=None) for b in besides]))
