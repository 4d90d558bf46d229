"""Full fine-tunes of organisms in one step: every weight is trained, held to its base; and what does not fit."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from ia_jax.data.batch import Beside
from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.differences import init_differences, with_difference
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny
from tests.stepping import OPTIMIZER


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
