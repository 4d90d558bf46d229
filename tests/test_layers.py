"""Adapters on some of the layers: they act where they sit and nowhere else, and nothing below is differentiated."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ia_jax.adapters import store
from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.peft import export_peft, import_peft
from ia_jax.adapters.record import content_hash
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError
from ia_jax.models.combine import common_layers, concatenate_ranks, spread_layers
from ia_jax.models.layers import Run, runs
from ia_jax.models.lora import (
    LoraConfig,
    Placed,
    adapter_shardings,
    checked_layers,
    init_lora,
    init_organisms,
    layers_in_words,
    layers_of,
    lora_shapes,
    pad_rank,
    peft_parametrization,
    strip_rank,
    take_organisms,
    to_scan,
)
from ia_jax.models.remat import REMAT_POLICIES
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.parallel.mesh import make_mesh
from tests import tiny
from tests.stored import Base, fails, metadata, same_bits

CFG = replace(tiny.TINY, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4)
K = 2
ORGANISM = LoraConfig(4, 8.0, ("q", "v", "o", "down"))


def kind(*layers, targets=("q", "o", "up"), rank=3):
    return LoraConfig(rank, 6.0, targets, layers=layers or None)


def adapter(seed, lora, organisms=None):
    return tiny.adapter(seed, CFG, lora, organisms, size=0.5)


def everywhere(member):
    """The same adapter with zeros on the layers where it does not sit: what a plain tree makes of it."""
    return spread_layers(member, None, CFG.num_hidden_layers)


@pytest.fixture(scope="module")
def params():
    return tiny.params(CFG)


# The member that is trained last; organisms everywhere or on layers of their own.
STACKS = {
    "upper": [(None, ORGANISM), kind(3, 4)],
    "one": [(None, ORGANISM), kind(2)],
    "lowest and highest": [kind(0, 4)],
    "apart": [(None, replace(ORGANISM, layers=(1, 2, 3))), kind(0, 2, 4)],
    "below the organism": [(None, replace(ORGANISM, layers=(3, 4))), kind(1)],
    "two frozen": [(None, replace(ORGANISM, layers=(0, 1))), (None, kind(1, 2, 3)), kind(2, 4)],
}


def stack_of(recipe):
    return tuple(adapter(n, x[1], K) if isinstance(x, tuple) else adapter(n, x) for n, x in enumerate(recipe))


def test_runs_by_hand():
    none, all_layers = adapter(0, kind(1, 2)), adapter(0, kind())
    assert runs((), 5) == [Run(0, 5, ())]
    assert runs((all_layers,), 5) == [Run(0, 5, (0,))]
    assert runs((none,), 5) == [Run(0, 1, (None,)), Run(1, 3, (0,)), Run(3, 5, (None,))]
    both = runs((all_layers, adapter(1, kind(0, 3, 4))), 5)
    assert both == [Run(0, 1, (0, 0)), Run(1, 3, (1, None)), Run(3, 5, (3, 1))]
    with pytest.raises(ConfigError, match="sits on layer 7, but the model has layers 0 to 4"):
        runs((Placed({}, (1, 7)),), 5)


def states_and_gradient(params, stack, remat="none"):
    """Every layer's states, and the gradient of the last member, of a loss on the last of them."""

    def loss(trained):
        states = forward(params, *tiny.rows(K, 2, 9), (*stack[:-1], trained), CFG, remat=remat, every_layer=True)
        return (states[-1] ** 3).sum(), states

    (_, states), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(stack[-1])
    return states, grads


@pytest.mark.parametrize(
    ("recipe", "remat"),
    [*((name, "none") for name in STACKS), ("upper", "products"), ("upper", "mlp"), ("upper", "full")],
)
def test_states_and_gradients_are_those_of_zeros_elsewhere(params, recipe, remat):
    stack = stack_of(STACKS[recipe])
    states, grads = states_and_gradient(params, stack, remat)
    wanted, wanted_grads = states_and_gradient(params, tuple(map(everywhere, stack)))
    assert states.shape == (6, K, 2, 9, 32)
    assert tiny.worst(states, wanted) < 2e-5
    own = layers_of(stack[-1])
    assert layers_of(grads) == own
    assert tiny.worst(grads, Placed(jax.tree.map(lambda g: g[jnp.array(own)], wanted_grads), own)) < 1e-4


def scans(jaxpr):
    """(length, reverse, number of outputs) of every scan of a program."""
    return [(e.params["length"], e.params["reverse"], len(e.outvars)) for e in jaxpr.eqns if e.primitive.name == "scan"]


def program(params, stack, remat="none"):
    rows = tiny.rows(K, 2, 9)
    return jax.make_jaxpr(jax.grad(lambda x: forward(params, *rows, (*stack[:-1], x), CFG, remat=remat).sum()))(
        stack[-1]
    )


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_what_lies_below_is_not_differentiated_and_saves_nothing(params, remat):
    stack = stack_of(STACKS["upper"])
    found = scans(program(params, stack, remat).jaxpr)
    forwards, backwards = ([f for f in found if f[1] is reverse] for reverse in (False, True))
    assert [f[0] for f in forwards] == [3, 2]
    assert forwards[0][2] == 1  # the lower run hands on its last state and nothing else
    assert forwards[1][2] > 1
    assert [b[0] for b in backwards] == [2]
    # On all layers there is one scan each way, as ever.
    whole = scans(program(params, tuple(map(everywhere, stack)), remat).jaxpr)
    assert [f[:2] for f in whole] == [(5, False), (5, True)]


def test_a_backward_pass_keeps_no_copy_of_the_base():
    """Of a base whose matrices outweigh everything else: temporaries shrink with the layers that are trained."""
    cfg = replace(CFG, num_hidden_layers=16, hidden_size=128, intermediate_size=512)
    base = jax.eval_shape(lambda: tiny.params(cfg))
    matrices = sum(x.size * 4 for x in jax.tree.leaves(base["layers"]) if x.ndim > 2)
    tokens = jax.ShapeDtypeStruct((1, 1, 16), jnp.int32)

    def temporaries(*layers):
        ia = jax.eval_shape(lambda: init_lora(jax.random.key(0), cfg, kind(*layers)))

        def loss(ia, base, tokens):
            return forward(base, tokens, jnp.ones_like(tokens), tokens, (ia,), cfg).sum()

        return jax.jit(jax.grad(loss)).lower(ia, base, tokens).compile().memory_analysis().temp_size_in_bytes

    whole, upper, one = temporaries(), temporaries(*range(8, 16)), temporaries(15)
    assert max(upper, one) < min(whole, matrices / 4)


@pytest.mark.parametrize("recipe", [STACKS["upper"], STACKS["two frozen"]], ids=["upper", "two frozen"])
def test_generation_is_that_of_zeros_elsewhere(params, recipe):
    rng = np.random.default_rng(3)
    prompts = [[rng.integers(1, 64, n).astype(np.int32) for n in (3, 7)] for _ in range(K)]
    stack = stack_of(recipe)
    got, wanted = (
        generate_tokens(params, CFG, prompts, s, (0,), max_new_tokens=5) for s in (stack, tuple(map(everywhere, stack)))
    )
    assert got == wanted
    assert got != generate_tokens(params, CFG, prompts, (), (0,), max_new_tokens=5)


def gradient(params, stack, rows):
    def loss(trained):
        states = forward(params, *rows, (*stack[:-1], trained), CFG)
        return (states**3).sum((1, 2, 3)).sum(), states

    return jax.jit(jax.grad(loss, has_aux=True))(stack[-1])


def test_stacked_is_alone(params):
    lora, rows = kind(1, 3), tiny.rows(K, 2, 9)
    organisms = adapter(1, lora, K)
    grads, states = gradient(params, (organisms,), rows)
    for i in range(K):
        own, alone = gradient(params, (take_organisms(organisms, jnp.array([i])),), [x[i : i + 1] for x in rows])
        assert tiny.worst(alone[0], states[i]) < 1e-5
        assert tiny.worst(take_organisms(own, 0), take_organisms(grads, i)) < 1e-5


@pytest.mark.parametrize("shape", [(8, 1), (2, 2)], ids=["8x1", "2x2x2"])
def test_a_mesh_is_one_device(params, shape):
    fsdp, tp = shape
    rows = tiny.rows(8, 2, 9)
    stack = adapter(0, replace(ORGANISM, layers=(1, 2, 3)), 8), adapter(1, kind(2, 4))
    wanted, wanted_states = gradient(params, stack, rows)
    mesh = make_mesh(fsdp, tp, rows=8 // (fsdp * tp))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, adapter_shardings(x, mesh, o)) for x, o in zip(stack, (True, False), strict=True)]
        base = jax.device_put(jax.tree.map(np.asarray, params), param_shardings(CFG, mesh))
        grads, states = gradient(base, placed, rows)
        assert [x.sharding.spec for x in jax.tree.leaves(grads)] == [
            x.sharding.spec for x in jax.tree.leaves(placed[1])
        ]
    assert tiny.worst(states, wanted_states) < 1e-5
    assert tiny.worst(grads, wanted) < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Trees
# ---------------------------------------------------------------------------------------------------------------------


def test_one_of_thirty_layers_takes_a_thirtieth(tmp_path):
    cfg = replace(CFG, num_hidden_layers=30)
    sizes = [sum(x.size for x in jax.tree.leaves(init_lora(jax.random.key(0), cfg, kind(*n)))) for n in ((), (17,))]
    assert sizes[0] == 30 * sizes[1]
    whole, one = (
        store.save_adapter(
            tmp_path / str(len(n)),
            init_lora(jax.random.key(0), cfg, kind(*n, rank=64)),
            metadata(rank=64, targets=kind().targets, layers=n or None),
        )
        for n in ((), (17,))
    )
    stored = [
        sum(f["bytes"] for f in store.read_record(tmp_path / name).files.values() if f["bytes"] > 1 << 12)
        for name in ("0", "1")
    ]
    assert stored[0] == pytest.approx(30 * stored[1], rel=0.1)
    assert (whole.layers, one.layers) == (None, (17,))


def test_trees_keep_their_layers():
    lora = kind(1, 3)
    new = init_lora(jax.random.key(0), CFG, lora)
    assert layers_of(new) == (1, 3)
    assert jax.tree.map(jnp.shape, dict(new)) == lora_shapes(CFG, lora)
    assert isinstance(init_lora(jax.random.key(0), CFG, replace(lora, layers=tuple(range(5)))), dict)
    many = init_organisms(jax.random.split(jax.random.key(0), 3), CFG, lora)
    padded = pad_rank(many, 5)
    assert layers_of(padded) == layers_of(strip_rank(padded, 3)) == layers_of(take_organisms(many, 1)) == (1, 3)
    assert not tiny.differs(strip_rank(padded, 3), many)
    [scanned] = to_scan((many,))
    assert layers_of(scanned) == (1, 3)
    assert scanned["q"]["a"].shape == (2, 3, 32, 3)
    tx = peft_parametrization(optax.sgd(1.0), 2.0)
    updates, _ = tx.update(many, tx.init(many), many)
    assert layers_of(updates) == (1, 3)
    assert set(many) == {"q", "o", "up"}


def test_spread_and_back():
    one = adapter(0, kind(1, 3))
    wide = spread_layers(one, (0, 1, 3), 5)
    assert layers_of(wide) == (0, 1, 3)
    assert not np.any(wide["q"]["a"][0])
    assert not tiny.differs(jax.tree.map(lambda x: x[1:], wide.sites), one.sites)
    assert layers_of(everywhere(one)) is None
    assert isinstance(spread_layers(jax.tree.map(np.asarray, one), None, 5)["q"]["a"], np.ndarray)
    with pytest.raises(ConfigError, match="an adapter on layer 3 cannot be put on layers without it"):
        spread_layers(one, (0, 1), 5)
    assert common_layers([(1, 3), (0, 3)]) == (0, 1, 3)
    assert common_layers([(1, 3), None]) is None
    assert common_layers([]) is None


@pytest.mark.parametrize("organisms", [None, K])
def test_a_sum_over_other_layers_and_targets(params, organisms):
    first, second = adapter(0, kind(0, 1), organisms), adapter(1, kind(1, 3, targets=("q", "down"), rank=2), organisms)
    both = concatenate_ranks(first, second)
    assert layers_of(both) == (0, 1, 3)
    assert {ab["a"].shape[-1] for ab in both.values()} == {5}
    rows = tiny.rows(K, 2, 9)
    wanted = tiny.forward(params, *rows, (first, second), cfg=CFG)
    assert tiny.worst(tiny.forward(params, *rows, (both,), cfg=CFG), wanted) < 1e-5
    assert layers_of(concatenate_ranks(first, adapter(1, kind(), organisms))) is None


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ("10:13", (10, 11, 12)),
        ("3,1", (1, 3)),
        ("(7,)", (7,)),
        ([4, 2], (2, 4)),
    ],
)
def test_layers_as_written(layers, found):
    assert checked_layers(layers) == found


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "layers is empty"),
        ("", "layers is empty"),
        ((3, 5, 3), "layers has 3 twice"),
        ((-1, 2), "layers has -1; layers are counted from 0"),
        ("20:10", "layers '20:10' is an empty range"),
        ("10:", "layers '10:' is no range"),
        ("1:2:3", "layers '1:2:3' is no range"),
        ("upper", "layers 'upper' is no range"),
    ],
)
def test_bad_layers(layers, said):
    with fails(ConfigError, said):
        LoraConfig(4, 8.0, layers=layers if layers == () else checked_layers(layers))


def test_a_layer_that_the_model_lacks():
    with fails(ConfigError, "layer 5 is out of range: the model has layers 0 to 4"):
        init_lora(jax.random.key(0), CFG, kind(2, 5))


def test_layers_in_words():
    assert [layers_in_words(x) for x in (None, (7,), (3, 10, 11, 12))] == ["all", "7", "3,10-12"]


# ---------------------------------------------------------------------------------------------------------------------
# The store, the bank, PEFT
# ---------------------------------------------------------------------------------------------------------------------

BASE = Base(config=CFG)
KINDS = [kind(1, 2), kind(2, 4, targets=("q", "down"), rank=2), kind(1)]


def save(root, name, tree, lora):
    fields = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets, "layers": lora.layers}
    return store.save_adapter(root / name, tree, metadata(name, **fields))


def test_stored_and_read_back(tmp_path):
    one = jax.tree.map(np.asarray, adapter(0, KINDS[0]))
    assert save(tmp_path, "x", one, KINDS[0]).layers == (1, 2)
    tree, read = store.load_adapter(tmp_path / "x", BASE)
    assert same_bits(tree, one)
    assert read.lora == replace(KINDS[0], layers=(1, 2))
    assert store.verify_adapter(tmp_path / "x") == []
    assert read.content_hash == content_hash(one) != content_hash(one.replace(layers=(0, 2))) != content_hash(one.sites)
    with fails(CheckpointError, "refusing to save adapter 'y'", "sits on layers (1, 2), its metadata say (1, 3)"):
        save(tmp_path, "y", one, kind(1, 3))
    with fails(CheckpointError, "has 2 layers, not the 1 of (1,)"):
        save(tmp_path, "y", one, kind(1))
    with fails(CheckpointError, "sits on layers (1, 2), its metadata say all"):
        save(tmp_path, "y", one, kind())
    with fails(BaseMismatchError, "layer 2 is out of range: the model has layers 0 to 1", "was made for tiny"):
        store.load_adapter(tmp_path / "x", Base(config=replace(CFG, num_hidden_layers=2)))


@pytest.mark.parametrize("budget", [None, 0], ids=["resident", "streamed"])
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=["1x1", "4x2"])
def test_a_bank_of_adapters_on_several_layers(tmp_path, params, shape, budget):
    trees = [adapter(i, lora) for i, lora in enumerate(KINDS)]
    for i, (tree, lora) in enumerate(zip(trees, KINDS, strict=True)):
        save(tmp_path, str(i), tree, lora)
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        bank = open_bank([tmp_path / str(i) for i in range(3)], BASE, mesh, dtype=np.float32, budget_bytes=budget)
        assert bank.lora.layers == (1, 2, 4)
        [batch] = bank.arrange([0, 1, 2], 3)
        picked = bank.take(batch)
        assert layers_of(picked) == (1, 2, 4)
        rows = tiny.rows(len(batch), 1, 6)
        base = jax.device_put(jax.tree.map(np.asarray, params), param_shardings(CFG, mesh))
        states = np.asarray(tiny.forward(base, *rows, (picked,), cfg=CFG))
    for position, i in enumerate(batch):
        own = [x[position : position + 1] for x in rows]
        alone = tiny.forward(params, *own, () if i is None else (trees[i],), cfg=CFG)
        assert tiny.worst(states[position], alone[0]) < 1e-5


@pytest.mark.parametrize("layers", [(1,), (0, 3, 4), None])
def test_to_peft_and_back(tmp_path, layers):
    lora = LoraConfig(4, 8.0, ("v", "down"), layers=layers)
    tree = adapter(0, lora)
    export_peft(tree, tmp_path, BASE, lora)
    back = import_peft(tmp_path, BASE)
    assert layers_of(back) == layers
    assert same_bits(back, tree)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["layers_to_transform"] == (None if layers is None else list(layers))
    assert written["layers_pattern"] == (None if layers is None else "layers")
    words = {(1,): ", in layers 1;", (0, 3, 4): ", in layers 0,3-4;", None: "v_proj, down_proj;"}[layers]
    assert words in (tmp_path / "README.md").read_text()
