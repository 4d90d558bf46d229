"""The base in int8: rounding, products and their derivatives, loading by shards, a step, and what is refused."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import get_mesh

from ia_jax.adapters.base import identify
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import load_adapter, save_adapter
from ia_jax.data.batch import batch_shardings
from ia_jax.errors import BaseMismatchError, ConfigError
from ia_jax.models.lora import PROJECTIONS, adapter_shardings
from ia_jax.models.number_type import Choice
from ia_jax.models.project import project
from ia_jax.models.quantize import Int8, dequantize, quantize
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.sources import SafetensorsSource
from ia_jax.models.transformer import abstract_params, param_shardings
from ia_jax.models.weights import assemble, load_model, quantization_of
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning.chips import Work, step_hbm_bytes, step_ici_bytes
from ia_jax.recipes import load_config
from ia_jax.stages.settings import start_workdir
from ia_jax.training.differences import init_differences
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.base_files import LLAMA, checkpoint
from tests.meshes import on_host

CFG = replace(tiny.TINY, num_attention_heads=8, num_key_value_heads=4)
INT8 = replace(CFG, quantization="int8")
RECIPE = str(Path(__file__).parents[1] / "configs" / "smollm2_demo.py")


def quantized(params):
    layers = {n: quantize(w) if n in PROJECTIONS else w for n, w in params["layers"].items()}
    return params | {"layers": layers}


def as_floats(params):
    """The weights that a quantized tree stands for."""
    return params | {"layers": {n: dequantize(w) if isinstance(w, Int8) else w for n, w in params["layers"].items()}}


def test_every_weight_is_within_half_a_step_of_its_own():
    w = np.random.default_rng(0).normal(size=(3, 40, 7)).astype(np.float32) * np.logspace(-3, 2, 7, dtype=np.float32)
    w[1, :, 2] = 0
    found = quantize(jnp.asarray(w))
    steps = np.abs(w).max(1) / 127
    np.testing.assert_allclose(found.scale, steps, rtol=1e-6)
    assert (np.abs(np.asarray(dequantize(found)) - w) <= 0.5001 * steps[:, None]).all()
    assert np.abs(np.asarray(found.values, np.int32)).max((0, 1)).tolist() == [127] * 7  # no code is wasted
    assert not np.asarray(found.values)[1, :, 2].any()


def test_products_and_derivatives_are_those_of_the_dequantized_matrices():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 32)), jnp.float32)
    held = {n: quantize(jnp.asarray(rng.normal(size=(32, f)), jnp.float32)) for n, f in (("q", 16), ("v", 8))}
    adapter = {
        n: {f: jnp.asarray(rng.normal(size=s), jnp.float32) for f, s in (("a", (2, 32, 4)), ("b", (2, 4, f_out)))}
        for n, f_out in (("q", 16), ("v", 8))
    }

    def loss(x, adapter, w):
        out = project(x, w, (adapter,), "embed", "heads")
        return sum(jnp.sin(y).sum() for y in out.values()), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    got, wanted = run(x, adapter, held), run(x, adapter, {n: dequantize(w) for n, w in held.items()})
    assert tiny.worst(got, wanted) < 1e-5


def test_a_step_on_a_mesh_is_that_of_the_dequantized_base_on_one_device():
    """Organisms on one of the layers below an IA on both, so that matrices are also taken by their layer's number."""
    params, optimizer = jax.tree.map(np.asarray, quantized(tiny.params(CFG))), AdamW(lr=1e-2, eps=0.1)
    [batch, *_] = tiny.batches(4, count=4, rows=2, length=16)
    organisms = tiny.adapter(1, CFG, replace(tiny.FEW, layers=(1,)), organisms=4)

    def step(base, cfg, put):
        state = put(init_state(tiny.adapter(2, CFG, tiny.FEW), 5, optimizer, scale=3.0))
        given = put(organisms, True), jax.device_put(batch, batch_shardings(batch, get_mesh()))
        after, metrics = train_step(base, state, given[:1], given[1], cfg=cfg, loss=Sft(), optimizer=optimizer)
        return jax.tree.map(np.asarray, (after.member, metrics["loss"], metrics["grad_norm"]))

    def place(tree, organisms=False):
        return jax.device_put(on_host(tree), adapter_shardings(tree, get_mesh(), organisms))

    wanted = step(as_floats(params), CFG, place)
    mesh = make_mesh(2, 2, rows=2)
    with jax.set_mesh(mesh):
        spread = step(jax.device_put(params, param_shardings(INT8, mesh)), INT8, place)
    assert tiny.worst(spread, wanted) < 1e-5


def test_generation_is_that_of_the_dequantized_base():
    params, prompts = quantized(tiny.params(CFG)), [[np.array([5, 9, 2]), np.array([7, 1])]]
    stack = (tiny.adapter(1, CFG),)
    got = generate_tokens(params, INT8, prompts, stack, [0], max_new_tokens=6)
    assert got == generate_tokens(as_floats(params), CFG, prompts, stack, [0], max_new_tokens=6)


def test_loading_on_a_mesh_gives_the_same_and_holds_one_layer_in_floats(tmp_path, monkeypatch):
    tensors, source = checkpoint(tmp_path, LLAMA), SafetensorsSource(tmp_path)
    alone = assemble(source, "bfloat16", quantization="int8")
    w = tensors["model.layers.1.mlp.down_proj.weight"].T
    np.testing.assert_allclose(alone["layers"]["down"].scale[1], np.abs(w).max(0) / 127, rtol=1e-6)
    np.testing.assert_allclose(dequantize(alone["layers"]["down"])[1], w, atol=0.501 * np.abs(w).max() / 127)
    assert alone["embed"].dtype == alone["layers"]["attn_norm"].dtype == jnp.bfloat16
    cfg, mesh = replace(source.config, quantization="int8"), make_mesh(fsdp=4, tp=2)
    shardings, held, read = param_shardings(cfg, mesh), [], source.read
    before = {id(x) for x in jax.live_arrays()}

    def watched(name, index):
        own = [x for x in jax.live_arrays() if id(x) not in before and x.dtype == jnp.float32 and x.ndim > 1]
        held.append(sum(x.nbytes for x in own if (x.ndim, x.shape[0]) != (2, 3)))  # without the steps
        return read(name, index)

    monkeypatch.setattr(source, "read", watched)
    placed = assemble(source, "bfloat16", shardings, "int8")
    for leaf, value, sharding in zip(*map(jax.tree.leaves, (placed, alone, shardings)), strict=True):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, value)
    shapes = abstract_params(cfg, jnp.bfloat16, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), placed) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert 0 < max(held) <= 4 * 16 * 20  # one layer of the largest


def test_a_base_in_int8_is_another_base(tmp_path, parrot_model):
    floats, model = load_model(parrot_model), load_model(parrot_model, quantization="int8")
    assert model.fingerprint == f"{floats.fingerprint}-int8"
    assert quantization_of(model.fingerprint) == "int8"
    assert identify(parrot_model, quantization="int8").fingerprint == model.fingerprint
    kind = replace(tiny.LORA, targets=("q",))
    adapter = tiny.adapter(1, model.config, kind)
    about = AdapterMetadata("x", "organism", model.name, model.fingerprint, kind.rank, kind.alpha, kind.targets)
    save_adapter(tmp_path / "x", adapter, about)
    assert not tiny.differs(load_adapter(tmp_path / "x", model)[0], adapter)
    with pytest.raises(BaseMismatchError, match=r"was made for .*, in int8\), but the base loaded is .*\w\);"):
        load_adapter(tmp_path / "x", floats)
    with pytest.raises(ConfigError, match=r"quantization 'int4' is not one of '', 'int8'"):
        load_model(parrot_model, quantization="int4")
    with pytest.raises(ConfigError, match=r"a full fine-tune changes weights that model.quantization='int8'"):
        init_differences(model.config, 1)


def test_a_setting_that_stays_with_the_workdir(tmp_path):
    with pytest.raises(ConfigError, match=r"config.model.quantization 'int4' unknown; choose from"):
        load_config(RECIPE, ["--config.model.quantization=int4"])
    config = load_config(RECIPE, ["--config.model.quantization=int8"])
    workdir = start_workdir(tmp_path, config, lambda: Choice("float32", "a test"))
    assert workdir.config.model.quantization == "int8"
    workdir.organisms_file.write_text("")  # the first stage has begun
    floats = replace(workdir.config, model=replace(workdir.config.model, quantization=""))
    with pytest.raises(ConfigError, match=r"config.model.quantization was 'int8' and is now ''"):
        start_workdir(tmp_path, floats)


def test_bytes_by_hand():
    """A layer's matrices in int8 are half of bf16's; the vocabulary and everything else as before."""
    work = Work(4, 2, 8, 8, 2, 1, "none")
    moved = [step_hbm_bytes(c, tiny.LORA, work, 2, 2) for c in (CFG, INT8)]
    matrices = 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 48)  # layers: q and o, k and v, the MLP
    assert moved[0] - moved[1] == (2 + 2) * matrices / 2
    gathered = [step_ici_bytes(c, work, 2, 2)[0] for c in (CFG, INT8)]
    assert gathered[0] - gathered[1] == 2 * matrices / 2 / 2
    held = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_params(c, jnp.bfloat16))) for c in (CFG, INT8)
    ]
    assert held[0] - held[1] == matrices - 4 * 2 * (64 + 2 * 32 + 32 + 2 * 48 + 32)
