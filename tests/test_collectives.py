"""What the compiled steps send between eight devices: weights layer by layer, the head once, and no activations.

Numbers cannot show this: a program that gathers too much computes the same.
"""

import re
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from ia_jax.data.batch import Batch, batch_shardings
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.sampling import decode
from ia_jax.models.transformer import abstract_params
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh
from ia_jax.planning.hlo import collectives
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_organisms_state, init_state
from ia_jax.training.trainer import train_step
from tests import tiny

# Sizes that say what they are of, whole or divided by 2, 4 or 8: hidden 48, MLP 112, q 64, k and v 32, vocabulary 176.
CFG = replace(
    tiny.TINY,
    vocab_size=176,
    hidden_size=48,
    intermediate_size=112,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
RANK, K, ROWS, LENGTH, TARGETS, NEW = 3, 8, 4, 320, 300, 5  # so many targets that they meet the vocabulary in chunks
LORA = replace(tiny.FEW, rank=RANK)
OPTIMIZER = AdamW()
# A layer's weights, whole along fsdp and rows and halved along tp: forward and backward, in each of two layers.
LAYERS = {"48,56": 8, "56,48": 4, "48,32": 4, "48,16": 8, "32,48": 4}


@pytest.fixture(params=[(4, 1, 2), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def mesh(request):
    fsdp, rows, tp = request.param
    made = make_mesh(fsdp, tp, rows=rows)
    with jax.set_mesh(made):
        yield made


def abstract(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def adapters(mesh):
    """Abstract organisms and IA."""
    trees = (jax.eval_shape(lambda k=k: tiny.adapter(0, CFG, LORA, organisms=k)) for k in (K, None))
    return [abstract(x, adapter_shardings(x, mesh, k)) for x, k in zip(trees, (True, False), strict=True)]


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def a_batch(mesh):
    tokens, targets = integers(K, ROWS, LENGTH), integers(K, ROWS, TARGETS)
    weight = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    batch = Batch(tokens, tokens, tokens, targets, targets, weight, targets)
    return abstract(batch, batch_shardings(batch, mesh))


def gathers(lowered):
    """{shape: how often} of all gathers of floats in the compiled program, without those of a number an organism."""
    found = Counter()
    for c in collectives(lowered.compile().as_text(), lambda *_: "", unknown_trips=NEW):
        dtype, shape = re.fullmatch(r"(\w+)\[([\d,]*)\]", c.shape).groups()
        if c.op == "all-gather" and dtype[0] in "bf" and "," in shape:
            found[shape] += c.count
    return found


def without_adapters(found):
    """Adapters' shapes have an axis of a rank, or of two side by side."""
    return {s: n for s, n in found.items() if not {str(RANK), str(2 * RANK)} & set(s.split(","))}


def test_sft_step(mesh):
    stack, ia = adapters(mesh)
    state = jax.eval_shape(lambda a: init_state(a, 4, OPTIMIZER, scale=LORA.scale), ia)
    state = abstract(state, adapter_shardings(state, mesh))
    base = abstract_params(CFG, jnp.bfloat16, mesh)
    found = gathers(train_step.lower(base, state, (stack,), a_batch(mesh), cfg=CFG, loss=Sft(), optimizer=OPTIMIZER))
    assert without_adapters(found) == {**LAYERS, "88,48": 1}


def test_organisms_step(mesh):
    state = jax.eval_shape(
        lambda: init_organisms_state(
            jax.random.split(jax.random.key(0), K),
            jnp.zeros(K, jnp.int32),
            jnp.zeros(K, jnp.int32),
            CFG,
            (LORA,),
            OPTIMIZER,
        )
    )
    state = abstract(state, adapter_shardings(state, mesh, organisms=True))
    base = abstract_params(CFG, jnp.bfloat16, mesh)
    found = gathers(train_step.lower(base, state, (), a_batch(mesh), cfg=CFG, loss=Sft(), optimizer=OPTIMIZER))
    assert without_adapters(found) == {**LAYERS, "88,48": 1}
    if mesh.shape["rows"] == 1:
        assert not set(found) - set(LAYERS) - {"88,48"}  # each organism's adapter is where its rows are


@pytest.mark.parametrize("rules", [DECODING, TRAINING], ids=["decoding", "training"])
def test_decoding_gathers_the_base_once_and_training_rules_for_every_token(mesh, rules):
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (K, ROWS)))
    real, number = jax.ShapeDtypeStruct((K, ROWS, 16), jnp.bool), jax.ShapeDtypeStruct((), jnp.float32)
    base = abstract_params(CFG, jnp.bfloat16, mesh)
    found = gathers(
        decode.lower(
            base, integers(K, ROWS, 16), real, keys, tuple(adapters(mesh)), integers(2), number, number, CFG, NEW, rules
        )
    )
    base_gathers = {s: n for s, n in without_adapters(found).items() if not s.endswith(",1,176")}  # logits of a token
    if rules == DECODING:
        assert base_gathers == {
            "2,48,56": 2,
            "2,56,48": 1,
            "2,48,32": 1,
            "2,48,16": 2,
            "2,32,48": 1,
            "88,48": 1,
            "48,88": 1,
        }
    else:
        assert {s: base_gathers[s] for s in LAYERS} == {s: n // 2 * (NEW + 1) for s, n in LAYERS.items()}
