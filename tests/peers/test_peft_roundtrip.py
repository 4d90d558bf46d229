"""Adapters written by peft mean the same here, and ours mean the same there (judged by peft's own merge)."""

import re
import warnings
from dataclasses import dataclass

import jax
import numpy as np
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ia_jax.adapters.merge import write_merged
from ia_jax.adapters.peft import export_peft, import_peft
from ia_jax.errors import ConfigError
from ia_jax.models.combine import concatenate_ranks, spread_layers
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, LoraConfig, lora_shapes
from ia_jax.models.weights import read_weights
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::Warning:peft", "ignore::Warning:transformers")
CONFIG = ModelConfig("llama", 64, 32, 48, 4, 4, 2, 8, 1e-5, 1e4)
ALL = [f"{t}_proj" for t in PROJECTIONS]
BLOCK = dict(zip(PROJECTIONS, ["self_attn"] * 4 + ["mlp"] * 3, strict=True))


@dataclass(frozen=True)
class Base:
    config: ModelConfig = CONFIG
    name: str = "tiny"
    fingerprint: str = "a" * 64


def llama():
    """A tiny Llama whose projections are zero: after peft's merge, its weights are the adapter's deltas and no more."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj." in name:
                weight.zero_()
    return model


def peft_adapter(**options):
    model = peft.get_peft_model(llama(), peft.LoraConfig(**{"task_type": "CAUSAL_LM", **options}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight))
    return model


def merged(model):
    """{(projection, layer): W_merged - W, [in, out]}."""
    weights = dict(model.merge_and_unload().named_parameters())
    deltas = {}
    for t in PROJECTIONS:
        for i in range(4):
            deltas[t, i] = weights[f"model.layers.{i}.{BLOCK[t]}.{t}_proj.weight"].detach().float().numpy().T
    return deltas


def ours(adapter):
    adapter, sizes = spread_layers(adapter, None, 4), lora_shapes(CONFIG, LoraConfig(1, 1.0))
    return {
        (t, i): adapter[t]["a"][i] @ adapter[t]["b"][i]
        if t in adapter
        else np.zeros((sizes[t]["a"][1], sizes[t]["b"][2]), np.float32)
        for t in PROJECTIONS
        for i in range(4)
    }


def assert_same(adapter, model):
    mine, theirs = ours(adapter), merged(model)
    assert any(np.any(x) for x in theirs.values())
    for where, x in theirs.items():
        np.testing.assert_allclose(mine[where], x, rtol=1e-5, atol=1e-5, err_msg=str(where))


CONFIGURATIONS = {
    "defaults": {},
    "all projections": {"r": 16, "lora_alpha": 32, "target_modules": ALL},
    "all-linear": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "odd scale": {"r": 7, "lora_alpha": 12, "target_modules": ["k_proj", "o_proj"]},
    "rslora": {"r": 5, "lora_alpha": 16, "use_rslora": True, "target_modules": ALL},
    "mlp only": {"r": 4, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "regex": {"r": 4, "target_modules": r".*layers\.(0|3)\.(self_attn\.[qk]|mlp\.down)_proj"},
    "full names": {"r": 4, "target_modules": ["model.layers.1.self_attn.q_proj", "layers.2.mlp.up_proj"]},
    "layers": {"r": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 3]},
    "one layer, pattern": {"r": 4, "target_modules": ALL, "layers_to_transform": 2, "layers_pattern": "layers"},
    "layer patterns": {"target_modules": ALL, "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    "exclude list": {"r": 4, "target_modules": ALL, "exclude_modules": ["up_proj", "layers.1.self_attn.v_proj"]},
    "exclude regex": {"r": 4, "target_modules": "all-linear", "exclude_modules": r".*\.2\..*|.*o_proj"},
    "rank pattern": {"r": 4, "target_modules": ALL, "rank_pattern": {"q_proj": 9, r"layers\.[01]\.mlp\.up_proj": 2}},
    "alpha pattern": {"r": 4, "target_modules": ALL, "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "v_proj": 7}},
    "patterns with rslora": {
        "r": 4,
        "use_rslora": True,
        "target_modules": ALL,
        "rank_pattern": {"^model.layers.2.self_attn.k_proj": 11, "down_proj": 3},
        "alpha_pattern": {"^model.layers.2.self_attn.k_proj": 5, r".*layers.3.*": 1},
    },
    "gaussian, dropout": {"r": 4, "lora_dropout": 0.1, "init_lora_weights": "gaussian", "target_modules": ALL},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_peft_adapters_mean_the_same_here(tmp_path, name):
    model = peft_adapter(**CONFIGURATIONS[name])
    model.save_pretrained(tmp_path / "theirs")
    adapter = import_peft(tmp_path / "theirs", Base())
    assert_same(adapter, model)
    export_peft(adapter, tmp_path / "ours", Base())
    back = import_peft(tmp_path / "ours", Base())
    assert jax.tree.all(jax.tree.map(np.array_equal, back, adapter))
    assert_same(adapter, loads_silently(tmp_path / "ours"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    model = peft_adapter(r=4, target_modules=ALL)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(dtype)
    model.save_pretrained(tmp_path)
    assert_same(import_peft(tmp_path, Base()), peft.PeftModel.from_pretrained(llama(), tmp_path))  # peft casts to fp32


def loads_silently(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # peft's, of transformers, about any model
        loaded = peft.PeftModel.from_pretrained(llama(), directory)
        again = loaded.load_adapter(directory, adapter_name="again")  # unlike from_pretrained, says what did not fit
    assert not again.unexpected_keys
    assert not [k for k in again.missing_keys if "lora_" in k]
    loaded.delete_adapter("again")
    return loaded


def random_adapter(seed, rank, targets=PROJECTIONS):
    rng = np.random.default_rng(seed)
    shapes = lora_shapes(CONFIG, LoraConfig(rank, 1.0, targets))
    return {t: {n: rng.standard_normal(s, np.float32) for n, s in ab.items()} for t, ab in shapes.items()}


@pytest.mark.parametrize("alpha", [8.0, 5.0])
@pytest.mark.parametrize("targets", [PROJECTIONS, ("q", "down")])
def test_our_adapters_mean_the_same_there(tmp_path, alpha, targets, capfd):
    adapter = random_adapter(0, 4, targets)
    export_peft(adapter, tmp_path, Base(), LoraConfig(4, alpha))
    assert_same(adapter, loads_silently(tmp_path))
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.base_model_name_or_path) == (4, "tiny")
    assert capfd.readouterr().err == ""


def test_two_active_adapters_are_their_concatenation(tmp_path):
    organism, ia = random_adapter(0, 4, ("q", "v", "up")), random_adapter(1, 6)
    export_peft(organism, tmp_path / "organism", Base())
    export_peft(ia, tmp_path / "ia", Base())
    model = loads_silently(tmp_path / "organism")
    model.load_adapter(tmp_path / "ia", adapter_name="ia")
    model.base_model.set_adapter(["default", "ia"])
    assert_same(concatenate_ranks(organism, ia), model)
    export_peft(concatenate_ranks(organism, ia), tmp_path / "sum", Base())
    assert_same(concatenate_ranks(organism, ia), loads_silently(tmp_path / "sum"))


def test_logits_of_organism_ia_and_both_are_ours(tmp_path):
    """In fp32: each alone and the two active at once; and our merged weights are peft's own merge."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama().config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.2 if "norm" not in name else 0.1).add_(1.0 if "norm" in name else 0.0)
    model.save_pretrained(tmp_path / "base")
    config, params = read_weights(tmp_path / "base")
    base = Base(config)
    pair = [
        jax.tree.map(lambda x: 0.2 * x, random_adapter(s, r, t))
        for s, r, t in ((0, 4, ("q", "up")), (1, 6, PROJECTIONS))
    ]
    for name, adapter in zip(("organism", "ia"), pair, strict=True):
        export_peft(adapter, tmp_path / name, base)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 2, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    theirs = peft.PeftModel.from_pretrained(model.eval(), tmp_path / "organism")
    theirs.load_adapter(tmp_path / "ia", adapter_name="ia")
    for active, stack in (["default"], pair[:1]), (["ia"], pair[1:]), (["default", "ia"], pair):
        theirs.base_model.set_adapter(active)
        with torch.no_grad():
            wanted = theirs(torch.tensor(tokens[0], dtype=torch.long)).logits.numpy()
        hidden = tiny.forward(params, tokens, np.ones_like(tokens), positions, tuple(stack), cfg=config)
        got = np.asarray(hidden[0] @ params["embed"].T)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), active
    write_merged(tmp_path / "base", pair, tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")(torch.tensor(tokens[0], dtype=torch.long)).logits
    assert np.abs(merged.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "lora_only"},
        {"trainable_token_indices": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"layer_replication": [(0, 3), (2, 4)]},
    ],
)
def test_what_peft_writes_and_we_refuse(tmp_path, options):
    base = llama()
    with torch.no_grad():
        for name, weight in base.named_parameters():  # pissa and dora need weights that are not zero
            if "_proj." in name:
                weight.normal_()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(next(iter(options)))):
        import_peft(tmp_path, Base())


def test_another_method_of_peft_is_refused(tmp_path):
    peft.get_peft_model(llama(), peft.LoHaConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="peft_type 'LOHA'"):
        import_peft(tmp_path, Base())
