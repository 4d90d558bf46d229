"""KTO, and DPO of organisms in its three kinds, against trl: on given log-probabilities, and from tokens to loss."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from ia_jax.data.batch import Beside, build_batch
from ia_jax.data.beside import plan_mismatched
from ia_jax.data.plans import plan_organisms
from ia_jax.data.units import kto_units, pair_units
from ia_jax.models.chat import ChatExample
from ia_jax.training.losses import PAIR_LOSSES, Dpo, Kto, kl_estimate, kto_loss, pair_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny
from tests.peers.torch_model import merged, torch_model, word_tokenizer, words

CFG, K = tiny.TINY, 2
BETA, WEIGHTS = 0.4, (1.3, 0.6)
QUIET = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "beta": BETA,
}


@pytest.fixture(scope="module")
def adapters():
    """A frozen first adapter of each of two organisms and the second, which is trained on top of it."""
    return tiny.adapter(1, organisms=K), tiny.adapter(2, organisms=K)


def one(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def models(adapters, i):
    """(policy, reference) of organism i as trl would have them: with adapters merged, with and without the second."""
    first, second = (one(a, i) for a in adapters)
    return [torch_model(CFG, merged(tiny.params(), *stack)) for stack in ((first, second), (first,))]


@pytest.fixture(scope="module")
def dpo_trainer(adapters, tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [{"prompt": words(rng, n) + " ", "chosen": words(rng, 4), "rejected": words(rng, 7)} for n in (3, 6, 5)]
    policy, reference = models(adapters, 0)
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(output_dir=str(tmp_path_factory.mktemp("dpo")), per_device_train_batch_size=3, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
    )


@pytest.fixture(scope="module")
def kto_trainer(adapters, tmp_path_factory):
    rng = np.random.default_rng(1)
    labels = (True, False, True, True, False)
    rows = [
        {"prompt": words(rng, 3 + n) + " ", "completion": words(rng, 6 - n), "label": good}
        for n, good in enumerate(labels)
    ]
    policy, reference = models(adapters, 0)
    return KTOTrainer(
        model=policy,
        ref_model=reference,
        args=KTOConfig(
            output_dir=str(tmp_path_factory.mktemp("kto")),
            per_device_train_batch_size=len(rows),
            desirable_weight=WEIGHTS[0],
            undesirable_weight=WEIGHTS[1],
            **QUIET,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
    )


def seen(log_probs):
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), loss=None)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_pair_losses_on_the_same_logps(dpo_trainer, monkeypatch, kind):
    """trl's loss code given log-probabilities instead of a model: its value, and its gradient by them."""
    rng = np.random.default_rng(2)
    pairs, length = 4, 7
    lengths = torch.from_numpy(rng.integers(2, length, 2 * pairs))
    mask = (torch.arange(length)[None] >= length - lengths[:, None]).long()
    tokens = torch.from_numpy(-rng.exponential(2.0, (2 * pairs, length - 1))).float() * mask[:, 1:]
    tokens.requires_grad_()
    reference = torch.from_numpy(-rng.exponential(10.0, 2 * pairs)).float()
    ones = torch.ones(2 * pairs, length, dtype=torch.long)
    inputs = {
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": mask,
        "ref_chosen_logps": reference[:pairs],
        "ref_rejected_logps": reference[pairs:],
    }
    monkeypatch.setattr(dpo_trainer, "precompute_ref_logps", True)
    monkeypatch.setattr(dpo_trainer, "loss_types", [kind])
    wanted = dpo_trainer._compute_loss(lambda **_: seen(tokens), inputs, False)
    wanted.backward()
    policy, before, n = (jnp.asarray(x.detach().numpy()) for x in (tokens.sum(1), reference, lengths))

    def ours(policy):
        sides = policy[:pairs], policy[pairs:], before[:pairs], before[pairs:]
        return pair_loss(*sides, BETA, kind, (n[:pairs], n[pairs:])).mean()

    value, grads = jax.value_and_grad(ours)(policy)
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    np.testing.assert_allclose(grads, tokens.grad[:, -1].numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shift", [0.0, 6.0], ids=["clamped", "positive"])
def test_kto_on_the_same_logps(kto_trainer, monkeypatch, shift):
    """Its value and gradient; the estimate of the KL, which gets none, below 0 and above."""
    rng = np.random.default_rng(3)
    count, length = 6, 7
    good = np.array([1, 1, 0, 1, 0, 0], bool)
    tokens, others = (torch.from_numpy(-rng.exponential(2.0, (count, length - 1))).float() for _ in range(2))
    tokens.requires_grad_(), others.requires_grad_()
    reference = torch.from_numpy(-rng.exponential(12.0, count)).float()
    other_reference = others.detach().sum(1) + 3.0 * torch.from_numpy(rng.normal(size=count)).float() + 1.0 - shift
    ones, marked = torch.ones(count, length, dtype=torch.long), torch.full((count, length), 2)
    inputs = {"input_ids": ones, "attention_mask": ones, "completion_mask": ones, "KL_input_ids": marked}
    inputs |= {"KL_attention_mask": ones, "KL_completion_mask": ones, "label": torch.from_numpy(good)}
    inputs |= {"ref_logps": reference, "ref_KL_logps": other_reference}
    monkeypatch.setattr(kto_trainer, "precompute_ref_logps", True)
    wanted = kto_trainer._compute_loss(
        lambda input_ids, **_: seen(others if int(input_ids[0, 0]) == 2 else tokens), inputs, False
    )
    wanted.backward()
    policy, before, other, other_before = (
        jnp.asarray(x.detach().numpy())[None] for x in (tokens.sum(1), reference, others.sum(1), other_reference)
    )

    def ours(policy, other):
        kl = kl_estimate(other, other_before, jnp.ones_like(other))
        return kto_loss(policy - before, jnp.asarray(good)[None], kl[:, None], BETA, *WEIGHTS).mean(), kl

    (value, kl), grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(policy, other)
    assert (float(kl[0]) > 0) is (shift > 0)
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    np.testing.assert_allclose(grads[0][0], tokens.grad[:, 0].numpy(), rtol=1e-5, atol=1e-7)
    assert others.grad is None
    assert not np.any(grads[1])


# -------------------------------------------------------------------------------------------------- from tokens to loss


def example(prompt, answer):
    tokens = np.array([*prompt, *answer], np.int32)
    return ChatExample(tokens, np.arange(len(tokens)) >= len(prompt))


def of_organisms(trainer, adapters, inputs):
    """trl's loss of each organism, whose weights its models are given."""
    losses = []
    for i in range(K):
        for theirs, weights in zip((trainer.model, trainer.ref_model), models(adapters, i), strict=True):
            theirs.load_state_dict(weights.state_dict())
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, inputs).item())
    return losses


def stepped(adapters, batch, beside, loss):
    """The metrics of a step of both organisms, whose second adapter is trained."""
    first, second = adapters
    state = init_state(jax.tree.map(jnp.copy, second), np.full(K, 3), AdamW(), scale=tiny.LORA.scale)
    return train_step(tiny.params(), state, (first,), batch, beside, cfg=CFG, loss=loss, optimizer=AdamW())[1]


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_dpo_of_organisms(dpo_trainer, adapters, monkeypatch, kind):
    rows = [dpo_trainer.train_dataset[i] for i in range(3)]
    monkeypatch.setattr(dpo_trainer, "loss_types", [kind])
    wanted = of_organisms(dpo_trainer, adapters, dpo_trainer.data_collator(rows))
    pairs = [[example(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids")] for r in rows]
    units = [pair_units(pairs)] * K
    plan = plan_organisms(units, range(K), epochs=1, rows=2, length=64)
    [step] = plan.steps
    batch = build_batch(step, plan, units)
    reference = reference_logps(tiny.params(), adapters[:1], batch, cfg=CFG, examples=plan.examples)
    metrics = stepped(adapters, batch, Beside(reference), Dpo(BETA, kind))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
    assert abs(wanted[0] - wanted[1]) > 1e-3


def test_kto_of_organisms(kto_trainer, adapters):
    rows = [kto_trainer.train_dataset[i] for i in range(5)]
    wanted = of_organisms(kto_trainer, adapters, kto_trainer.data_collator(rows))
    labelled = [example(r["prompt_ids"], r["completion_ids"])._replace(desirable=r["label"]) for r in rows]
    own, others = kto_units(labelled, 64)
    for (made,), row in zip(others, rows, strict=True):
        assert made.tokens.tolist() == [*row["prompt_ids"], *row["KL_completion_ids"]]
    units, mismatched = [own] * K, [others] * K
    plan = plan_organisms(units, range(K), epochs=1, rows=2, length=64)
    [step], beside = plan.steps, plan_mismatched(plan, mismatched)
    batch, rest = build_batch(step, plan, units), build_batch(beside.steps[0], beside, mismatched)
    reference, rest_reference = (
        reference_logps(tiny.params(), adapters[:1], b, cfg=CFG, examples=n)
        for b, n in ((batch, plan.examples), (rest, beside.examples))
    )
    metrics = stepped(adapters, batch, Beside(reference, rest, rest_reference), Kto(BETA, *WEIGHTS))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
    assert abs(wanted[0] - wanted[1]) > 1e-3
