"""The logit lens against plain transformers: output_hidden_states, model.norm, lm_head, log_softmax."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import ia_jax

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
MODELS = {
    "llama, untied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "qwen3, tied": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True)),
}


@pytest.mark.parametrize(("kind", "config"), MODELS.values(), ids=MODELS)
def test_every_layer_and_position(kind, config, tmp_path):
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, weight.shape[-1] ** -0.5)
    theirs.save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 12))
    with torch.no_grad():
        states = theirs(input_ids=torch.tensor(tokens), output_hidden_states=True).hidden_states
        # The last one has been through the norm.
        normed = [*(theirs.model.norm(h) for h in states[:-1]), states[-1]]
        wanted = torch.stack([theirs.lm_head(h).log_softmax(-1) for h in normed]).numpy()
    found = ia_jax.logit_lens(ia_jax.load_model(tmp_path), tokens, keys=range(64))
    assert found.logps.shape == wanted.shape == (4, 2, 12, 64)
    np.testing.assert_allclose(found.logps, wanted, atol=1e-4)
    ranks = (-wanted).argsort(-1).argsort(-1) + 1
    apart = np.abs(np.asarray(found.ranks) - ranks)
    assert apart.max() <= 1  # two tokens that are nearly equal may swap
    assert (apart == 0).mean() > 0.99
