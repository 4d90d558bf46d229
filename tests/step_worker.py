"""One process of two (tests/test_processes.py): a joint step on a mesh over both, from a checkpoint and to another."""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ia_jax.data.batch import batch_shardings
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.transformer import param_shardings
from ia_jax.parallel import distributed
from ia_jax.parallel.mesh import make_mesh, put_on_mesh
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.meshes import BATCHES, CFG, LORA, OPTIMIZER, K


def main(directory):
    assert distributed.start()
    assert distributed.is_main_process() == (os.environ["IA_JAX_PROCESS"] == "0")
    assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
    mesh = make_mesh(2, 2)
    host = jax.tree.map(np.asarray, tiny.params(CFG))
    with jax.set_mesh(mesh):
        params = put_on_mesh(host, param_shardings(CFG, mesh))
        stack = jax.tree.map(np.asarray, tiny.adapter(1, CFG, LORA, organisms=K))
        stack = put_on_mesh(stack, adapter_shardings(stack, mesh, organisms=True))
        batch = put_on_mesh(BATCHES[0], batch_shardings(BATCHES[0], mesh))
        for leaf in jax.tree.leaves(batch):  # each process holds its own organisms only
            assert sum(s.data.shape[0] for s in leaf.addressable_shards if s.replica_id == 0) <= K
        ia = jax.tree.map(np.asarray, tiny.adapter(2, CFG, LORA))
        state = jax.eval_shape(lambda a: init_state(a, 4, OPTIMIZER, scale=LORA.scale), ia)
        shardings = adapter_shardings(state, mesh)
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
        state = ocp.load(f"{directory}/before", abstract)
        state, metrics = train_step(params, state, (stack,), batch, cfg=CFG, loss=Sft(), optimizer=OPTIMIZER)
        ocp.save(f"{directory}/after", state)
        losses = multihost_utils.process_allgather(metrics["per_organism"], tiled=True)
    if distributed.is_main_process():
        np.savez(f"{directory}/metrics.npz", loss=np.asarray(metrics["loss"]), per_organism=losses)


if __name__ == "__main__":
    main(sys.argv[1])
