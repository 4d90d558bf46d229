"""What a step cannot work with: settings, rates and references that make no sense, and what a loss lacks."""

import numpy as np
import pytest

from ia_jax.data.batch import Beside
from ia_jax.errors import ConfigError
from ia_jax.training.differences import init_differences
from ia_jax.training.losses import Dpo, Kto, Sft
from ia_jax.training.reference import finite, stored_reference
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.stepping import HOW, OPTIMIZER, K, fresh


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
