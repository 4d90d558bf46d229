"""Documents, full fine-tunes and the KL to the base against transformers and torch on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ia_jax.data.batch import Beside, build_batch
from ia_jax.data.plans import plan_organisms
from ia_jax.models.chat import ChatExample
from ia_jax.models.weights import to_hf_tensors
from ia_jax.parallel.mesh import TRAINING
from ia_jax.training.differences import init_differences, with_difference
from ia_jax.training.losses import Sft, sft_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import _token_logps, train_step
from tests import tiny
from tests.peers.torch_model import merged, torch_model

CFG, K = tiny.TINY, 2


@pytest.fixture(scope="module")
def documents():
    """Of each organism."""
    rng = np.random.default_rng(0)
    return [[rng.integers(1, 64, n) for n in sizes] for sizes in ((9, 14, 6, 11), (5, 17, 12))]


@pytest.fixture(scope="module")
def batch(documents):
    """All of them in two rows of each organism, several to a row."""
    units = [[(ChatExample(d.astype(np.int32), np.arange(len(d)) > 0),) for d in own] for own in documents]
    plan = plan_organisms(units, range(K), epochs=1, rows=2, length=32)
    [step] = plan.steps
    made = build_batch(step, plan, units)
    assert made.segment_ids.max() > 1
    return made


def torch_loss(model, documents):
    """Mean over all tokens of transformers' own loss, each document by itself."""
    total = 0
    for d in documents:
        tokens = torch.from_numpy(d)[None]
        total = total + model(input_ids=tokens, labels=tokens).loss * (len(d) - 1)
    return total / sum(len(d) - 1 for d in documents)


def start(member, scale, optimizer):
    return tiny.placed(init_state(jax.tree.map(jnp.copy, member), np.full(K, 3), optimizer, scale=scale))


def test_packed_documents_have_transformers_loss(documents, batch):
    adapter, optimizer = tiny.adapter(1, organisms=K), AdamW()
    state = start(adapter, tiny.LORA.scale, optimizer)
    _, metrics = train_step(tiny.params(), state, (), batch, cfg=CFG, loss=Sft(), optimizer=optimizer)
    for i in range(K):
        model = torch_model(CFG, merged(tiny.params(), jax.tree.map(lambda x, i=i: x[i], adapter)))
        assert metrics["loss"][i] == pytest.approx(torch_loss(model, documents[i]).item(), rel=1e-5)


def difference():
    """A difference that matters already."""
    rng = np.random.default_rng(3)
    zeros = init_differences(CFG, K)
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.normal(size=x.shape), jnp.float32), zeros)


def error(got, wanted):
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


def test_full_fine_tune_gradients(documents, batch):
    """Of every weight: embedding (also the output matrix), norms, projections."""

    def losses(member):
        logps = _token_logps(tiny.params(), (member,), batch, cfg=CFG, rules=TRAINING, remat="none")
        return sft_loss(logps, batch.target_weight).sum()

    member = difference()
    grads = jax.jit(jax.grad(losses))(member)
    for i in range(K):
        own = jax.tree.map(lambda x, i=i: x[i], member)
        model = torch_model(CFG, with_difference(tiny.params(), own))
        torch_loss(model, documents[i]).backward()
        wanted = {n: w.grad.numpy() for n, w in model.named_parameters()}
        got = dict(to_hf_tensors(CFG, jax.tree.map(lambda x, i=i: np.asarray(x[i]), grads)))
        assert set(got) == set(wanted)
        for name, gradient in got.items():
            assert error(gradient, wanted[name]) < 1e-4, name


def test_full_fine_tune_updates_are_torch_adamw(documents, batch):
    settings = {"lr": 3e-3, "eps": 1e-3}
    optimizer = AdamW(**settings, warmup_fraction=0.0, final_lr_fraction=1.0, b1=0.9, b2=0.95, clip_norm=0.5)
    member = difference()
    state = start(member, None, optimizer)
    for _ in range(3):
        state, metrics = train_step(tiny.params(), state, (), batch, cfg=CFG, loss=Sft(), optimizer=optimizer)
    for i in range(K):
        model = torch_model(CFG, with_difference(tiny.params(), jax.tree.map(lambda x, i=i: x[i], member)))
        weights = list(model.parameters())
        before = {n: w.detach().numpy().copy() for n, w in model.named_parameters()}
        adamw = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0, **settings)
        for _ in range(3):
            loss = torch_loss(model, documents[i])
            adamw.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(weights, 0.5) > 0.5
            adamw.step()
        assert metrics["loss"][i] == pytest.approx(loss.item(), rel=1e-4)
        own = jax.tree.map(lambda x, i=i: x[i], state.member)
        for name, ours in to_hf_tensors(CFG, with_difference(tiny.params(), own)):
            theirs = model.get_parameter(name).detach().numpy()
            assert error(np.asarray(ours) - before[name], theirs - before[name]) < 2e-3, name


def test_kl_to_the_base_on_plain_chats(documents, batch):
    """Base: the stack without what is trained, here an organism with its first adapter."""
    first, second = tiny.adapter(1, organisms=K), tiny.adapter(2, organisms=K)
    loss, optimizer = Sft(kl_weight=0.5), AdamW()
    state = start(second, tiny.LORA.scale, optimizer)
    _, metrics = train_step(
        tiny.params(), state, (first,), batch, Beside(plain=batch), cfg=CFG, loss=loss, optimizer=optimizer
    )
    for i in range(K):
        own = [jax.tree.map(lambda x, i=i: x[i], a) for a in (first, second)]
        model, base = (torch_model(CFG, merged(tiny.params(), *own[:n])) for n in (2, 1))
        total, tokens = 0.0, sum(len(d) - 1 for d in documents[i])
        with torch.no_grad():
            for d in documents[i]:
                rows = torch.from_numpy(d)[None]
                logq, logp = (m(rows).logits[0, :-1].log_softmax(-1) for m in (model, base))
                total += torch.nn.functional.kl_div(logq, logp, log_target=True, reduction="sum").item()
            mean = torch_loss(model, documents[i]).item()
        assert metrics["kl"][i] == pytest.approx(total / tokens, rel=1e-5)
        assert metrics["loss"][i] == pytest.approx(mean + 0.5 * total / tokens, rel=1e-5)
