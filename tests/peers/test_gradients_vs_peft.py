"""LoRA losses, gradients and whole training steps against torch + peft, from the same weights and tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from ia_jax.models.lora import PROJECTIONS, LoraConfig
from ia_jax.models.transformer import forward
from ia_jax.training.logps import supervised_logps
from ia_jax.training.losses import Sft, sft_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.peers.torch_model import torch_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
CFG = replace(tiny.TINY, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
QWEN2 = replace(CFG, family="qwen2", qkv_bias=True)
ORGANISM, IA = LoraConfig(rank=4, alpha=12.0), LoraConfig(rank=3, alpha=1.5)  # alpha is not the rank
K = 2
BLOCK = dict(zip(PROJECTIONS, ["self_attn"] * 4 + ["mlp"] * 3, strict=True))


@pytest.fixture(scope="module")
def params():
    return tiny.params(CFG)


@pytest.fixture(scope="module")
def organisms():
    return tiny.adapter(1, CFG, ORGANISM, organisms=K)


@pytest.fixture(scope="module")
def ia():
    return tiny.adapter(2, CFG, IA)


@pytest.fixture(scope="module")
def batch():
    [first, *_] = tiny.batches(K, count=6, rows=2, length=24)
    return first


def with_adapters(params, cfg=CFG, **adapters):
    """A peft model with named adapters, all active and added up: name=(LoraConfig, our tree without organism axis)."""
    model = None
    for name, (lora, tree) in adapters.items():
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=[f"{t}_proj" for t in PROJECTIONS], task_type="CAUSAL_LM"
        )
        if model is None:
            model = peft.get_peft_model(torch_model(cfg, params), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        with torch.no_grad():
            for t, a, b in leaves(model, name):
                # Our b carries alpha / rank, peft's doesn't.
                a.copy_(torch.from_numpy(np.array(tree[t[0]]["a"][t[1]].T)))
                b.copy_(torch.from_numpy(np.array(tree[t[0]]["b"][t[1]].T / lora.scale)))
    model.base_model.set_adapter(list(adapters))
    return model


def leaves(model, name):
    """((projection, layer), lora_A.weight, lora_B.weight) of one adapter."""
    named = dict(model.named_parameters())
    for t in PROJECTIONS:
        for layer in range(CFG.num_hidden_layers):
            stem = f"base_model.model.model.layers.{layer}.{BLOCK[t]}.{t}_proj."
            yield (t, layer), named[f"{stem}lora_A.{name}.weight"], named[f"{stem}lora_B.{name}.weight"]


def torch_loss(model, batch, i):
    """Mean over organism i's supervised tokens, example by example, without packing."""
    total = count = 0
    for row in range(batch.tokens.shape[1]):
        for segment in range(1, batch.segment_ids[i, row].max() + 1):
            where = np.flatnonzero(batch.segment_ids[i, row] == segment)
            index, offset = batch.target_index[i, row], where[0]
            on = (batch.target_weight[i, row] > 0) & np.isin(index, where)
            logits = model(input_ids=torch.from_numpy(batch.tokens[i, row, where][None].astype(np.int64))).logits[0]
            logps = torch.log_softmax(logits, -1)
            picked = logps[index[on] - offset, batch.target_token[i, row][on].astype(np.int64)]
            total, count = total - picked.sum(), count + on.sum()
    assert count == batch.target_weight[i].sum() > 3
    return total / float(count)


def torch_gradients(model, name, lora):
    """Gradients as a tree like ours: with b = s B, dL/db = (dL/dB) / s."""
    out = {t: {"a": [], "b": []} for t in PROJECTIONS}
    for (t, _), a, b in leaves(model, name):
        out[t]["a"].append(a.grad.numpy().T)
        out[t]["b"].append(b.grad.numpy().T / lora.scale)
    return {t: {n: np.stack(x) for n, x in ab.items()} for t, ab in out.items()}


def relative_error(got, wanted):
    """|got - wanted| / |wanted| of the whole gradient, and the worst leaf's."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    ]
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


def our_losses(params, stack, batch, cfg=CFG):
    hidden = forward(params, batch.tokens, batch.segment_ids, batch.positions, stack, cfg)
    return sft_loss(supervised_logps(params, hidden, batch), batch.target_weight)


def test_organism_gradients(params, organisms, batch):
    losses, grads = jax.jit(
        jax.value_and_grad(lambda o: (lambda x: (x.sum(), x))(our_losses(params, (o,), batch)), has_aux=True)
    )(organisms)
    for i in range(K):
        model = with_adapters(params, organism=(ORGANISM, jax.tree.map(lambda x, i=i: x[i], organisms)))
        loss = torch_loss(model, batch, i)
        loss.backward()
        assert losses[1][i] == pytest.approx(loss.item(), rel=1e-5)
        error = relative_error(jax.tree.map(lambda x, i=i: x[i], grads), torch_gradients(model, "organism", ORGANISM))
        assert error <= 1e-4, error


def joint_gradient(params, organisms, ia, batch, cfg=CFG):
    """peft's gradient of the IA with each frozen organism active in turn, averaged; and the mean loss."""
    losses, grads = [], []
    for i in range(K):
        own = jax.tree.map(lambda x, i=i: x[i], organisms)
        model = with_adapters(params, cfg, organism=(ORGANISM, own), ia=(IA, ia))
        for name, weight in model.named_parameters():
            weight.requires_grad_(".ia." in name)
        loss = torch_loss(model, batch, i)
        loss.backward()
        assert all(w.grad is None for n, w in model.named_parameters() if ".organism." in n)
        losses.append(loss.item())
        grads.append(torch_gradients(model, "ia", IA))
    return np.mean(losses), jax.tree.map(lambda *g: np.mean(g, 0), *grads)


def test_ia_gradient_over_frozen_organisms(params, organisms, ia, batch):
    wanted_loss, wanted = joint_gradient(params, organisms, ia, batch)
    loss, grads = jax.jit(jax.value_and_grad(lambda x: our_losses(params, (organisms, x), batch).mean()))(ia)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    error = relative_error(grads, wanted)
    assert error <= 1e-4, error
    optimizer = AdamW(warmup_fraction=0.0)
    _, metrics = train_step(
        params,
        init_state(jax.tree.map(jnp.copy, ia), 5, optimizer, scale=IA.scale),
        (organisms,),
        batch,
        cfg=CFG,
        loss=Sft(),
        optimizer=optimizer,
    )
    assert metrics["loss"] == pytest.approx(wanted_loss, rel=1e-5)


def test_ia_gradient_over_biases(organisms, ia, batch):
    """Qwen2's biases are the base's: they are added once, whatever the adapters are."""
    params = tiny.params(QWEN2)
    wanted_loss, wanted = joint_gradient(params, organisms, ia, batch, QWEN2)
    loss, grads = jax.jit(jax.value_and_grad(lambda x: our_losses(params, (organisms, x), batch, QWEN2).mean()))(ia)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    error = relative_error(grads, wanted)
    assert error <= 1e-4, error


def test_second_adapter_gradients_over_a_frozen_first(params, organisms, batch):
    """Organisms taught in two phases: each one's second adapter, with its own first active in peft and frozen."""
    second = tiny.adapter(5, CFG, IA, organisms=K)
    losses, grads = jax.jit(
        jax.value_and_grad(lambda s: (lambda x: (x.sum(), x))(our_losses(params, (organisms, s), batch)), has_aux=True)
    )(second)
    for i in range(K):
        first, own = (jax.tree.map(lambda x, i=i: x[i], a) for a in (organisms, second))
        model = with_adapters(params, organism=(ORGANISM, first), ia=(IA, own))
        for name, weight in model.named_parameters():
            weight.requires_grad_(".ia." in name)
        loss = torch_loss(model, batch, i)
        loss.backward()
        assert losses[1][i] == pytest.approx(loss.item(), rel=1e-5)
        error = relative_error(jax.tree.map(lambda x, i=i: x[i], grads), torch_gradients(model, "ia", IA))
        assert error <= 1e-4, error


def test_three_updates_equal_torch_adamw_on_peft(params, organisms, batch):
    """Clip, AdamW and the meaning of lr, eps and decay: those of peft's own parametrization."""
    # A large eps, because Adam with a small one turns rounding errors of tiny gradients into whole steps.
    settings = {"lr": 3e-3, "eps": 1e-3, "weight_decay": 0.1}
    optimizer = AdamW(**settings, warmup_fraction=0.0, final_lr_fraction=1.0, b1=0.9, b2=0.95, clip_norm=0.5)
    state = tiny.placed(init_state(jax.tree.map(jnp.copy, organisms), jnp.full(K, 3), optimizer, scale=ORGANISM.scale))
    for _ in range(3):
        state, metrics = train_step(params, state, (), batch, cfg=CFG, loss=Sft(), optimizer=optimizer)
    for i in range(K):
        start = jax.tree.map(lambda x, i=i: x[i], organisms)
        model = with_adapters(params, organism=(ORGANISM, start))
        weights = [w for n, w in model.named_parameters() if "lora_" in n]
        adamw = torch.optim.AdamW(weights, betas=(0.9, 0.95), **settings)
        for _ in range(3):
            loss = torch_loss(model, batch, i)
            adamw.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(weights, 0.5) > 0.5
            adamw.step()
        assert metrics["loss"][i] == pytest.approx(loss.item(), rel=1e-4)
        for (t, layer), a, b in leaves(model, "organism"):
            for ours, theirs, before in (
                (state.member[t]["a"][i, layer], a.detach().numpy().T, start[t]["a"][layer]),
                (state.member[t]["b"][i, layer], b.detach().numpy().T * ORGANISM.scale, start[t]["b"][layer]),
            ):
                assert relative_error(np.asarray(ours) - np.asarray(before), theirs - np.asarray(before)) < 2e-3
