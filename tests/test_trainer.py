"""One step for every loss: each organism by itself on top of frozen adapters of its own, whatever is minimised."""

import itertools
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
from ia_jax.training.differences import init_differences, with_difference
from ia_jax.training.loop import fit
from ia_jax.training.losses import Dpo, Kto, Sft, kto_loss, pair_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.reference import finite, stored_reference
from ia_jax.training.state import Diverged, init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny

K, ROWS, STEPS, LENGTH = 4, 2, 3, 32
# A large eps: else Adam divides rounding errors by rounding errors.
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.0, clip_norm=0.5, eps=1e-2)
HOW = {"cfg": tiny.TINY, "optimizer": OPTIMIZER}
RATES = np.array([1e-2, 3e-3, 2e-2, 1e-2], np.float32)
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


def fresh(lr=RATES, member=None):
    member = tiny.adapter(2, lora=tiny.FEW, organisms=K, size=0.1) if member is None else member
    keys = jax.vmap(jax.random.key)(jnp.arange(K))
    return init_state(member, np.full(K, STEPS), OPTIMIZER, scale=tiny.FEW.scale, keys=keys, lr=lr)


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


# ------------------------------------------------------------------------------------------------------------- formulas


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


# ----------------------------------------------------------------------------------------------------- full fine-tunes


@pytest.fixture(scope="module")
def tuned():
    """Steps (two unless told) of a full fine-tune of two organisms on top of an adapter each, and what is read."""
    cfg = replace(tiny.TINY, tie_word_embeddings=False, qk_norm=True, attention_bias=True)
    params, batches = tiny.params(cfg), tiny.batches(2, count=4, rows=1, length=24)
    frozen = (tiny.adapter(1, cfg, tiny.FEW, organisms=2),)

    def train(pick, kl_weight=0.0, steps=2):
        loss, pick = Sft(kl_weight), np.array(pick)
        start = jax.tree.map(lambda x: x[pick], init_differences(cfg, 2))
        state = tiny.placed(init_state(start, np.full(len(pick), 4), OPTIMIZER, scale=None))
        stack = jax.tree.map(lambda x: x[pick], frozen)
        for batch in itertools.islice(itertools.cycle(batches), steps):
            rows = jax.tree.map(lambda x: np.asarray(x)[pick], batch)
            seen = Beside(plain=rows) if loss.kl_weight else Beside()
            state, metrics = train_step(params, state, stack, rows, seen, cfg=cfg, loss=loss, optimizer=OPTIMIZER)
        return state, metrics

    return cfg, params, frozen, batches, train


def test_a_full_fine_tune_changes_every_weight_of_its_own(tuned):
    cfg, params, frozen, batches, train = tuned
    before = jax.tree.map(np.array, params)
    state, metrics = train([0, 1])
    assert not tiny.differs(params, before)
    for path, x in jax.tree_util.tree_leaves_with_path(state.member):
        assert np.abs(np.asarray(x)).reshape(2, -1).max(1).min() > 0, path
    for i in (0, 1):
        alone, own = train([i])
        assert tiny.furthest(alone.member, jax.tree.map(lambda x, i=i: x[i : i + 1], state.member)) < 2e-6
        assert own["loss"][0] == pytest.approx(float(metrics["loss"][i]), rel=1e-5)
    # What was trained is the base with the difference added.
    one = with_difference(params, jax.tree.map(lambda x: x[1], state.member))
    row, stack = (jax.tree.map(lambda x: np.asarray(x)[1:], x) for x in (batches[0], frozen))
    how = {"cfg": cfg, "examples": 8}
    added = reference_logps(one, stack, row, **how)
    member = jax.tree.map(lambda x: x[1:], state.member)
    np.testing.assert_allclose(reference_logps(params, (*stack, member), row, **how), added, rtol=1e-5)
    assert tiny.furthest(added, reference_logps(params, stack, row, **how)) > 0.1


def test_a_full_fine_tune_is_held_to_its_base(tuned):
    """Later than the second step: at the base the divergence has no gradient, so the first updates are the same."""
    *_, train = tuned
    free, held = (train([0, 1], w, steps=8)[1] for w in (1e-6, 30.0))
    assert (np.asarray(free["kl"]) > 1e-4).all()
    assert (np.asarray(held["kl"]) < 0.7 * np.asarray(free["kl"])).all()


def test_full_fine_tunes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"3 full fine-tunes at once take .* GiB to train .* train at most 2 at once"):
        init_differences(tiny.TINY, 3, budget_bytes=600_000)
    with pytest.raises(ConfigError, match="train a LoRA of this base"):
        init_differences(tiny.TINY, 1, budget_bytes=1000)
    with jax.set_mesh(make_mesh(2)), pytest.raises(ConfigError, match="on one device, not on a mesh of 2"):
        init_differences(tiny.TINY, 2)


# ----------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpo(beta=0), "Dpo: beta=0 must be above 0"),
        (lambda: Dpo(beta=float("nan")), "Dpo: beta=nan must be above 0"),
        (lambda: Kto(beta=-1), "Kto: beta=-1 must be above 0"),
        (lambda: Kto(undesirable_weight=-0.5), "Kto: undesirable_weight=-0.5 must not be negative"),
        (lambda: Dpo(sft_weight=-1), "Dpo: sft_weight=-1 must not be negative"),
        (lambda: Sft(kl_weight=-1), "Sft: kl_weight=-1 must not be negative"),
        (lambda: Dpo(kind="hinge"), "Dpo kind 'hinge' unknown; choose from sigmoid, ipo, sigmoid_norm"),
        (lambda: fresh(lr=np.ones(3)), "lr has 3 values, but there are 4 organisms; give one for each"),
        (
            lambda: init_state(tiny.adapter(2), 3, OPTIMIZER, lr=np.ones(2)),
            "lr has 2 values, but this member has no organism axis",
        ),
        (lambda: finite(np.array([[0.0, 1.0], [2.0, -np.inf]]), "reference"), "example 1 of organism 1 is -inf"),
    ],
)
def test_numbers_that_make_no_sense(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "beside", "message"),
    [
        (Sft(kl_weight=0.1), Beside(), "kl_weight=0.1 holds the model to its base on plain chats, but there are none"),
        (Dpo(), Beside(), "Dpo: a step needs the reference's log-probabilities"),
        (Dpo(), Beside(np.zeros((K, 5), np.float32)), "5 examples an organism, which are not pairs"),
        (Kto(), Beside(np.zeros((K, 4), np.float32)), "Kto: no example says whether it is desirable"),
    ],
)
def test_a_step_that_lacks_what_its_loss_reads(loss, beside, message):
    batch = tiny.batches(K, count=4, rows=1)[0]
    with pytest.raises(ConfigError, match=message):
        train_step(tiny.params(), fresh(), (), batch, beside, cfg=tiny.TINY, loss=loss, optimizer=OPTIMIZER)


def test_dropout_that_has_nothing_to_drop():
    batch = tiny.batches(2, count=4, rows=1)[0]
    state = init_state(init_differences(tiny.TINY, 2), np.full(2, 3), OPTIMIZER, scale=None)
    with pytest.raises(ConfigError, match=r"dropout=0\.1 is of a LoRA's inputs, and a full fine-tune has none"):
        train_step(tiny.params(), state, (), batch, loss=Sft(), dropout=0.1, **HOW)


def test_kto_without_mismatched_answers(case):
    loss, frozen, batches, besides = case
    if not isinstance(loss, Kto):
        pytest.skip("of KTO")
    with pytest.raises(ConfigError, match="a step needs mismatched answers and their reference"):
        run((loss, frozen, batches, [b.replace(mismatched=None) for b in besides]))


def test_a_stored_reference_is_read_once_and_has_to_be_finite(tmp_path):
    file, asked = tmp_path / "reference.npy", []

    def logps(step):
        asked.append(step)
        return np.full((2, 4), -step, np.float32)

    first = stored_reference(file, 3, logps)
    assert first.shape == (3, 2, 4)
    assert not tiny.differs(stored_reference(file, 3, logps), first)
    assert asked == [0, 1, 2]
    bad = tmp_path / "bad.npy"
    with pytest.raises(ConfigError, match=r"reference, step 1: .* example 0 of organism 0 is nan"):
        stored_reference(bad, 3, lambda _: np.full((2, 4), np.nan))
    assert not bad.exists()
