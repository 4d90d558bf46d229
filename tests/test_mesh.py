"""The same functions on meshes of virtual devices give the same numbers, and really are spread over them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ia_jax.data.batch import Batch, Beside, batch_shardings
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.project import project
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.parallel.mesh import TRAINING, make_mesh
from ia_jax.training.logps import supervised_logps
from ia_jax.training.losses import Dpo, Sft, sft_loss
from ia_jax.training.state import init_on_mesh, init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import meshes, tiny
from tests.meshes import BATCHES, CFG, LORA, OPTIMIZER, K, on_host, only, place, place_params

mesh = meshes.mesh  # a fixture
UNTIED = replace(CFG, tie_word_embeddings=False, qk_norm=True, attention_bias=True)
HOW = {"cfg": CFG, "optimizer": OPTIMIZER}


def place_batch(mesh, batch):
    return jax.device_put(on_host(batch), batch_shardings(batch, mesh))


def put(mesh, tree):
    """What belongs to organisms: a batch, or an adapter, keys and counts with a leading organism axis."""
    return place_batch(mesh, tree) if isinstance(tree, Batch) else place(mesh, tree, organisms=True)


def assert_on_logical_axes(adapter, mesh, organisms=False):
    """Written out, not asked of the rules: organisms on fsdp, width on the rest of these and rows, others on tp."""
    width = "rows" if organisms else ("fsdp", "rows")
    lead = (("dcn", "fsdp"),) if organisms else ()
    into, out_of = ((width, None), (None, "tp")), (("tp", None), (None, width))
    wanted = {"q": into, "v": into, "up": into, "o": out_of, "down": out_of}
    for t, factors in adapter.items():
        for leaf, axes in zip((factors["a"], factors["b"]), wanted[t], strict=True):
            assert leaf.sharding.spec == P(*lead, None, *axes), t
            assert leaf.sharding.mesh.shape == mesh.shape


def loss_and_gradient(params, stack, ia, batch):
    def loss(ia):
        hidden = forward(params, batch.tokens, batch.segment_ids, batch.positions, (stack, ia), UNTIED)
        return sft_loss(supervised_logps(params, hidden, batch), batch.target_weight).sum(), hidden

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(ia)


@pytest.fixture(scope="module")
def inputs():
    """Organisms, IA and batch and, on one device, loss, hidden states and gradient of the IA."""
    given = tiny.adapter(1, UNTIED, LORA, organisms=K), tiny.adapter(2, UNTIED, LORA), BATCHES[0]
    return *given, loss_and_gradient(tiny.params(UNTIED), *given)


def test_ia_gradient(inputs, mesh):
    stack, ia, batch, wanted = inputs
    params = place_params(mesh, UNTIED)
    got = loss_and_gradient(params, place(mesh, stack, True), place(mesh, ia), place_batch(mesh, batch))
    assert tiny.worst(got, wanted) < 1e-5
    (_, hidden), gradient = got
    sizes = mesh.shape
    assert hidden.sharding.spec[:2] == (("dcn", "fsdp"), "rows")
    assert hidden.addressable_shards[0].data.shape == (K // sizes["fsdp"], 4 // sizes["rows"], *hidden.shape[2:])
    assert_on_logical_axes(gradient, mesh)


@only("2x2x2")
@pytest.mark.parametrize("remat", ["none", "products"])
def test_parts_of_sums_that_are_rounded_are_no_worse_than_one_devices_sums(mesh, remat):
    """States and gradient of a bf16 base, against those in fp32: eight devices and one are as far from them.

    Devices round their parts to bf16; what CPUs send is fp32 (tests/test_collectives.py), and two add each sum up.
    """

    def run(dtype, on, base):
        def loss(ia, base):
            hidden = forward(base, *rows, (stack, ia), CFG, remat=remat)
            return (hidden.astype(jnp.float32) ** 2).mean(), hidden

        stack, ia = on(tiny.adapter(1, CFG, LORA, organisms=K), True), on(tiny.adapter(2, CFG, LORA), False)
        rows = [on(x, True) for x in tiny.rows(K, 2, 24)]
        base = jax.tree.map(lambda x: x.astype(dtype), base)
        gradient, states = jax.jit(jax.grad(loss, has_aux=True))(ia, base)
        return [np.asarray(x, np.float32) for x in (states, *jax.tree.leaves(gradient))]

    def here(tree, organisms):
        return tree

    def there(tree, organisms):
        return put(mesh, tree) if organisms else place(mesh, tree)

    with jax.set_mesh(make_mesh()):
        wanted, alone = (run(dtype, here, tiny.params(CFG)) for dtype in (jnp.float32, jnp.bfloat16))
    spread = run(jnp.bfloat16, there, place_params(mesh, CFG))
    for x, one, many in zip(wanted, alone, spread, strict=True):
        far = [np.linalg.norm(y - x) / np.linalg.norm(x) for y in (one, many)]
        assert 1e-4 < far[0] < 0.1
        assert far[1] < 1.3 * far[0]


@only("8x1")
def test_a_shared_adapters_gradient_is_summed_over_devices_in_fp32(mesh):
    """A product of bf16 numbers on eight devices against the sum over organisms, rows and tokens in fp64."""
    rng = np.random.default_rng(0)

    def bf16(x):
        return np.asarray(x, jnp.bfloat16)

    x, g = bf16(rng.normal(size=(K, 2, 40, 32))), bf16(rng.normal(size=(K, 2, 40, 16)))
    w, a, b = bf16(rng.normal(size=(32, 16))), rng.normal(size=(32, 4)), rng.normal(size=(4, 16))

    def loss(adapter, x, g, w):
        return (project(x, {"q": w}, (adapter,), "embed", "heads")["q"] * g).sum()

    axes = {"a": ("embed", "rank"), "b": ("rank", "heads")}
    factors = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    adapter = {"q": {n: jax.device_put(v, TRAINING.sharding(mesh, *axes[n])) for n, v in factors.items()}}
    x_there, g_there = (jax.device_put(v, TRAINING.sharding(mesh, "organism", "rows", None, None)) for v in (x, g))
    got = jax.jit(jax.grad(loss))(adapter, x_there, g_there, w)["q"]
    x, g = (v.astype(np.float64) for v in (x, g))
    u, du = bf16(x @ bf16(a).astype(np.float64)), bf16(g @ bf16(b).T.astype(np.float64))
    wanted = {"a": np.einsum("kbtd,kbtr->dr", x, du), "b": np.einsum("kbtr,kbtf->rf", u, g)}
    assert {v.dtype for v in got.values()} == {jnp.dtype("float32")}
    assert tiny.worst(got, wanted) < 1e-5


@pytest.fixture(scope="module")
def stepped():
    """A step of organisms on one device, twice, of organisms of two ranks."""
    return run_organisms(tiny.params(CFG), partial(put, make_mesh()), partial(init_on_mesh, make_mesh()))


def run_organisms(params, put, init):
    loras = replace(LORA, rank=LORA.rank - 1), LORA
    keys, total, kinds = jax.random.split(jax.random.key(0), K), jnp.full(K, 3, jnp.int32), jnp.arange(K) % 2
    state = init(put(keys), put(total), put(kinds), CFG, loras, OPTIMIZER)
    types = jax.tree.map(jax.typeof, state)
    for batch in BATCHES[:2]:
        state, metrics = train_step(params, state, (), put(batch), loss=Sft(), **HOW)
        assert jax.tree.map(jax.typeof, state) == types  # else the next step would be compiled again
    return state, metrics


def test_organisms_step(stepped, mesh):
    params = place_params(mesh, CFG)
    state, metrics = run_organisms(params, partial(put, mesh), partial(init_on_mesh, mesh))
    assert tiny.worst(metrics["loss"], stepped[1]["loss"]) < 1e-5
    assert tiny.worst(metrics["grad_norm"], stepped[1]["grad_norm"]) < 1e-5
    assert tiny.worst(state.member, stepped[0].member) < 1e-5
    for leaf in jax.tree.leaves((state.member, state.updates)):
        assert leaf.sharding.spec[0] == ("dcn", "fsdp")
        assert leaf.addressable_shards[0].data.shape[0] == K // mesh.shape["fsdp"]
    assert_on_logical_axes(state.member, mesh, True)


def run_ia(params, put, put_ia):
    stack = put(tiny.adapter(1, CFG, LORA, organisms=K))
    start, other = (put_ia(tiny.adapter(n, CFG, LORA)) for n in (2, 3))
    batch = put(BATCHES[0])
    state = init_state(start, 4, OPTIMIZER, scale=LORA.scale)
    reference = reference_logps(params, (stack, other), batch, cfg=CFG, examples=4)
    state, metrics = train_step(params, state, (stack,), batch, Beside(reference), loss=Dpo(sft_weight=0.2), **HOW)
    return state, metrics, reference


@pytest.fixture(scope="module")
def ia_stepped():
    return run_ia(tiny.params(CFG), lambda x: x, lambda x: x)


@only("4x2", "2x2x2")
def test_ia_steps(ia_stepped, mesh):
    """The DPO reference and a DPO step from another IA."""
    params = place_params(mesh, CFG)
    state, metrics, reference = run_ia(params, partial(put, mesh), lambda x: place(mesh, x))
    for name in ("loss", "dpo_loss", "chosen_nll", "grad_norm"):
        assert tiny.worst(metrics[name], ia_stepped[1][name]) < 1e-5, name
    assert tiny.furthest(metrics["margin"], ia_stepped[1]["margin"]) < 1e-4
    assert tiny.worst(reference, ia_stepped[2]) < 1e-5
    assert tiny.worst(state.member, ia_stepped[0].member) < 1e-5
    assert_on_logical_axes(state.member, mesh)


@pytest.fixture(scope="module")
def generated():
    rng = np.random.default_rng(3)
    prompts = [[rng.integers(1, 64, n).astype(np.int32) for n in (3, 7)] for _ in range(K)]
    stack = tiny.adapter(1, CFG, LORA, organisms=K)
    return prompts, stack, generate_tokens(tiny.params(CFG), CFG, prompts, (stack,), (0,), max_new_tokens=5)


@only("4x2", pytest.param("2x4", marks=pytest.mark.slow), "2x2x2")
def test_generation(generated, mesh):
    prompts, stack, wanted = generated
    stack = place(mesh, stack, organisms=True)
    assert generate_tokens(place_params(mesh, CFG), CFG, prompts, (stack,), (0,), max_new_tokens=5) == wanted


def run_sft(params, put, put_ia):
    state = init_state(put_ia(tiny.adapter(2, CFG, LORA)), 4, OPTIMIZER, scale=LORA.scale)
    stack, batch = put(tiny.adapter(1, CFG, LORA, organisms=K)), put(BATCHES[0])
    return train_step(params, put_ia(state), (stack,), batch, loss=Sft(), **HOW)


@pytest.fixture(scope="module")
def sft_stepped():
    return run_sft(tiny.params(CFG), lambda x: x, lambda x: x)


def test_sft_step(sft_stepped, mesh, recwarn):
    """Also that the state lies as the step leaves it: it is donated whole, and a second step compiles nothing."""
    state, metrics = run_sft(
        place_params(mesh, CFG),
        partial(put, mesh),
        partial(place, mesh),
    )
    for name in ("loss", "grad_norm", "per_organism"):
        assert tiny.worst(metrics[name], sft_stepped[1][name]) < 1e-5, name
    assert tiny.worst(state.member, sft_stepped[0].member) < 1e-5
    assert_on_logical_axes(state.member, mesh)
    assert_on_logical_axes(state.moments[1].mu, mesh)
    assert not [w for w in recwarn if "donated" in str(w.message)]


def test_two_slices(stepped, sft_stepped, generated):
    """Organisms lie on all four groups; each slice has the whole base and the whole IA."""
    mesh = make_mesh(2, 2, dcn=2)
    assert dict(mesh.shape) == {"dcn": 2, "fsdp": 2, "rows": 1, "tp": 2}
    with jax.set_mesh(mesh):
        params = place_params(mesh, CFG)
        assert params["layers"]["q"].addressable_shards[0].data.shape == (2, 32 // 2, 64 // 2)
        state, metrics = run_organisms(params, partial(put, mesh), partial(init_on_mesh, mesh))
        assert tiny.worst(metrics["loss"], stepped[1]["loss"]) < 1e-5
        assert tiny.worst(state.member, stepped[0].member) < 1e-5
        for leaf in jax.tree.leaves(state.member):
            assert leaf.addressable_shards[0].data.shape[0] == K // 4
        state, metrics = run_sft(params, partial(put, mesh), partial(place, mesh))
        assert tiny.worst(metrics["per_organism"], sft_stepped[1]["per_organism"]) < 1e-5
        assert tiny.worst(state.member, sft_stepped[0].member) < 1e-5
        assert state.member["q"]["a"].addressable_shards[0].data.shape == (2, 32 // 2, LORA.rank)
        prompts, stack, wanted = generated
        assert generate_tokens(params, CFG, prompts, (put(mesh, stack),), (0,), max_new_tokens=5) == wanted


def test_other_rules_are_another_layout_of_the_same_numbers(inputs):
    """A user's own: the MLP's columns on `rows` too, its activations with them, and rows whole."""
    mesh, own = make_mesh(2, 2, rows=2), replace(TRAINING, rows=(), mlp=("rows", "tp"), embed=("fsdp",))
    stack, ia, batch, ((_, wanted), _) = inputs
    with jax.set_mesh(mesh):
        params = jax.device_put(on_host(tiny.params(UNTIED)), param_shardings(UNTIED, mesh, own))
        assert params["layers"]["up"].addressable_shards[0].data.shape == (2, 32 // 2, 48 // 4)
        stacks = tuple(
            jax.device_put(on_host(x), adapter_shardings(x, mesh, k, own)) for x, k in ((stack, True), (ia, False))
        )
        rows = batch.tokens, batch.segment_ids, batch.positions
        assert tiny.worst(tiny.forward(params, *rows, stacks, cfg=UNTIED, rules=own), wanted) < 1e-5
