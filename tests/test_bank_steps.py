"""A bank in a step: losses and samples are those of a plain stack, no adapter crosses devices, nothing flows back."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ia_jax.adapters.bank import open_bank
from ia_jax.data.batch import Beside
from ia_jax.models import lora as loras
from ia_jax.models.lora import LoraConfig, Picked, adapter_shardings, has_organism_axis, to_scan
from ia_jax.models.sampling import decode, generate_tokens
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import TRAINING
from ia_jax.planning.hlo import collectives
from ia_jax.training.losses import Dpo, Sft, sft_loss
from ia_jax.training.state import init_state
from ia_jax.training.trainer import _token_logps, train_step
from tests import banked, tiny
from tests.banked import BASE, COUNT, MESHES, by_hand, only
from tests.meshes import CFG, OPTIMIZER

stored, mesh = banked.stored, banked.mesh  # fixtures
IA = LoraConfig(3, 6.0)


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
