"""The same model in torch, from our own weights: what the comparisons are made with."""

import jax.numpy as jnp
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ia_jax.models.config import ModelConfig
from ia_jax.models.transformer import Params
from ia_jax.models.weights import to_hf_tensors


def torch_model(cfg: ModelConfig, params: Params) -> PreTrainedModel:
    """transformers' model of the family (tied embeddings) with these weights; every one of them must find its place."""
    config = AutoConfig.for_model(
        cfg.family,
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads,
        num_key_value_heads=cfg.num_key_value_heads,
        head_dim=cfg.head_dim,
        rms_norm_eps=cfg.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = {n: torch.from_numpy(np.array(v)) for n, v in to_hf_tensors(cfg, params)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"}, [])
    return model


def merged(params: Params, *adapters: dict) -> Params:
    """The base with adapters added to its weights."""
    layers = dict(params["layers"])
    for adapter in adapters:
        for t, ab in adapter.items():
            layers[t] = layers[t] + jnp.einsum("ldr,lrf->ldf", ab["a"], ab["b"])
    return params | {"layers": layers}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """w0 … w63, a token each; w1 ends a text: trl appends it to answers, which need a blank before it."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0", unk_token="w0")


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(2, 64, count))
