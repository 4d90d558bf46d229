"""Stacks of adapters on some of the layers, dropout and vectors against torch: peft with its masks given, and hooks."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from ia_jax.adapters.peft import export_peft, import_peft
from ia_jax.models.combine import concatenate_ranks
from ia_jax.models.config import ModelConfig
from ia_jax.models.dropout import Dropout, fold, for_pass, keep_mask, of_group
from ia_jax.models.lora import PROJECTIONS, RESIDUAL, LoraConfig, layers_of
from ia_jax.models.transformer import forward, logits_from_hidden
from tests import tiny
from tests.peers.torch_model import torch_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::Warning:transformers")
CFG = replace(tiny.TINY, num_hidden_layers=4)
BLOCK = dict(zip(PROJECTIONS, ["self_attn"] * 4 + ["mlp"] * 3, strict=True))
K, B, T = 2, 2, 11
FIRST = LoraConfig(4, 12.0, layers=(0, 1, 2))
SECOND = LoraConfig(3, 1.5, ("q", "v", "down"), layers=(1, 3))
IA = LoraConfig(2, 4.0, ("o", "gate", "up"), layers=(2, 3))


@dataclass(frozen=True)
class Base:
    config: ModelConfig = CFG
    name: str = "tiny"
    fingerprint: str = "a" * 64


@pytest.fixture(scope="module")
def params():
    return tiny.params(CFG)


@pytest.fixture(scope="module")
def rows():
    return tiny.rows(K, B, T)


@pytest.fixture(scope="module")
def stack():
    first, second = (tiny.adapter(n, CFG, lora, organisms=K, size=0.5) for n, lora in enumerate((FIRST, SECOND)))
    return first, second, tiny.adapter(2, CFG, IA, size=0.5)


def organism(member, i):
    return jax.tree.map(lambda x: x[i], member)


def with_adapters(params, **adapters):
    """A peft model with named adapters, all active and added up: name=(LoraConfig, our tree without organism axis)."""
    model = torch_model(CFG, params)
    for number, (name, (lora, _)) in enumerate(adapters.items()):
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=[f"{t}_proj" for t in lora.targets],
            layers_to_transform=None if lora.layers is None else list(lora.layers),
            task_type="CAUSAL_LM",
        )
        model = model.add_adapter(name, config) or model if number else peft.get_peft_model(model, config, name)
    with torch.no_grad():
        for name, (lora, tree) in adapters.items():
            for t, row, a, b in leaves(model, name, lora):
                a.copy_(torch.from_numpy(np.array(tree[t]["a"][row].T)))
                b.copy_(torch.from_numpy(np.array(tree[t]["b"][row].T / lora.scale)))
    model.base_model.set_adapter(list(adapters))
    return model


def leaves(model, name, lora):
    """(projection, row of the layer, lora_A.weight, lora_B.weight) of one adapter; there are no others."""
    named = {n: w for n, w in model.named_parameters() if f".{name}." in n}
    for t in lora.targets:
        for row, layer in enumerate(lora.layers or range(CFG.num_hidden_layers)):
            stem = f"base_model.model.model.layers.{layer}.{BLOCK[t]}.{t}_proj.lora_"
            yield t, row, named.pop(f"{stem}A.{name}.weight"), named.pop(f"{stem}B.{name}.weight")
    assert not named


def torch_logits(model, rows, i):
    return model(input_ids=torch.from_numpy(rows[0][i].astype(np.int64))).logits


def ours(params, stack, rows, dropout=None):
    hidden = forward(params, *rows, stack, CFG, dropout=dropout)
    return logits_from_hidden(params, hidden)


def close(got, wanted, tolerance=1e-5):
    got, wanted = np.asarray(got), wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else np.asarray(wanted)
    assert np.abs(got - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


def test_second_on_first_under_an_ia(params, rows, stack):
    """Two frozen adapters of each organism and an IA, on layers of their own: peft has all three active."""
    logits = jax.jit(ours)(params, stack, rows)
    pair = concatenate_ranks(*stack[:2])
    assert layers_of(pair) == (0, 1, 2, 3)
    close(jax.jit(ours)(params, (pair, stack[2]), rows), logits)
    close(jax.jit(ours)(params, stack[:2], rows), jax.jit(ours)(params, (pair,), rows))
    for i in range(K):
        own = [organism(member, i) for member in stack[:2]]
        model = with_adapters(params, first=(FIRST, own[0]), second=(SECOND, own[1]), ia=(IA, stack[2]))
        close(logits[i], torch_logits(model, rows, i))
        both = with_adapters(params, first=(FIRST, own[0]), second=(SECOND, own[1]))
        close(jax.jit(ours)(params, (pair,), rows)[i], torch_logits(both, rows, i))


@pytest.mark.parametrize("lora", [FIRST, SECOND, IA, replace(IA, layers=(1,))], ids=["0-2", "1,3", "2-3", "1"])
def test_layers_to_transform_both_ways(tmp_path, params, rows, lora):
    tree = tiny.adapter(5, CFG, lora, size=0.5)
    logits = jax.jit(ours)(params, (tree,), rows)
    export_peft(tree, tmp_path / "ours", Base(), lora)
    loaded = peft.PeftModel.from_pretrained(torch_model(CFG, params), tmp_path / "ours")
    close(logits[0], torch_logits(loaded, rows, 0))
    assert loaded.peft_config["default"].layers_to_transform == list(lora.layers)
    theirs = with_adapters(params, default=(lora, tree))
    theirs.save_pretrained(tmp_path / "theirs")
    back = import_peft(tmp_path / "theirs", Base())
    assert layers_of(back) == lora.layers
    close(jax.jit(ours)(params, (back,), rows), logits)


class Given(torch.nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, keep, rate):
        super().__init__()
        self.keep, self.rate = torch.from_numpy(np.array(keep)), rate

    def forward(self, x):
        return x * self.keep / (1 - self.rate)


GROUP = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}


@pytest.mark.parametrize("member", ["organisms", "ia"])
def test_dropout_with_its_masks_given(params, rows, member):
    """Logits and gradients of the member that is dropped, whose masks peft's modules get."""
    rate, keys = 0.3, jax.random.split(jax.random.key(7), K)
    lora = LoraConfig(4, 12.0, layers=(1, 2, 3))
    organisms, ia = tiny.adapter(1, CFG, FIRST, organisms=K), tiny.adapter(2, CFG, lora)
    if member == "organisms":
        lora, frozen, trained = FIRST, (), organisms
    else:
        frozen, trained = (organisms,), ia
    weight = np.random.default_rng(0).normal(size=(K, B, T, CFG.vocab_size)).astype(np.float32) / T

    def loss(trained):
        logits = ours(params, (*frozen, trained), rows, Dropout(rate, keys))
        return (jax.nn.log_softmax(logits) * weight).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    whole = for_pass(Dropout(rate, keys), (K, B, T), 1)
    total = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, trained))
    for i in range(K):
        own = {"trained": (lora, organism(trained, i) if member == "organisms" else trained)}
        if frozen:
            own = {"frozen": (FIRST, organism(organisms, i)), **own}
        model = with_adapters(params, **own)
        for name, module in model.named_modules():
            if hasattr(module, "lora_dropout") and "trained" in module.lora_A:
                layer, t = int(name.split(".")[4]), name.split(".")[-1].removesuffix("_proj")
                keep = keep_mask(of_group(fold(whole, layer), GROUP[t]), T, module.in_features)
                module.lora_dropout["trained"] = Given(keep[i], rate)
        theirs = torch_logits(model, rows, i)
        close(logits[i], theirs)
        for weight_name, parameter in model.named_parameters():
            parameter.requires_grad_(".trained." in weight_name)
        (torch.log_softmax(torch_logits(model, rows, i), -1) * torch.from_numpy(weight[i])).sum().backward()
        for t, row, a, b in leaves(model, "trained", lora):
            for factor, grad in (("a", a.grad.numpy().T), ("b", b.grad.numpy().T / lora.scale)):
                into = total[t][factor]
                (into[i] if member == "organisms" else into)[row] += grad
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(total), strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-4 * np.linalg.norm(wanted)
    assert not np.allclose(logits, jax.jit(ours)(params, (*frozen, trained), rows), atol=1e-2)


@pytest.mark.parametrize("layers", [(2,), (0, 3), None])
def test_vectors_are_transformers_hooks(tmp_path, params, rows, layers):
    """Logits and gradients against a forward hook on each decoder layer, and on each down projection."""
    one = tiny.adapter(3, CFG, LoraConfig(0, 0.0, (RESIDUAL,), layers=layers), size=2.0)
    organisms = tiny.adapter(1, CFG, FIRST, organisms=K)
    weight = np.random.default_rng(0).normal(size=(K, B, T, CFG.vocab_size)).astype(np.float32) / T

    def loss(one):
        logits = ours(params, (organisms, one), rows)
        return (jax.nn.log_softmax(logits) * weight).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(one)
    assert not np.allclose(logits, jax.jit(ours)(params, (organisms,), rows), atol=1e-2)
    for where in ("layer", "down"):
        v = torch.from_numpy(np.array(one[RESIDUAL]["v"])).requires_grad_()
        for i in range(K):
            model = with_adapters(params, organism=(FIRST, organism(organisms, i)))
            decoder = model.base_model.model.model.layers
            for row, layer in enumerate(layers or range(CFG.num_hidden_layers)):
                module = decoder[layer] if where == "layer" else decoder[layer].mlp.down_proj
                module.register_forward_hook(
                    lambda _, __, out, v=v[row]: (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v
                )
            theirs = torch_logits(model, rows, i)
            close(logits[i], theirs)
            (torch.log_softmax(theirs, -1) * torch.from_numpy(weight[i])).sum().backward()
        error = np.linalg.norm(grads[RESIDUAL]["v"] - v.grad.numpy()) / np.linalg.norm(v.grad.numpy())
        assert error <= 1e-4, error


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("beside", [None, LoraConfig(4, 5.0, ("q", "down"), layers=(1, 2))], ids=["alone", "summed"])
def test_peft_loads_a_vector(tmp_path, params, rows, beside):
    """As a bias of lora_B on down_proj: the same logits, and what peft saves again comes back."""
    one = tiny.adapter(3, CFG, LoraConfig(0, 0.0, (RESIDUAL,), layers=(0, 2)), size=2.0)
    if beside is not None:
        one = concatenate_ranks(one, tiny.adapter(4, CFG, beside, size=0.5))
    logits = jax.jit(ours)(params, (one,), rows)
    export_peft(one, tmp_path / "ours", Base())
    model = peft.PeftModel.from_pretrained(torch_model(CFG, params), tmp_path / "ours")
    for i in range(K):
        close(logits[i], torch_logits(model, rows, i))
    # Under an organism, with both active.
    other = tiny.adapter(1, CFG, FIRST)
    export_peft(other, tmp_path / "organism", Base(), FIRST)
    model.load_adapter(tmp_path / "organism", adapter_name="organism")
    model.base_model.set_adapter(["default", "organism"])
    close(jax.jit(ours)(params, (other, one), rows)[0], torch_logits(model, rows, 0))
    model.save_pretrained(tmp_path / "theirs", selected_adapters=["default"])
    back = import_peft(tmp_path / "theirs", Base())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), dict(back), dict(one)))
