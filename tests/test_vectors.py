"""Vectors on the residual stream: what they add, what their gradient is, and that they are members like any other."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ia_jax.adapters import store
from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.merge import write_merged
from ia_jax.adapters.peft import export_peft, import_peft
from ia_jax.config import LoraSection, OrganismsSection
from ia_jax.errors import CheckpointError, ConfigError
from ia_jax.models.combine import concatenate_ranks
from ia_jax.models.dropout import Dropout
from ia_jax.models.lora import (
    RESIDUAL,
    LoraConfig,
    adapter_shardings,
    has_organism_axis,
    init_lora,
    init_organisms,
    layers_of,
    peft_parametrization,
    rank_of,
    take_organisms,
)
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.parallel.mesh import make_mesh
from tests import tiny
from tests.stored import Base, fails, metadata, same_bits

CFG = replace(tiny.TINY, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
BASE = Base(config=CFG)
K = 3


def kind(*layers):
    return LoraConfig(0, 0.0, (RESIDUAL,), layers=layers or None)


def vector(seed, *layers, organisms=None):
    return tiny.adapter(seed, CFG, kind(*layers), organisms, size=1.0)


@pytest.fixture(scope="module")
def params():
    return tiny.params(CFG)


def test_it_is_added_to_what_a_layer_hands_on(params):
    rows, one = tiny.rows(K, 2, 9), vector(1, 2, organisms=K)
    base = tiny.forward(params, *rows, (), cfg=CFG, every_layer=True)
    states = tiny.forward(params, *rows, (one,), cfg=CFG, every_layer=True)
    assert not tiny.differs(states[:3], base[:3])
    v = one[RESIDUAL]["v"]  # [K, 1, D]
    assert tiny.worst(states[3], base[3] + v[:, None]) < 1e-6
    assert tiny.worst(states[4], base[4]) > 0.1
    # Two vectors on one layer add up, whichever of them has the organism axis.
    both = tiny.forward(params, *rows, (one, vector(2, 2)), cfg=CFG)
    total = jax.tree.map(lambda a, b: a + b, one.sites, vector(2, 2).sites)
    assert tiny.worst(both, tiny.forward(params, *rows, (one.replace(sites=total),), cfg=CFG)) < 1e-5


def gradient(params, stack, rows, dropout=None):
    def loss(trained):
        states = forward(params, *rows, (*stack[:-1], trained), CFG, dropout=dropout)
        return (states**3).sum((1, 2, 3)).sum(), states

    return jax.jit(jax.grad(loss, has_aux=True))(stack[-1])


def test_a_new_one_changes_nothing_and_learns(params):
    new, rows = init_lora(jax.random.key(0), CFG, kind(1, 3)), tiny.rows(K, 2, 9)
    assert jax.tree.map(jnp.shape, new.sites) == {RESIDUAL: {"v": (2, 32)}}
    assert not any(np.any(x) for x in jax.tree.leaves(new))
    many = init_organisms(jax.random.split(jax.random.key(0), K), CFG, kind(1, 3))
    assert (has_organism_axis(many), has_organism_axis(new), rank_of(new)) == (True, False, 0)
    base = tiny.forward(params, *rows, (), cfg=CFG)
    assert not tiny.differs(tiny.forward(params, *rows, (new,), cfg=CFG), base)
    grads, _ = gradient(params, (new,), rows)
    assert all(np.abs(row).max() > 0.1 for row in grads[RESIDUAL]["v"])
    # PEFT's parametrization is about `b`.
    tx, scaled = optax.sgd(1.0), peft_parametrization(optax.sgd(1.0), 4.0)
    assert not tiny.differs(scaled.update(grads, scaled.init(new), new)[0], tx.update(grads, tx.init(new), new)[0])


def test_the_gradient_of_a_shared_one_is_the_sum_over_organisms(params):
    rows, one = tiny.rows(K, 2, 9), vector(1, 0, 2)
    shared, _ = gradient(params, (one,), rows)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (K, *x.shape)), one)
    own, _ = gradient(params, (many,), rows)
    assert tiny.worst(jax.tree.map(lambda x: x.sum(0), own), shared) < 1e-5
    # Along a direction, what a small step does to the loss.
    direction = vector(5, 0, 2)

    def loss(step):
        moved = jax.tree.map(lambda x, d: x + step * d, one, direction)
        return float((np.asarray(gradient(params, (moved,), rows)[1], np.float64) ** 3).sum())

    slope = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (shared, direction)), strict=True))
    assert (loss(1e-2) - loss(-1e-2)) / 2e-2 == pytest.approx(slope, rel=2e-2)


def test_stacked_is_alone(params):
    organisms, rows = vector(1, 1, 2, organisms=K), tiny.rows(K, 2, 9)
    grads, states = gradient(params, (organisms,), rows)
    for i in range(K):
        own, alone = gradient(params, (take_organisms(organisms, jnp.array([i])),), [x[i : i + 1] for x in rows])
        assert tiny.worst(alone[0], states[i]) < 1e-5
        assert tiny.worst(take_organisms(own, 0), take_organisms(grads, i)) < 1e-5


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=["8x1", "2x2x2"])
def test_a_mesh_is_one_device(params, shape):
    fsdp, spread, tp = shape
    rows, stack = tiny.rows(8, 2, 9), (vector(1, 1, organisms=8), tiny.adapter(2, CFG, tiny.FEW), vector(3, 0, 2))
    wanted, wanted_states = gradient(params, stack, rows)
    mesh = make_mesh(fsdp, tp, rows=spread)
    with jax.set_mesh(mesh):
        organisms = (True, False, False)
        placed = [jax.device_put(x, adapter_shardings(x, mesh, o)) for x, o in zip(stack, organisms, strict=True)]
        base = jax.device_put(jax.tree.map(np.asarray, params), param_shardings(CFG, mesh))
        grads, states = gradient(base, placed, rows)
    assert tiny.worst(states, wanted_states) < 1e-5
    assert tiny.worst(grads, wanted) < 1e-4


def test_dropout_is_of_loras(params):
    rows, stack = tiny.rows(K, 2, 9), (vector(1, 2),)
    plain = gradient(params, stack, rows)
    assert not tiny.differs(gradient(params, stack, rows, Dropout(0.5, jax.random.split(jax.random.key(0), K))), plain)


def test_generation(params):
    """Greedy tokens are those of the logits of whole rows."""
    stack = vector(1, 1, 3, organisms=K), vector(2, 0)
    prompts = [[np.array([5, 9, i + 1], np.int32)] for i in range(K)]
    found = generate_tokens(params, CFG, prompts, stack, (0,), max_new_tokens=4)
    rows = [np.concatenate([p[0], f[0].tokens]) for p, f in zip(prompts, found, strict=True)]
    tokens = np.stack(rows)[:, None].astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
    states = tiny.forward(params, tokens, np.ones_like(tokens), positions, stack, cfg=CFG)
    likely = np.asarray(states @ params["embed"].T).argmax(-1)
    np.testing.assert_array_equal(likely[:, 0, 2:-1], tokens[:, 0, 3:])


# ---------------------------------------------------------------------------------------------------------------------
# The store, the bank, other formats
# ---------------------------------------------------------------------------------------------------------------------


def save(root, name, tree, lora):
    fields = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets, "layers": lora.layers}
    return store.save_adapter(root / name, tree, metadata(name, **fields))


def test_stored_and_verified(tmp_path):
    one = jax.tree.map(np.asarray, vector(1, 1, 2))
    read = save(tmp_path, "x", one, kind(1, 2))
    assert (read.rank, read.targets, read.layers, read.lora) == (0, (RESIDUAL,), (1, 2), kind(1, 2))
    assert same_bits(store.load_adapter(tmp_path / "x", BASE)[0], one)
    assert store.verify_adapter(tmp_path / "x") == []
    broken = jax.tree.map(np.copy, one)
    broken[RESIDUAL]["v"][1, 3] = np.inf
    with fails(CheckpointError, "leaf residual.v is not finite at [1, 3]"):
        save(tmp_path, "y", broken, kind(1, 2))
    with fails(CheckpointError, "leaf residual.v has shape (3, 2, 32), not [layers, hidden]"):
        save(tmp_path, "y", vector(1, 1, 2, organisms=3), kind(1, 2))


@pytest.mark.parametrize("budget", [None, 0], ids=["resident", "streamed"])
def test_banked_beside_loras(tmp_path, params, budget):
    kinds = [kind(1), LoraConfig(3, 6.0, ("q", "down")), kind(0, 3)]
    trees = [tiny.adapter(i, CFG, lora, size=0.7) for i, lora in enumerate(kinds)]
    for i, (tree, lora) in enumerate(zip(trees, kinds, strict=True)):
        save(tmp_path, str(i), tree, lora)
    mesh = jax.sharding.get_mesh()
    places = [tmp_path / "0", tmp_path / "1", (tmp_path / "1", tmp_path / "2")]
    bank = open_bank(places, BASE, mesh, dtype=np.float32, zeros=1, budget_bytes=budget)
    assert (bank.lora.rank, bank.lora.targets, bank.lora.layers) == (3, ("q", "down", RESIDUAL), None)
    rows = tiny.rows(4, 1, 6)
    states = tiny.forward(params, *rows, (bank.take([0, 1, 2, 3]),), cfg=CFG)
    for i, stack in enumerate([trees[:1], trees[1:2], trees[1:], []]):
        alone = tiny.forward(params, *[x[i : i + 1] for x in rows], tuple(stack), cfg=CFG)
        assert tiny.worst(states[i], alone[0]) < 1e-5


@pytest.mark.parametrize("layers", [(2,), (0, 1, 3), ()])
def test_to_peft_and_back(tmp_path, layers):
    one = vector(1, *layers)
    export_peft(one, tmp_path, BASE, kind(*layers))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["lora_bias"], written["target_modules"], written["r"]) == (True, ["down_proj"], 1)
    assert "a vector on the residual stream" in (tmp_path / "README.md").read_text()
    assert same_bits(import_peft(tmp_path, BASE), one)


@pytest.mark.parametrize("alpha", [8.0, 5.0])
def test_a_sum_with_a_lora_to_peft_and_back(tmp_path, alpha):
    lora = LoraConfig(4, alpha, ("q", "down"), layers=(0, 2))
    both = concatenate_ranks(tiny.adapter(0, CFG, lora), vector(1, 1, 2))
    assert (layers_of(both), list(both), rank_of(both)) == ((0, 1, 2), ["q", "down", RESIDUAL], 4)
    export_peft(both, tmp_path, BASE, lora)
    assert same_bits(import_peft(tmp_path, BASE), both)
    two = concatenate_ranks(vector(1, 1, 2), vector(2, 2, 3))
    assert tiny.worst(two[RESIDUAL]["v"][1], vector(1, 1, 2)[RESIDUAL]["v"][1] + vector(2, 2, 3)[RESIDUAL]["v"][0]) == 0


def test_a_bias_elsewhere_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    export_peft(concatenate_ranks(tiny.adapter(0, CFG, LoraConfig(4, 8.0)), vector(1, 1)), tmp_path, BASE)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.bias"
    assert not tensors[name].any()
    tensors[name][3] = 1
    save_file(tensors, file)
    with fails(ConfigError, f"{name} is not zero; only down_proj may have a bias"):
        import_peft(tmp_path, BASE)
    del tensors[name]
    save_file(tensors, file)
    with fails(CheckpointError, "lora_bias of model.layers.1.self_attn.q_proj is missing"):
        import_peft(tmp_path, BASE)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": False}))
    with fails(ConfigError, "lora_B.bias is there, but adapter_config.json has no lora_bias"):
        import_peft(tmp_path, BASE)


def test_full_weights_have_no_place_for_one(tmp_path):
    with fails(ConfigError, str(tmp_path / "out"), "no weight that a vector could be merged into; export it as PEFT"):
        write_merged("smollm2", [vector(1, 1)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_a_vector_does_not_have():
    with fails(ConfigError, "a vector has no targets, got ('q',)"):
        LoraSection(kind="vector", targets=("q",)).lora()
    with fails(ConfigError, "vectors have no rank, got (4, 8)"):
        OrganismsSection(lora=LoraSection(kind="vector"), ranks=(4, 8)).loras()
    assert LoraSection(kind="vector", rank=16, dropout=0.05, layers="1:3").lora() == kind(1, 2)
