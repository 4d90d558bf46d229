"""A step and greedy tokens on an accelerator are what they are on the CPU; its fused attention included.

Where there is one: `IA_JAX_TEST_PLATFORM=cuda,cpu pytest -m gpu tests/test_accelerators.py`, or `tpu,cpu` and `-m tpu`.
Everywhere else the same tests compare two CPU devices, so that they keep working.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.models.sampling import generate_tokens
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import make_mesh, put_on_mesh
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_organisms_state, init_state
from ia_jax.training.trainer import train_step
from tests import tiny

K, LENGTH = 2, 128  # splash attention works on blocks of 128 tokens
CFG = tiny.TINY
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.0, eps=1e-3)  # so large that Adam does not magnify rounding
HOW = {"cfg": CFG, "loss": Sft(), "optimizer": OPTIMIZER}
KINDS = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("tpu", marks=pytest.mark.tpu)]


@pytest.fixture(params=KINDS)
def device(request):
    try:
        return jax.devices(request.param)[-1]
    except RuntimeError:
        pytest.skip(f"no {request.param} here; where there is one: IA_JAX_TEST_PLATFORM (tests/test_accelerators.py)")


def on(device, run, dtype):
    """What `run(params)` gives with its arrays on this device, as numpy."""
    mesh = make_mesh(devices=[device])
    # An accelerator's fp32 products are of lower precision unless told otherwise.
    with jax.set_mesh(mesh), jax.default_device(device), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda x: x.astype(dtype), tiny.params())
        found = run(put_on_mesh(params, param_shardings(CFG, mesh)))
        return jax.tree.map(np.asarray, found)


def train_organisms(params):
    """Two steps from adapters whose both factors are far from zero: their loss, its gradient's size, and the result."""
    [batch] = tiny.batches(K, count=8, rows=1, length=LENGTH)
    keys = tiny.placed(jnp.stack([jax.random.key(i) for i in range(K)]))
    state = init_organisms_state(
        keys, tiny.placed(jnp.full(K, 2, jnp.int32)), np.zeros(K, int), CFG, (tiny.LORA,), OPTIMIZER
    )
    state = tiny.placed(state.replace(member=tiny.adapter(1, organisms=K)))
    for _ in range(2):
        state, metrics = train_step(params, state, (), tiny.placed(batch), **HOW)
    return {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"], "adapters": state.member}


def train_ia(params):
    [batch] = tiny.batches(K, count=8, rows=1, length=LENGTH)
    stack = tiny.placed(tiny.adapter(1, organisms=K))
    state = tiny.placed(init_state(tiny.adapter(2), 2, OPTIMIZER, scale=tiny.LORA.scale), organisms=False)
    for _ in range(2):
        state, metrics = train_step(params, state, (stack,), tiny.placed(batch), **HOW)
    return {"loss": metrics["per_organism"], "grad_norm": metrics["grad_norm"], "adapters": state.member}


@pytest.mark.parametrize("train", [train_organisms, train_ia])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 5e-2)], ids=["fp32", "bf16"])
def test_a_step_is_the_cpus(device, train, dtype, tolerance):
    if device.platform == "cpu" and dtype != jnp.float32:
        pytest.skip("the CPU is held against itself in fp32 alone")
    got, wanted = (on(d, train, dtype) for d in (device, jax.devices("cpu")[0]))
    for name in wanted:
        assert tiny.worst(got[name], wanted[name]) < tolerance, name


def test_greedy_tokens_are_the_cpus(device):
    prompts = [[np.arange(3 + i, 9 + 2 * i + j, dtype=np.int32) for j in range(2)] for i in range(K)]

    def tokens(params):
        stack = (tiny.placed(tiny.adapter(1, organisms=K)), tiny.adapter(2))
        found = generate_tokens(params, CFG, prompts, stack, (CFG.vocab_size,), max_new_tokens=12)
        return [[row.tokens for row in own] for own in found]

    got, wanted = (on(d, tokens, jnp.float32) for d in (device, jax.devices("cpu")[0]))
    assert jax.tree.leaves(got) == jax.tree.leaves(wanted)
    assert len({tuple(map(int, row)) for own in wanted for row in own}) == 2 * K
