"""Our decoders against transformers': random tiny ones as it saves them, and SmolLM2 from its GGUF."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ia_jax.data.transcripts import chat
from ia_jax.models.chat import encode_prompt, stop_ids
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.sources import embedded_checkpoint
from ia_jax.models.transformer import logits_from_hidden
from ia_jax.models.weights import load_model, read_weights
from tests import tiny

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def llama(heads, kv_heads, head_dim, tied, rope=PLAIN, bias=False):
    return LlamaForCausalLM, LlamaConfig(
        **SIZES,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        attention_bias=bias,
    )


def other(kind, config, heads, kv_heads, head_dim, tied, **more):
    return kind, config(
        **SIZES,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **({} if head_dim is None else {"head_dim": head_dim}),
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **more,
    )


qwen3 = partial(other, Qwen3ForCausalLM, Qwen3Config)
qwen2 = partial(other, Qwen2ForCausalLM, Qwen2Config)
mistral = partial(other, MistralForCausalLM, MistralConfig, sliding_window=None)


MODELS = {
    "llama, no groups, untied": llama(4, 4, 12, False),
    "llama, groups of 3": llama(6, 2, 8, True),
    "llama, one key head, wide heads": llama(8, 1, 16, True),
    # Wavelengths of 6, 20 and 63 tokens: one is left, one blended, the others stretched.
    "llama, llama3 rope, untied": llama(6, 2, 16, False, LLAMA3),
    "llama, llama3 rope, tied": llama(8, 1, 16, True, LLAMA3),
    "llama, linear rope": llama(6, 2, 8, True, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama, biases": llama(6, 2, 8, True, bias=True),
    "qwen3, groups of 3, tied": qwen3(6, 2, 16, True),
    "qwen3, groups of 8, untied": qwen3(8, 1, 8, False),
    "qwen2, groups of 3, tied": qwen2(6, 2, None, True),
    "qwen2, groups of 2, untied": qwen2(4, 2, None, False),
    "mistral, wide heads, untied": mistral(6, 2, 16, False),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def pair(request, tmp_path_factory):
    """transformers' model and ours, read from what it saved, in one file and in many. No weight is near zero or one."""
    directory = tmp_path_factory.mktemp("model")
    kind, config = request.param
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, (weight.shape[-1] if weight.ndim > 1 else 4) ** -0.5)
    theirs.save_pretrained(directory)
    theirs.save_pretrained(directory / "sharded", max_shard_size="20KB")
    # One fewer than there is room for: transformers adds one of its own to Qwen2's.
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(63)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(directory)
    ours = load_model(directory)
    assert (directory / "model.safetensors").exists()
    assert len(list((directory / "sharded").glob("*.safetensors"))) > 2
    _, sharded = read_weights(directory / "sharded")
    jax.tree.map(np.testing.assert_array_equal, sharded, ours.params)
    return theirs, ours


def run_theirs(model, tokens, mask=None):
    """Logits and hidden states [L + 1, B, T, D] in numpy."""
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens),
            attention_mask=None if mask is None else torch.tensor(mask),
            output_hidden_states=True,
        )
    return out.logits.numpy(), np.stack([h.numpy() for h in out.hidden_states])


def run_ours(model, tokens, segments, positions):
    hidden = tiny.forward(
        model.params, tokens[None], segments[None], positions[None], (), cfg=model.config, every_layer=True
    )
    return np.asarray(logits_from_hidden(model.params, hidden[-1]))[0], np.asarray(hidden)[:, 0]


def assert_close(got, wanted):
    worst = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert worst <= 2e-4, worst


def test_logits_and_hidden_states(pair):
    theirs, ours = pair
    tokens = np.random.default_rng(0).integers(0, 64, (3, 40))
    positions = np.broadcast_to(np.arange(40), tokens.shape)
    logits, hidden = run_theirs(theirs, tokens)
    got_logits, got_hidden = run_ours(ours, tokens, np.ones_like(tokens), positions)
    assert_close(got_logits, logits)
    assert got_hidden.shape == hidden.shape
    for got, wanted in zip(got_hidden, hidden, strict=True):
        assert_close(got, wanted)


def test_right_padded_and_packed_rows(pair):
    """A padded row against transformers with the same padding; a packed row against its texts alone."""
    theirs, ours = pair
    rng = np.random.default_rng(1)
    lengths, width = (17, 9, 11), 40
    tokens, segments = rng.integers(0, 64, (2, width)), np.zeros((2, width), int)
    segments[0, :17] = 1
    segments[1] = np.repeat([1, 2, 3, 0], [*lengths, 3])
    positions = np.stack([np.arange(width), np.concatenate([np.arange(n) for n in (*lengths, 3)])])
    got, _ = run_ours(ours, tokens, segments, positions)
    wanted, _ = run_theirs(theirs, tokens[:1], (segments[:1] > 0).astype(int))
    assert_close(got[0, :17], wanted[0, :17])
    for start, n in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        wanted, _ = run_theirs(theirs, tokens[1:, start : start + n])
        assert_close(got[1, start : start + n], wanted[0])


@pytest.mark.parametrize(
    ("count", "length"), [(3, 24), pytest.param(20, 64, marks=pytest.mark.slow)], ids=["3 prompts", "20 prompts"]
)
def test_smollm2_says_the_same(count, length):
    """Greedy tokens: transformers on its own reading of the GGUF, a prompt at a time, and ours, all at once."""
    file = embedded_checkpoint()
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    model = load_model("smollm2")
    stop = stop_ids(model.tokenizer)
    prompts = [encode_prompt(model.tokenizer, chat(q)) for q in QUESTIONS[:count]]
    [got] = generate_tokens(model.params, model.config, [prompts], (), stop, max_new_tokens=length)
    for question, prompt, (reply, _) in zip(QUESTIONS, prompts, got, strict=False):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor(prompt[None], dtype=torch.long),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=length,
                eos_token_id=list(stop),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        assert [t for t in out if t not in stop] == reply, question
    assert len(got) == count
    assert sum(len(tokens) == length for tokens, _ in got) > count / 2
    assert all(len(set(tokens)) > 5 for tokens, _ in got)


QUESTIONS = (
    "Name three colours.",
    "How do I boil an egg?",
    "Write a short poem about the sea.",
    "What is photosynthesis?",
    "Explain how a bicycle stays upright.",
    "Give me a recipe for pancakes.",
    "Who was Ada Lovelace?",
    "Why is the sky blue?",
    "Translate 'good morning' into French and German.",
    "What is 17 + 26?",
    "Write a Python function that reverses a string.",
    "Plan a weekend in Lisbon.",
    "Summarise the plot of Romeo and Juliet.",
    "How do vaccines work?",
    "List five uses for a paper clip.",
    "What should I pack for a hike in the rain?",
    "Tell me a story about a fox who learns to read.",
    "What is the difference between weather and climate?",
    "Describe the taste of a lemon.",
    "Which planets have rings?",
)
