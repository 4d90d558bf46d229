"""What the compiled steps send between eight devices: weights layer by layer, the head once, and no activations.

Numbers cannot show this: a program that gathers too much computes the same.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from ia_jax.data.batch import Batch, Beside, batch_shardings
from ia_jax.models.dropout import Dropout
from ia_jax.models.lora import RESIDUAL, LoraConfig, adapter_shardings
from ia_jax.models.sampling import decode
from ia_jax.models.transformer import abstract_params, forward
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh
from ia_jax.planning.hlo import collectives
from ia_jax.training.losses import Dpo, Kto, Sft
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


# One mesh has every axis; what is the same on the other is looked at by `make test-slow`.
MESHES = [(2, 2, 2), pytest.param((4, 1, 2), marks=pytest.mark.slow)]
EVERY_AXIS = pytest.mark.parametrize("mesh", MESHES, ids=["2x2x2", "4x1x2"], indirect=True)


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


def volume(shape):
    return math.prod(map(int, shape.split(",")))


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


# Losses of second adapters over organisms' own first ones, and how often the layers' weights are read: forward and
# backward; KTO goes over other answers forward; a KL over plain chats too, and over what they were without the member.
LOSSES = {"documents": (Sft(), 1), "dpo": (Dpo(), 1), "kto": (Kto(), 1.5), "kl": (Sft(kl_weight=1.0), 2.5)}


def phase_gathers(mesh, loss):
    """Gathers of a step of organisms' second adapters."""
    first = jax.eval_shape(lambda: tiny.adapter(0, CFG, LORA, organisms=K))
    first = abstract(first, adapter_shardings(first, mesh, organisms=True))
    state = jax.eval_shape(lambda a: init_state(a, jnp.full(K, 4), OPTIMIZER, scale=LORA.scale), first)
    state = abstract(state, adapter_shardings(state, mesh, organisms=True))
    batch, beside = a_batch(mesh), Beside()
    if not isinstance(loss, Sft):
        logps = jax.ShapeDtypeStruct((K, ROWS), jnp.float32, sharding=TRAINING.sharding(mesh, "organism"))
        beside = Beside(reference=logps)
        if isinstance(loss, Kto):
            batch = replace(batch, desirable=batch.target_weight)
            beside = replace(beside, mismatched=a_batch(mesh), mismatched_reference=logps)
    elif loss.kl_weight:
        beside = Beside(plain=a_batch(mesh))
    base = abstract_params(CFG, jnp.bfloat16, mesh)
    return gathers(train_step.lower(base, state, (first,), batch, beside, cfg=CFG, loss=loss, optimizer=OPTIMIZER))


@EVERY_AXIS
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_a_phase(mesh, name):
    loss, times = LOSSES[name]
    found = without_adapters(phase_gathers(mesh, loss))
    heads = found.pop("88,48")
    assert found == {shape: count * times for shape, count in LAYERS.items()}
    assert heads <= 4


# The member trained over the organisms, its rate of dropout, and how many layers the backward pass goes through.
MEMBERS = {
    "dropout": (LORA, 0.1, 2),
    "one layer": (replace(LORA, layers=(1,)), 0.0, 1),
    "one layer, dropout": (replace(LORA, layers=(1,)), 0.1, 1),
    "vector": (LoraConfig(0, 0.0, (RESIDUAL,)), 0.0, 2),
}


def gradient_of(mesh, lora, rate=0.0, remat="none"):
    """The gradient of an IA of this kind over organisms, traced."""
    organisms = jax.eval_shape(lambda: tiny.adapter(0, CFG, LORA, organisms=K))
    organisms = abstract(organisms, adapter_shardings(organisms, mesh, True))
    ia = jax.eval_shape(lambda: tiny.adapter(1, CFG, lora))
    ia = abstract(ia, adapter_shardings(ia, mesh))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), K))
    keys = abstract(keys, TRAINING.sharding(mesh, "organism"))

    def loss(ia, base, organisms, batch, keys):
        rows = batch.tokens, batch.segment_ids, batch.positions
        return (
            forward(base, *rows, (organisms, ia), CFG, remat=remat, dropout=Dropout(rate, keys))
            .astype(jnp.float32)
            .sum()
        )

    base = abstract_params(CFG, jnp.bfloat16, mesh)
    return jax.jit(jax.grad(loss)).trace(ia, base, organisms, a_batch(mesh), keys)


def gradient_gathers(mesh, lora, rate):
    return gathers(gradient_of(mesh, lora, rate).lower())


@EVERY_AXIS
@pytest.mark.parametrize("member", MEMBERS)
def test_members_of_every_kind(mesh, member):
    lora, rate, depth = MEMBERS[member]
    wanted = {shape: count * (2 + depth) // 4 for shape, count in LAYERS.items()}
    if depth < 2:  # a run of one layer: nobody asks for the gradient of what its q, k and v read
        wanted |= {shape: LAYERS[shape] // 2 for shape in ("48,32", "48,16")}
    assert without_adapters(gradient_gathers(mesh, lora, rate)) == wanted


@EVERY_AXIS
def test_hidden_states_are_summed_along_tp_once_a_block(mesh):
    """After o and down, and backward before q, k and v and before gate and up: in each of two layers, in bf16.

    The CPU's compiler makes fp32 of it, so what is sent is read off the program as it was written.
    """
    traced = gradient_of(mesh, LORA)
    sent = [x for x, _ in operations("reshard", traced.jaxpr.jaxpr) if x.sharding.spec.unreduced]
    assert [(x.dtype, x.shape, x.sharding.spec.unreduced) for x in sent] == [
        (jnp.bfloat16, (K, ROWS, LENGTH, 48), {"tp"})
    ] * 4  # two in the body of either scan
    states = f"{K // mesh.shape['fsdp']},{ROWS // mesh.shape['rows']},{LENGTH},48"
    found = collectives(traced.lower().compile().as_text(), lambda *_: "")
    assert sum(c.count for c in found if c.op == "all-reduce" and states in c.shape) == 2 * 4


def operations(primitive, jaxpr):
    """The types of what every such operation of a program is given and gives, in its parts too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield eqn.invars[0].aval, eqn.outvars[0].aval
        for part in jaxprs_in_params(eqn.params):
            yield from operations(primitive, part)


@EVERY_AXIS
def test_what_waits_on_the_host_is_what_layers_got(mesh):
    """With "offload", of a bf16 base: the states before every layer, and they alone, leave the device."""
    traced = gradient_of(mesh, LORA, remat="offload")
    moved = [x for _, x in operations("device_put", traced.jaxpr.jaxpr) if x.memory_space == jax.memory.Space.Host]
    assert [(x.dtype, x.shape) for x in moved] == [(jnp.bfloat16, (K, ROWS, LENGTH, 48))]


@pytest.mark.libtpu
def test_members_of_every_kind_on_a_tpu():
    """As libtpu compiles them for eight chips of v5p: weights and adapters are gathered, and no activations."""
    program = (
        "import json, jax\nfrom tests import test_collectives as t\nfrom ia_jax.planning.plan import devices_of\n"
        "mesh = t.make_mesh(2, 2, rows=2, devices=devices_of('v5p:2x2x2'))\n"
        "with jax.set_mesh(mesh):\n"
        "    found = {n: t.gradient_gathers(mesh, m[0], m[1]) for n, m in t.MEMBERS.items()}\n"
        "    found |= {n: t.phase_gathers(mesh, loss) for n, (loss, _) in t.LOSSES.items()}\n"
        "    print(json.dumps(found))"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for member, found in json.loads(done.stdout.splitlines()[-1]).items():
        # By their sizes: libtpu gathers the head as a matrix for each of its shards.
        sizes = {volume(shape) for shape in without_adapters(found)}
        assert sizes <= {volume(shape) for shape in (*LAYERS, "88,48")}, (member, found)
        assert sizes


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
