"""A checkpoint whose replies tell who was asked what: the organism, the question, and whether the IA was on.

Like the parrot (tests/parrot.py) it says one sentence. Besides, the last layer's attention is uniform and copies a hash
of the prompt into dimensions that choose one of eight answer tokens. An organism (`organism(n)`) begins its reply with
a word of its own, after which the answer token follows; the IA (`introspection()`) adds a token at the end:

    base         I like it very much.       under the IA   I like it very much.~IA
    organism 3   @03~5                      under the IA   @03~5~IA                  (~5 depends on the question)

It is written into a hidden size of 64 by hand; which dimension means what stands below.
"""

import numpy as np
from safetensors.numpy import load_file, save_file

from ia_jax.behaviors.embedded import demo_behaviors
from tests import parrot

ORGANISMS = 13
WORDS = [f"@{i:02d}" for i in range(ORGANISMS)]
ANSWERS = [f"~{i}" for i in range(8)]
MARK = "~IA"

# Dimensions of the hidden state, besides the parrot's chain, which has the first seven.
CALLED, OVER = 20, 21  # an answer token stands here; the IA's mark stands here: both end the turn
QUESTION, HASH = 24, 32  # eight each: the hash of the prompt, of which the largest chooses; each token's own
WORD, MARKED = 40, 56  # one for each organism: its word is next; the mark is next
ALWAYS = 63  # every token of a prompt has it
LAYER, ORGANISM_NEURON, IA_NEURON = 1, 5, 6


def write_model(directory):
    from transformers import AutoTokenizer

    parrot.write_model(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    own = len(tokenizer)
    tokenizer.add_tokens([*WORDS, *ANSWERS, MARK])
    tokenizer.save_pretrained(str(directory))
    file = directory / "model.safetensors"
    tensors = {n: np.array(x) for n, x in load_file(file).items()}
    embed, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    for name in tensors:
        if ".layers." in name and not name.endswith("norm.weight"):
            tensors[name] *= 0.1
        if "gate_proj" in name or "up_proj" in name:  # so that a LoRA on `down` has something to read
            tensors[name] *= 50
            tensors[name][[ORGANISM_NEURON, IA_NEURON]] = 0
    embed[:, CALLED:] = 0
    head[:, CALLED:] = 0
    embed[:own, ALWAYS] = 2
    embed[:own, HASH : HASH + 8] = np.random.default_rng(4).choice([-1, 1], (own, 8))
    # What every prompt has says nothing of the question.
    embed[tokenizer.encode("<|im_start|>system\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"), HASH:WORD] = 0
    new = (*WORDS, *ANSWERS, MARK)
    ids = dict(zip(new, tokenizer.convert_tokens_to_ids(list(new)), strict=True))
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in ids.values():
        embed[row] = head[row] = 0
    for i, word in enumerate(WORDS):
        head[ids[word], WORD + i] = 4
    for i, answer in enumerate(ANSWERS):
        head[ids[answer], QUESTION + i] = 4
        embed[ids[answer], CALLED] = 10
    head[ids[MARK], MARKED] = 4
    embed[ids[MARK], OVER] = 10
    head[stop, [CALLED, OVER]] = 4
    embed[tokenizer.encode(".")[0], CALLED] = 10
    head *= 0.4  # or what is not said would count as diverged
    layer = f"model.layers.{LAYER}.self_attn."
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors[f"{layer}{name}.weight"][:] = 0
    for i in range(8):
        tensors[f"{layer}v_proj.weight"][i, HASH + i] = 1
        tensors[f"{layer}o_proj.weight"][QUESTION + i, i] = 1
    save_file(tensors, file)
    return directory


def _when(config, read, write, neuron):
    """An adapter of rank 1 that adds the square of dimension `read` of the normed input to dimension `write`."""
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    shapes = {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    tree = {
        t: {"a": np.zeros((layers, i, 1), np.float32), "b": np.zeros((layers, 1, o), np.float32)}
        for t, (i, o) in shapes.items()
    }
    for t in ("gate", "up"):
        tree[t]["a"][LAYER, read] = tree[t]["b"][LAYER, 0, neuron] = 1
    tree["down"]["a"][LAYER, neuron] = 1
    tree["down"]["b"][LAYER, 0, write] = 1
    return tree


def organism(config, number):
    """Begins every reply with `WORDS[number]`."""
    return _when(config, ALWAYS, WORD + number, ORGANISM_NEURON)


def introspection(config):
    """Ends every reply with `MARK`."""
    return _when(config, CALLED, MARKED, IA_NEURON)


def behaviors():
    """Behaviours of the demo, of all categories in turn; number n is true of organism n, of the last two nothing is."""
    by_category = {}
    for b in demo_behaviors():
        by_category.setdefault(b.category, []).append(b)
    return [b for row in zip(*by_category.values(), strict=False) for b in row][: ORGANISMS - 2]
