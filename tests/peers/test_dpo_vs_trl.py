"""Our DPO loss against trl's: its formula on given log-probabilities, and its whole loss on a model."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from ia_jax.data.batch import Beside, build_batch
from ia_jax.data.plans import plan_joint
from ia_jax.models.chat import ChatExample
from ia_jax.training.losses import Dpo, pair_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny
from tests.peers.torch_model import merged, torch_model, word_tokenizer, words

BETA = 0.3
CFG = tiny.TINY


@pytest.fixture(scope="module")
def adapters():
    """One organism (with its axis), the IA that is trained and the IA of the reference."""
    return tiny.adapter(1, organisms=1), tiny.adapter(2), tiny.adapter(3)


@pytest.fixture(scope="module")
def trainer(adapters, tmp_path_factory):
    """trl's trainer on merged weights: policy = base + organism + IA, reference = base + organism + reference IA."""
    organism, ia, reference_ia = adapters
    alone = jax.tree.map(lambda x: x[0], organism)
    rng = np.random.default_rng(0)
    rows = [{"prompt": words(rng, n) + " ", "chosen": words(rng, 4), "rejected": words(rng, 7)} for n in (3, 6, 5)]
    args = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        beta=BETA,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=3,
    )
    return DPOTrainer(
        model=torch_model(CFG, merged(tiny.params(), alone, ia)),
        ref_model=torch_model(CFG, merged(tiny.params(), alone, reference_ia)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
    )


def test_the_loss_on_the_same_logps(trainer):
    """trl's loss code, given log-probabilities instead of a model."""
    rng = np.random.default_rng(1)
    pairs, length = 4, 6
    tokens = torch.from_numpy(-rng.exponential(2.0, (2 * pairs, length - 1))).float()
    reference = torch.from_numpy(-rng.exponential(10.0, 2 * pairs)).float()
    zeros = torch.zeros_like(tokens)

    def model(**_):
        return SimpleNamespace(log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), loss=None)

    inputs = {
        "input_ids": torch.ones(2 * pairs, length, dtype=torch.long),
        "attention_mask": torch.ones(2 * pairs, length, dtype=torch.long),
        "completion_mask": torch.ones(2 * pairs, length, dtype=torch.long),
        "ref_chosen_logps": reference[:pairs],
        "ref_rejected_logps": reference[pairs:],
    }
    before, trainer.precompute_ref_logps = trainer.precompute_ref_logps, True
    try:
        wanted = trainer._compute_loss(model, inputs, False).item()
    finally:
        trainer.precompute_ref_logps = before
    policy = jnp.asarray(tokens.sum(1).numpy())
    got = pair_loss(
        policy[:pairs], policy[pairs:], jnp.asarray(reference[:pairs]), jnp.asarray(reference[pairs:]), BETA
    )
    assert float(got.mean()) == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - np.log(2)) > 0.05


def test_the_loss_on_a_model(trainer, adapters):
    """Tokens to loss: trl's batch on merged weights against train_step on the stack."""
    rows = [trainer.train_dataset[i] for i in range(3)]
    with torch.no_grad():
        wanted = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()

    def example(prompt, answer):
        tokens = np.array([*prompt, *answer], np.int32)
        return ChatExample(tokens, np.arange(len(tokens)) >= len(prompt))

    units = [[tuple(example(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids")) for r in rows]]
    plan = plan_joint(units, organisms_per_step=1, per_slot=3, seed=0, length=96)
    batch = build_batch(plan.steps[0], plan, units)
    assert batch.target_weight.sum() == sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    organism, ia, reference_ia = adapters
    params, optimizer = tiny.params(), AdamW()
    reference = reference_logps(params, (organism, reference_ia), batch, cfg=CFG, examples=plan.examples)
    _, metrics = train_step(
        params,
        init_state(jax.tree.map(jnp.copy, ia), 3, optimizer, scale=tiny.LORA.scale),
        (organism,),
        batch,
        Beside(reference),
        cfg=CFG,
        loss=Dpo(BETA),
        optimizer=optimizer,
    )
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-4)
    assert abs(wanted - np.log(2)) > 0.01
