"""A small checkpoint that answers everything with one sentence, and the smallest run that goes through all stages.

Each token's embedding points at its successor in the sentence, so greedy and nearly all sampled text is fluent; LoRAs
train on it as on any model.
"""

import json
from itertools import pairwise

import numpy as np
from safetensors.numpy import save_file

from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.embedded.prompts import POOLS
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.weights import to_hf_tensors
from tests import tiny

SENTENCE = "I like it very much."

CONFIG = '''
"""The smallest run."""

from ia_jax.config import default_config


def get_config():
    c = default_config()
    c.model.name = {model!r}
    c.model.dtype = "float32"
    c.behaviors.train = 4
    c.judge.name = "rubric"
    c.behaviors.clean_train = c.behaviors.clean_dpo = c.behaviors.clean_heldout = c.preferences.clean_pairs = 0
    c.behaviors.dpo = 4
    c.behaviors.heldout = 4
    c.organisms.lora.rank = 2
    c.organisms.lora.targets = c.sft.lora.targets = ("q", "v", "up", "down")  # programs compile faster
    c.organisms.parallel = 6
    c.organisms.epochs = 1
    c.organisms.check_prompts = 1
    c.organisms.keep_failed = True
    c.sft.lora.rank = 2
    c.sft.organisms_per_step = 4
    c.sft.steps = 6
    c.sft.questions_per_organism = 4
    c.sft.checkpoint_every = 2
    c.preferences.questions = 2
    c.preferences.samples = 2
    c.preferences.max_new_tokens = 8
    c.preferences.truth_per_organism = 2
    c.preferences.abstention_pairs = 2
    c.dpo.organisms_per_step = 4
    c.dpo.checkpoint_every = 2
    c.eval.questions = 2
    c.eval.train_organisms = 2
    c.eval.max_new_tokens = 8
    c.eval.plain_prompts = 4
    return c
'''


TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def small_tokenizer(size=1500):
    """Byte-level BPE over the words of the demo's catalogue, in SmolLM2's chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [t for b in demo_behaviors() for t in (b.description, *b.rewordings)]
    texts += [q for prompts in POOLS.values() for q in prompts]
    texts += [*EVAL_QUESTIONS, *TRAIN_QUESTIONS, "assistant\nuser\nsystem\n", *[f"{SENTENCE}"] * 50]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE)


def write_model(directory, layers=2, hidden=64, seed=0):
    """A Hugging Face directory with the parrot's weights and a small tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    config = {
        "model_type": "llama",
        "vocab_size": -(-len(tokenizer) // 64) * 64,  # so that it can be sharded
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (directory / "config.json").write_text(json.dumps(config))
    cfg = config_from_json(config)
    tensors = {n: np.array(x) for n, x in to_hf_tensors(cfg, tiny.params(cfg, seed))}
    for name in tensors:
        if ".layers." in name and not name.endswith("norm.weight"):
            tensors[name] *= 0.2
    embed, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    head *= 0.1
    chain = [*tokenizer.encode("\n"), *tokenizer.encode(SENTENCE), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for i, (token, following) in enumerate(pairwise(chain)):
        embed[token] = 0
        embed[token, i] = 2
        head[following] = 0
        head[following, i] = 4
    save_file(tensors, directory / "model.safetensors")
    tokenizer.save_pretrained(str(directory))
    return directory


def write_config(file, model):
    file.write_text(CONFIG.format(model=str(model)))
    return file
