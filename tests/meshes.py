"""Meshes of virtual devices, and a tiny model with adapters on them.

A mesh is named by its sizes: fsdp x tp, or fsdp x rows x tp.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.models.lora import adapter_shardings
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.optimizer import AdamW
from tests import tiny

CFG = replace(tiny.TINY, num_attention_heads=8, num_key_value_heads=4)
# A large eps: else Adam divides rounding errors by rounding errors.
OPTIMIZER = AdamW(lr=1e-2, clip_norm=0.5, weight_decay=0.1, eps=0.1)
LORA = tiny.FEW
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
