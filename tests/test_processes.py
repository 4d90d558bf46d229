"""Two processes with two devices each, talking over gloo, are one run; and how a run learns that it has several."""

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ia_jax.errors import ConfigError
from ia_jax.models.lora import adapter_shardings
from ia_jax.parallel import distributed
from ia_jax.parallel.mesh import make_mesh
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny
from tests.meshes import BATCHES, CFG, LORA, OPTIMIZER, K
from tests.processes import run_together


def test_two_processes_are_one_run(tmp_path):
    """The step equals one device's; its checkpoint starts from that of an 8-device mesh and loads on one device."""
    start = init_state(tiny.adapter(2, CFG, LORA), 4, OPTIMIZER, scale=LORA.scale)
    mesh = make_mesh(4, 2)
    ocp.save(str(tmp_path / "before"), jax.device_put(start, adapter_shardings(start, mesh)))
    for status, _, said in run_together("-m", "tests.step_worker", tmp_path):
        assert status == 0, said[-3000:]
    wanted, metrics = train_step(
        tiny.params(CFG),
        start,
        (tiny.adapter(1, CFG, LORA, organisms=K),),
        BATCHES[0],
        cfg=CFG,
        loss=Sft(),
        optimizer=OPTIMIZER,
    )
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), wanted)
    assert tiny.worst(ocp.load(str(tmp_path / "after"), abstract), wanted) < 1e-5
    with np.load(tmp_path / "metrics.npz") as got:
        assert tiny.worst(got["loss"], metrics["loss"]) < 1e-5
        assert tiny.worst(got["per_organism"], metrics["per_organism"]) < 1e-5


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"IA_JAX_COORDINATOR": "h:1"}, "IA_JAX_COORDINATOR is set but IA_JAX_PROCESSES is not"),
        ({"IA_JAX_PROCESS": "0", "IA_JAX_PROCESSES": "2"}, "IA_JAX_PROCESSES is set but IA_JAX_COORDINATOR is not"),
        (
            {"IA_JAX_COORDINATOR": "h:1", "IA_JAX_PROCESSES": "2", "IA_JAX_PROCESS": "2"},
            "IA_JAX_PROCESS=2 must lie in 0 … 1",
        ),
        (
            {"IA_JAX_COORDINATOR": "h:1", "IA_JAX_PROCESSES": "two", "IA_JAX_PROCESS": "0"},
            "IA_JAX_PROCESSES=two is not a number",
        ),
        ({"IA_JAX_DISTRIBUTED": "yes"}, "IA_JAX_DISTRIBUTED=yes unknown; set it to auto"),
    ],
)
def test_an_environment_that_does_not_fit_together(environ, message):
    with pytest.raises(ConfigError, match=message):
        distributed.start(environ)


@pytest.mark.parametrize("environ", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_alone(environ):
    assert distributed.start(environ) is False
    assert distributed.is_main_process()


def test_slurm_with_several_tasks(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: asked.append(a))
    distributed.start({"SLURM_STEP_NUM_TASKS": "4"})
    distributed.start({"IA_JAX_DISTRIBUTED": "auto"})
    distributed.start({"IA_JAX_COORDINATOR": "h:1", "IA_JAX_PROCESSES": "2", "IA_JAX_PROCESS": "1"})
    assert asked == [(), (), ("h:1", 2, 1)]
