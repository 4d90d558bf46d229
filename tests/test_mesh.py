"""The same functions on meshes of virtual devices give the same numbers, and really are spread over them.

A mesh is named by its sizes: fsdp x tp, or fsdp x rows x tp.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ia_jax import api
from ia_jax.data.batch import Batch, Beside, batch_shardings
from ia_jax.errors import ConfigError
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.project import project
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.models.weights import Model
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh, mesh_of
from ia_jax.training.checkpoints import Keeper
from ia_jax.training.logps import supervised_logps
from ia_jax.training.losses import Dpo, Sft, sft_loss
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_on_mesh, init_state
from ia_jax.training.trainer import reference_logps, train_step
from tests import tiny

CFG = replace(tiny.TINY, num_attention_heads=8, num_key_value_heads=4)
UNTIED = replace(CFG, tie_word_embeddings=False, qk_norm=True, attention_bias=True)
# A large eps: else Adam divides rounding errors by rounding errors.
OPTIMIZER = AdamW(lr=1e-2, clip_norm=0.5, weight_decay=0.1, eps=0.1)
LORA = tiny.FEW
HOW = {"cfg": CFG, "optimizer": OPTIMIZER}
K = 8
BATCHES = tiny.batches(K, count=6, rows=4, length=24)  # rows that any of the meshes divides


def mesh_named(name):
    fsdp, *rows, tp = map(int, name.split("x"))
    return make_mesh(fsdp, tp, rows=rows[0] if rows else 1)


# Each axis alone or with others in the first three; the others differ in sizes.
@pytest.fixture(
    params=["8x1", "4x2", "2x2x2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("2x4", "1x4x2", "2x4x1"))]
)
def mesh(request):
    made = mesh_named(request.param)
    with jax.set_mesh(made):
        yield made


def only(*names):
    return pytest.mark.parametrize("mesh", names, indirect=True)


def on_host(tree):
    """Host arrays are placed without compiling a program for every shape."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), tree)


def place_params(mesh, cfg):
    return jax.device_put(on_host(tiny.params(cfg)), param_shardings(cfg, mesh))


def place(mesh, tree, organisms=False):
    """An adapter, or a training state, on its logical axes."""
    return jax.device_put(on_host(tree), adapter_shardings(tree, mesh, organisms))


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


@pytest.mark.parametrize(
    ("fsdp", "tp", "message"),
    [
        (2, 3, "tp=3 does not divide the model's 4 key/value heads; set --config.mesh.tp to one of: 1, 2, 4"),
        (3, 2, "fsdp=3 does not divide the model's 32 hidden size"),
        (1, 8, "tp=8 does not divide the model's 4 key/value heads"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(fsdp, tp, message):
    with pytest.raises(ConfigError, match=message):
        param_shardings(CFG, make_mesh(fsdp, tp))


def test_rows_that_do_not_divide_the_model():
    mesh = make_mesh(2, rows=4)
    said = r"fsdp=2 x rows=4 does not divide the model's 36 hidden size; set --config\.mesh\.fsdp to one of: 1, 3, 9$"
    with pytest.raises(ConfigError, match=said):
        param_shardings(replace(CFG, hidden_size=36), mesh)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("vocab_size", "tp=2 does not divide the model's 63 vocabulary entries; set --config.mesh.tp to one of: 1$"),
        ("intermediate_size", "tp=2 does not divide the model's 63 MLP columns"),
        ("num_attention_heads", "tp=2 does not divide the model's 63 query heads"),
    ],
)
def test_a_mesh_that_does_not_divide_one_size(field, message):
    with pytest.raises(ConfigError, match=message):
        param_shardings(replace(CFG, **{field: 63}), make_mesh(4, 2))


@only("2x2x2")
@pytest.mark.parametrize(
    ("organisms", "rows", "message"),
    [
        (3, 2, "3 organisms at once do not divide over mesh fsdp=2; choose a multiple of it for organisms.parallel"),
        (2, 3, "3 rows of an organism do not divide over mesh rows=2; choose a multiple of it for organisms.rows"),
    ],
)
def test_a_batch_that_does_not_divide_over_the_mesh(mesh, organisms, rows, message):
    with pytest.raises(ConfigError, match=message):
        forward(place_params(mesh, CFG), *tiny.rows(organisms, rows, 4), (), CFG)


@only("4x2", "2x2x2")
@pytest.mark.parametrize("organisms", [None, 3], ids=["none", "3"])
def test_generation_of_what_does_not_divide(mesh, organisms):
    """The base, or one shared adapter, over rows that are spread; three organisms, of three rows, on the groups."""
    rng = np.random.default_rng(3)
    prompts = [[rng.integers(1, 64, n).astype(np.int32) for n in (3, 7, 5)] for _ in range(organisms or 1)]
    stack, params = (on_host(tiny.adapter(1, CFG, LORA, organisms=organisms)),), on_host(tiny.params(CFG))

    def sample(params):
        key = jax.random.key(7)
        return generate_tokens(params, CFG, prompts, stack, (0,), max_new_tokens=5, temperature=1.0, key=key)

    got = sample(place_params(mesh, CFG))
    with jax.set_mesh(make_mesh(1, 1)):
        wanted = sample(params)
    assert got == wanted
    assert [len(rows) for rows in got] == [3] * (organisms or 1)


@only("4x2", "2x2x2")
def test_rows_of_a_notebook_that_do_not_divide(mesh):
    """Three rows on four groups of devices."""
    tokens, adapters = np.random.default_rng(4).integers(1, 64, (3, 6)), (on_host(tiny.adapter(1, CFG, LORA)),)
    model = Model(CFG, place_params(mesh, CFG), None, "tiny", "")
    got = api.logits(model, tokens, adapters), api.hidden_states(model, tokens, adapters)
    with jax.set_mesh(make_mesh(1, 1)):
        model = Model(CFG, place_params(make_mesh(1, 1), CFG), None, "tiny", "")
        wanted = api.logits(model, tokens, adapters), api.hidden_states(model, tokens, adapters)
    assert [x.shape for x in got] == [(3, 6, 64), (3, 3, 6, 32)]
    assert tiny.worst(got, wanted) < 1e-5


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


def test_slices_that_the_mesh_does_not_know():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(ConfigError, match=r"fsdp=4 x tp=2 is over 2 slices; set --config\.mesh\.dcn=2"):
        make_mesh(4, 2, devices=devices)


def test_base_weights_are_spread():
    mesh = make_mesh(4, 2)
    params = place_params(mesh, CFG)
    assert params["layers"]["q"].addressable_shards[0].data.shape == (2, 32 // 4, 64 // 2)
    assert params["layers"]["down"].addressable_shards[0].data.shape == (2, 48 // 2, 32 // 4)
    assert params["embed"].addressable_shards[0].data.shape == (64 // 2, 32 // 4)


def test_mesh_is_explicit():
    mesh = make_mesh(2, 4)
    assert mesh.axis_names == ("dcn", "fsdp", "rows", "tp")
    assert mesh.axis_types == (AxisType.Explicit,) * 4


def test_a_mesh_axis_is_used_once():
    assert TRAINING.spec("organism", "layers", "embed", "rank") == P(("dcn", "fsdp"), None, "rows", None)
    assert TRAINING.spec("layers", "embed", "heads") == P(None, ("fsdp", "rows"), "tp")
    assert DECODING.spec("layers", "embed", "heads") == P(None, None, "tp")


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


def test_a_program_on_no_mesh():
    with (
        ThreadPoolExecutor(1) as thread,  # a mesh is set for a thread alone
        pytest.raises(ConfigError, match=r"no mesh is set; write `with jax\.set_mesh\(make_mesh\(\)\):`"),
    ):
        thread.submit(forward, tiny.params(CFG), *tiny.rows(1, 1, 3), (), CFG).result()
    with pytest.raises(ConfigError, match="these arrays lie on no mesh"):
        mesh_of(jax.device_put(np.zeros(2), jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    other = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(other), pytest.raises(ConfigError, match="the mesh has the axes data; make it with make_mesh"):
        forward(tiny.params(CFG), *tiny.rows(1, 1, 3), (), CFG)


def test_too_few_devices():
    with pytest.raises(ConfigError, match="needs 16 devices, 8 are visible"):
        make_mesh(8, 2)
    with pytest.raises(ConfigError, match="mesh dcn=2 x fsdp=4 x tp=2 needs 16 devices"):
        make_mesh(4, 2, dcn=2)


MESHES = ("1x1", "8x1", "4x2", "2x2x2")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A training state with moments, written by `Keeper` from every mesh."""
    state = init_state(tiny.adapter(2, CFG, LORA), 4, OPTIMIZER, scale=LORA.scale)
    state = jax.tree.map(lambda x: np.asarray(x) + np.arange(x.size, dtype=x.dtype).reshape(x.shape), state)
    root = tmp_path_factory.mktemp("kept")
    for name in MESHES:
        with jax.set_mesh(mesh_named(name)), Keeper(root / name) as keeper:
            keeper.save(3, place(mesh_named(name), state), iterator(7))
    return root, state


def iterator(place):
    """The data's iterator, which is kept beside the state."""
    data = iter(grain.MapDataset.range(100).to_iter_dataset())
    for _ in range(place):
        next(data)
    return data


@pytest.mark.parametrize("onto", MESHES)
@pytest.mark.parametrize("written", MESHES)
def test_a_checkpoint_of_one_mesh_loads_on_each_other(kept, written, onto):
    root, state = kept
    shardings = adapter_shardings(state, mesh_named(onto))
    with jax.set_mesh(mesh_named(onto)), Keeper(root / written) as keeper:
        step, loaded = keeper.restore(
            jax.device_put(jax.tree.map(np.zeros_like, state), shardings), data := iterator(0)
        )
    assert (step, next(data)) == (3, 7)
    assert not tiny.differs(loaded, state)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, loaded, shardings)))
