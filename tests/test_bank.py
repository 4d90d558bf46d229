"""The bank: a step picks from it what the store holds, bit for bit, on any mesh; and no adapter crosses devices."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ia_jax.adapters import bank as banks
from ia_jax.adapters import shelf, store
from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.likeness import cosines
from ia_jax.data.batch import Beside
from ia_jax.errors import BaseMismatchError, CheckpointError
from ia_jax.models import lora as loras
from ia_jax.models.lora import (
    PROJECTIONS,
    LoraConfig,
    Picked,
    adapter_shardings,
    has_organism_axis,
    projection_sizes,
    to_scan,
)
from ia_jax.models.sampling import decode, generate_tokens
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import TRAINING, make_mesh, pad_to_mesh
from ia_jax.planning.hlo import collectives
from ia_jax.training.losses import Dpo, Sft, sft_loss
from ia_jax.training.state import init_state
from ia_jax.training.trainer import _token_logps, train_step
from tests import tiny
from tests.meshes import CFG, OPTIMIZER
from tests.stored import Base as StoreBase
from tests.stored import files_below, metadata

BASE = StoreBase(config=CFG)
KINDS = [LoraConfig(4, 8.0), LoraConfig(2, 2.0, ("q", "down")), LoraConfig(5, 5.0, ("v", "o", "up"))]
IA = LoraConfig(3, 6.0)
COUNT = 64
MESHES = {"1x1": (1, 1), "8x1": (8, 1), "4x2": (4, 2)}


def organism(i):
    return jax.tree.map(np.asarray, tiny.adapter(i, CFG, KINDS[i % 3]))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("organisms")
    for i in range(COUNT):
        lora = KINDS[i % 3]
        fields = {"rank": lora.rank, "alpha": lora.alpha, "targets": lora.targets}
        store.save_adapter(root / str(i), organism(i), metadata(str(i), **fields))
    return [root / str(i) for i in range(COUNT)]


@pytest.fixture(params=MESHES.values(), ids=MESHES)
def mesh(request):
    made = make_mesh(*request.param)
    with jax.set_mesh(made):
        yield made


def only(*names):
    return pytest.mark.parametrize("mesh", [MESHES[n] for n in names], ids=names, indirect=True)


@cache
def load_once(directory):
    return jax.tree.map(np.asarray, store.load_adapter(directory, BASE)[0])


def by_hand(directories, organisms, rank, targets, dtype=np.float32):
    """The stack [K, ...] of `load_adapter`, one by one, filled up with zeros in plain loops."""
    sizes = {t: (ab["a"].shape, ab["b"].shape) for t, ab in tiny.adapter(0, CFG, LoraConfig(rank, 1.0)).items()}
    out = {t: {n: np.zeros((len(organisms), *s), dtype) for n, s in zip("ab", sizes[t], strict=True)} for t in targets}
    for k, i in enumerate(organisms):
        if i is not None:
            for t, ab in load_once(directories[i]).items():
                r = ab["a"].shape[-1]
                out[t]["a"][k, :, :, :r] = ab["a"]
                out[t]["b"][k, :, :r] = ab["b"]
    return out


def picked_on_host(picked, dtype=jnp.float32):
    """What a step sees, [K, ...]."""
    scanned = jax.jit(lambda p: to_scan((p,), dtype=jnp.dtype(dtype))[0])(picked)
    return jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1), scanned)


def same_bits(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True)
    )


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, jnp.float32), (5, jnp.bfloat16), (COUNT, jnp.float32)], ids=["1", "5 bf16", "64"]
)
def test_resident_and_streamed_are_what_is_stored(stored, mesh, count, dtype, capsys):
    mine = stored[:count]
    resident = open_bank(mine, BASE, mesh, dtype=dtype, zeros=1)
    assert capsys.readouterr().out == ""
    streamed = open_bank(mine, BASE, mesh, dtype=dtype, zeros=1, budget_bytes=0, cache_bytes=1 << 14)
    assert re.match(rf"organisms: {count} adapters take .* of each device .*streamed", capsys.readouterr().out)
    assert resident.resident is not None
    assert streamed.resident is None
    assert len(resident) == len(streamed) == count + 1
    assert resident.hashes == streamed.hashes == [*(store.read_metadata(d).content_hash for d in mine), "zero"]
    batches = resident.arrange(range(count + 1), 16)
    assert sorted(i for batch in batches for i in batch if i is not None) == list(range(count + 1))
    targets = tuple(resident.lora.targets)
    for batch in batches:
        wanted = by_hand(mine, [None if i == count else i for i in batch], resident.lora.rank, targets, dtype)
        for bank in (resident, streamed):
            assert same_bits(picked_on_host(bank.take(batch), dtype), wanted)


def test_every_device_holds_its_own_organisms(stored, mesh):
    bank = open_bank(stored[:13], BASE, mesh, dtype=jnp.float32)
    rows = -(-13 // bank.groups)
    all_of_them = by_hand(stored, range(13), 5, PROJECTIONS)
    for t, ab in bank.resident.items():
        for n, x in ab.items():
            assert x.shape[0] == rows * bank.groups
            for shard in x.addressable_shards:
                group, data = (shard.index[0].start or 0) // rows, np.asarray(shard.data)
                assert len(data) == rows
                for row in range(rows):
                    i = row * bank.groups + group
                    wanted = all_of_them[t][n][i][shard.index[1:]] if i < 13 else np.zeros_like(data[row])
                    np.testing.assert_array_equal(data[row], wanted)


@only("4x2")
def test_each_file_is_read_once(stored, mesh, monkeypatch):
    read, true = [], store.read_arrays
    monkeypatch.setattr(store, "read_arrays", lambda path, names: read.append(path.name) or true(path, names))
    bank = open_bank(stored, BASE, mesh, dtype=jnp.float32)
    for batch in bank.arrange(range(COUNT), 8) * 2:
        bank.take(batch)
    assert sorted(read) == sorted(d.name for d in stored)


@only("8x1")
def test_batches_leave_every_organism_at_home(stored, mesh):
    bank = open_bank(stored[:21], BASE, mesh, dtype=jnp.float32, zeros=1, budget_bytes=0)
    asked = [3, 19, 21, 11, 0, 16]  # three of group 3, two of group 0, and the clean one
    assert bank.arrange(asked, 8) == [
        [0, 21, None, 3, None, None, None, None],
        [16, None, None, 19, None, None, None, None],
        [None, None, None, 11, None, None, None, None],
    ]
    assert [len(batch) for batch in bank.arrange(asked, 9)] == [16, 16]  # filled evenly, one program
    [one] = bank.arrange(asked, 100)
    assert one[9:12] == [3, 19, 11]  # group 3's part of three positions
    assert bank.arrange([], 8) == []
    for organisms, message in (
        ([*range(7), 8], "organism 8 lives in group 0, but position 7 of 8 is group 7's"),
        ([0] * 7, "7 organisms are no multiple of the mesh's 8 groups"),
        ([], "0 organisms"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.take(organisms)
    with pytest.raises(IndexError, match=r"no organism 22, but 0 … 21"):
        bank.take([22, *[None] * 7])


@only("1x1", "4x2")
def test_what_is_missing_damaged_or_of_another_base_is_named_at_the_start(stored, mesh, tmp_path):
    open_it = partial(open_bank, base=BASE, mesh=mesh, dtype=jnp.float32)
    with pytest.raises(CheckpointError, match=r"absent: no adapter is stored there"):
        open_it([*stored[:2], tmp_path / "absent"])
    with pytest.raises(BaseMismatchError, match="made for tiny"):
        open_it(stored[:2], base=replace(BASE, fingerprint="b" * 64))
    store.save_adapter(tmp_path / "bad", organism(0), metadata("bad"))
    leaf = organism(0)["up"]["a"].tobytes()
    file = next(f for f in files_below(tmp_path / "bad") if leaf in f.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(leaf) + 5] ^= 16
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bad: the adapter is corrupt: leaf up\.a is not what was saved"):
        open_it([*stored[:7], tmp_path / "bad"])
    streamed = open_it([tmp_path / "bad"], budget_bytes=0)
    with pytest.raises(CheckpointError, match=r"leaf up\.a is not what was saved"):
        streamed.take([0, *[None] * (streamed.groups - 1)])


def test_the_host_keeps_no_more_than_it_may(stored):
    one = sum(x.nbytes for x in jax.tree.leaves(by_hand(stored, [0], 5, PROJECTIONS)))
    own = shelf.Shelf(stored[:6], BASE, cache_bytes=2 * one)
    for i in [0, 3, 1, 4, 2, 5, 0]:
        own.read(i)
        assert sum(x.nbytes for x in jax.tree.leaves(list(own._cache.values()))) <= 2 * one
    assert len(own._cache) == 2


def test_reads_ahead_are_bounded_and_in_order():
    began, taken = [], []

    def read(i):
        began.append(i)
        return i

    for i in banks._read_ahead(read, list(range(40)), 5):
        taken.append(i)
        assert len(began) <= len(taken) + 5
    assert taken == list(range(40))


@only("8x1", "4x2")
def test_a_bank_without_organisms_is_the_base(mesh):
    bank = open_bank([], BASE, mesh, dtype=jnp.float32, zeros=1, lora=LoraConfig(2, 2.0))
    [batch] = bank.arrange([0], 8)
    assert not any(x.any() for x in jax.tree.leaves(picked_on_host(bank.take(batch))))
    assert len(bank) == 1


# ------------------------------------------------------------------------------------------------------------ in a step


@pytest.fixture
def placed(stored, mesh):
    """Everything that a step takes, on the mesh: (params, bank, IA state, batch); K organisms have a row each."""
    params = jax.device_put(jax.tree.map(np.asarray, tiny.params(CFG)), param_shardings(CFG, mesh))
    bank = open_bank(stored, BASE, mesh, dtype=jnp.float32, zeros=1)

    def state():
        ia = tiny.adapter(2, CFG, IA)
        made = jax.tree.map(np.asarray, init_state(ia, 4, OPTIMIZER, scale=IA.scale))
        return jax.device_put(made, adapter_shardings(made, mesh))

    batch = jax.tree.map(np.asarray, tiny.batches(8, rows=1, length=40)[0])
    assert batch.tokens.shape == (8, 1, 40)  # no size of the model: see `crossing`
    return params, bank, state, jax.device_put(batch, adapter_shardings(batch, mesh, organisms=True))


def batch_of(bank):
    """Eight positions of seven organisms, each in its own group, and a clean one."""
    [batch] = bank.arrange([48, 33, 2, 51, 12, 37, 54, COUNT], 8)
    assert None not in batch
    return batch


def plain_stack(bank, stored, batch, mesh):
    by = by_hand(stored, [None if i == COUNT else i for i in batch], bank.lora.rank, bank.lora.targets)
    return jax.device_put(by, adapter_shardings(by, mesh, organisms=True))


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@only("1x1", "4x2")
def test_a_step_and_samples_are_those_of_a_plain_stack(stored, placed, mesh, streamed):
    params, bank, state, batch = placed
    if streamed:
        bank = open_bank(stored, BASE, mesh, dtype=jnp.float32, zeros=1, budget_bytes=0)
    positions = batch_of(bank)
    picked, plain = bank.take(positions), plain_stack(bank, stored, positions, mesh)
    assert has_organism_axis(picked)
    step = partial(train_step, cfg=CFG, loss=Sft(), optimizer=OPTIMIZER)
    (got, metrics), (wanted, expected) = (step(params, state(), (o,), batch) for o in (picked, plain))
    for key in ("loss", "per_organism", "grad_norm"):
        np.testing.assert_array_equal(metrics[key], expected[key])
    assert not tiny.differs(got.member, wanted.member)
    if mesh.size == 1 or streamed:
        return
    rng = np.random.default_rng(0)
    prompts = [[rng.integers(1, 64, int(n)).astype(np.int32) for n in rng.integers(3, 9, i % 3)] for i in range(8)]
    said = [
        generate_tokens(
            params, CFG, prompts, (o,), (1,), max_new_tokens=5, temperature=1.0, key=jax.random.key(3), draws=positions
        )
        for o in (picked, plain)
    ]
    assert said[0] == said[1]
    assert [len(own) for own in said[0]] == [len(own) for own in prompts]
    assert len({tuple(r.tokens) for own in said[0] for r in own}) > 4


@only("8x1")
def test_samples_do_not_depend_on_how_organisms_are_batched(stored, placed, mesh):
    """The same organisms in one batch or several, among others or alone: the same draws."""
    params, bank, *_ = placed
    prompt = np.arange(3, 9, dtype=np.int32)

    def sample(organisms, width):
        said = {}
        for batch in bank.arrange(organisms, width):
            prompts = [[] if i is None else [prompt, prompt] for i in batch]
            draws = [0 if i is None else i for i in batch]
            out = generate_tokens(
                params,
                CFG,
                prompts,
                (bank.take(batch),),
                (1,),
                max_new_tokens=5,
                temperature=2.0,
                key=jax.random.key(3),
                draws=draws,
                rows=3,
            )
            said |= {i: own for i, own in zip(batch, out, strict=True) if i is not None}
        return said

    one = sample([3, 11, 19, 8], 32)
    assert sample([8, 19, 3, 11], 8) == one
    assert sample([11], 8) == {11: one[11]}
    assert one[3][0] != one[3][1]


def lowered(kind, placed, organisms):
    params, _, state, batch = placed
    static = {"cfg": CFG, "optimizer": OPTIMIZER}
    if kind == "sft":
        return train_step.lower(params, state(), (organisms,), batch, loss=Sft(), **static)
    if kind == "dpo":
        reference = jax.device_put(np.zeros((8, 2), np.float32), batch.tokens.sharding)
        return train_step.lower(params, state(), (organisms,), batch, Beside(reference), loss=Dpo(), **static)
    tokens, keys = np.ones((8, 2, 20), np.int32), jax.random.split(jax.random.key(0), (8, 2))
    ia, number = state().member, jnp.float32(1.0)
    stop = np.array([1], np.int32)
    return decode.lower(params, tokens, tokens > 0, keys, (organisms, ia), stop, number, number, CFG, 5)


def crossing(program):
    """Collectives of a compiled program: all, and those of an array shaped like (a part of) an organism's adapter.

    An adapter's leaf has the organisms' rank (5, or 10 and 15 where projections share an input) beside a size of the
    model. Activations of that rank have none: tokens are 40 (20 in decode), of 8 organisms, 1 or 2 rows of each.
    """
    all_of_them = collectives(program.as_text(), lambda *_: "")
    sizes = {n // tp for n in (CFG.hidden_size, CFG.intermediate_size, CFG.q_size, CFG.kv_size) for tp in (1, 2)}
    found = []
    for c in all_of_them:
        shape = {int(n) for n in re.findall(r"\d+", c.shape.split("[")[1])}
        if shape & {5, 10, 15} and shape & sizes:
            found.append(c)
    return sorted((c.op, c.shape, c.group, c.count) for c in all_of_them), found


@pytest.mark.parametrize(
    ("mesh", "kind"),
    [(MESHES[m], kind) for m, kind in (("8x1", "sft"), ("4x2", "sft"), ("4x2", "dpo"), ("4x2", "decode"))],
    ids=["8x1-sft", "4x2-sft", "4x2-dpo", "4x2-decode"],
    indirect=["mesh"],
)
def test_no_adapter_crosses_devices(stored, placed, mesh, kind):
    """From a bank of 64, exactly the collectives of a stack that lies on its devices already, none of an adapter."""
    _, bank, *_ = placed
    positions = batch_of(bank)
    ours, found = crossing(lowered(kind, placed, bank.take(positions)).compile())
    assert found == []
    wanted, _ = crossing(lowered(kind, placed, plain_stack(bank, stored, positions, mesh)).compile())
    assert ours == wanted
    assert ours  # the base's weights are gathered in all of them


@only("8x1")
def test_an_adapter_that_crosses_is_seen(placed, mesh, monkeypatch):
    """Taken without regard to where they lie, organisms show in the program: the test above can fail."""

    def anywhere(projection, factor, x, slots, rules):
        whole = jax.sharding.reshard(x, P(*(None,) * x.ndim))
        return jnp.swapaxes(whole.at[slots].get(out_sharding=P(("dcn", "fsdp"), *(None,) * (x.ndim - 1))), 0, 1)

    monkeypatch.setattr(loras, "_pick", anywhere)
    picked = placed[1].take(batch_of(placed[1]))
    program = jax.jit(lambda p: to_scan((p,), dtype=jnp.dtype("float32"))).lower(picked).compile()
    assert crossing(program)[1]


@only("1x1", "8x1")
def test_nothing_flows_back_into_a_bank(placed, mesh):
    params, bank, state, batch = placed
    picked = bank.take(batch_of(bank))
    ia = state().member

    def loss(tree):
        logps = _token_logps(params, (Picked(tree, picked.slots), ia), batch, cfg=CFG, rules=TRAINING, remat="none")
        return sft_loss(logps, batch.target_weight).sum()

    assert not any(np.asarray(g).any() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(picked.bank)))


@only("4x2")
def test_one_function_fills_up_to_the_mesh(mesh):
    tree = {"x": np.arange(5.0), "y": jnp.ones((5, 2)), "key": jax.random.split(jax.random.key(0), 5)}
    padded = pad_to_mesh(tree)
    assert padded["x"].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert padded["y"].tolist() == [[1, 1]] * 5 + [[0, 0]] * 3
    assert padded["key"].shape == (8,)
    assert (jax.random.key_data(padded["key"])[:5] == jax.random.key_data(tree["key"])).all()
    assert pad_to_mesh(tree, 5)["x"] is tree["x"]
    whole = NamedSharding(mesh, P())
    assert pad_to_mesh(jax.device_put(tree["y"], whole)).shape == (8, 2)


def test_cosines_are_those_of_the_whole_updates(stored, mesh):
    """Of several ranks and targets, against the matrices that the adapters add, formed and flattened; None is zero."""
    mine, theirs = [3, 10, 20, 0], [0, 1, 2, 3, 33]

    def flat(i):
        added = {t: np.einsum("lir,lro->lio", ab["a"], ab["b"]) for t, ab in organism(i).items()}
        shapes = {t: (CFG.num_hidden_layers, *projection_sizes(CFG)[t]) for t in PROJECTIONS}
        return np.concatenate([added.get(t, np.zeros(s)).ravel() for t, s in shapes.items()]).astype(np.float64)

    ones = open_bank([stored[i] for i in mine], BASE, mesh, dtype=np.float32, zeros=1)
    found = cosines(ones, open_bank([stored[i] for i in theirs], BASE, mesh, dtype=np.float32), width=2)
    wanted = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in map(flat, theirs)] for a in map(flat, mine)]
    )
    np.testing.assert_allclose(found, np.concatenate([wanted, np.zeros((1, 5))]), atol=1e-5)
    assert found[0, 3] > 0.99
