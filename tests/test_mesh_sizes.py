"""What a mesh is and what fits on one: sizes that do not divide, slices, no mesh, checkpoints from one to another."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import grain
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ia_jax import api
from ia_jax.errors import ConfigError
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import forward, param_shardings
from ia_jax.models.weights import Model
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh, mesh_of
from ia_jax.training.checkpoints import Keeper
from ia_jax.training.state import init_state
from tests import meshes, tiny
from tests.meshes import CFG, LORA, OPTIMIZER, mesh_named, on_host, only, place, place_params

mesh = meshes.mesh  # a fixture


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
