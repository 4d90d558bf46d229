"""The same model in torch, from our own weights: what the comparisons are made with."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ia_jax.models.config import ModelConfig
from ia_jax.models.transformer import Params
from ia_jax.models.weights import to_hf_tensors


def torch_model(cfg: ModelConfig, params: Params) -> LlamaForCausalLM:
    """A transformers Llama (tied embeddings) with these weights; every one of them must find its place."""
    config = LlamaConfig(
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
    model = LlamaForCausalLM(config).eval()
    weights = {n: torch.from_numpy(np.array(v)) for n, v in to_hf_tensors(cfg, params)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == ({"lm_head.weight"}, [])
    return model
