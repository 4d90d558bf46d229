"""A stage on a slice by hand: without a compiler, so in seconds, anywhere, and for GPUs.

`ia-jax plan` compiles the step and reads its collectives from the program; here they are docs/plan.md's formulas, for
every stage. Both are rooflines, so lower bounds.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh

from ia_jax.config import RunConfig, with_dtype
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.models.number_type import BF16
from ia_jax.parallel.mesh import MESH_AXES
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import GIB
from ia_jax.planning.roofline import Layout, bandwidths, dcn_by_hand, ici_by_hand, roofline
from ia_jax.planning.steps import argument_gib, trained_lora, work_of
from ia_jax.planning.topology import Topology, stand_ins, topology_of


def stage_chip_hours(config: RunConfig, topology: str, stage: str, batches: Batches) -> float:
    """Chip-hours that a stage needs at least. stage: one of `planning.steps.STAGES`; batches: what it reads.

    Raises ConfigError where the topology is unknown, or has not as many chips as the config's mesh.
    """
    where = topology_of(topology)
    return batches.steps * step_by_hand(config, where, stage, batches)["predicted_step_s"] * where.chips / 3600


def step_by_hand(config: RunConfig, where: Topology, stage: str, batches: Batches) -> dict[str, Any]:
    """`roofline` of a step. Raises ConfigError where the config's mesh does not fit the topology."""
    config, layout = with_dtype(config, BF16), Layout(**asdict(config.mesh))
    if where.devices != layout.chips or layout.dcn % where.slices:
        has = (
            f"{where.devices} chips" if where.chip.cores == 1 else f"{where.chips} chips of {where.chip.cores} devices"
        )
        has += f" on {where.slices} slices (config.mesh.dcn a multiple)" if where.slices > 1 else ""
        raise ConfigError(f"{where.name} has {has}, config.mesh {layout.chips}; choose another of them")
    cfg, work = architecture(config.model.name, config.model.quantization), work_of(config, stage, batches)
    lora = trained_lora(config, stage)
    ici_s = ici_by_hand(cfg, work, layout, bandwidths(_grid(where, layout), where.chip))
    dcn_s = dcn_by_hand(cfg, lora, work, layout, where.chip, where.slices)
    return roofline(cfg, lora, work, layout, where.chip, ici_s, dcn_s)


def memory_by_hand(config: RunConfig, where: Topology, stage: str, batches: Batches) -> dict[str, Any]:
    """What stays on a device, of what it has; whether the step's own fits beside it only a compiler could say."""
    config = with_dtype(config, BF16)
    cfg = architecture(config.model.name, config.model.quantization)
    mesh = AbstractMesh(tuple(getattr(config.mesh, axis) for axis in MESH_AXES), MESH_AXES)
    stays = argument_gib(config, cfg, stage, mesh, batches)
    capacity = where.chip.capacity / GIB
    return {"fits": stays <= capacity, "argument_gib": round(stays, 2), "capacity_gib": round(capacity, 2)}


def _grid(where: Topology, layout: Layout) -> np.ndarray:
    """Stand-ins of the devices with their places on the torus, as a mesh of the layout, `tp` along the last axes: near
    to what JAX chooses, which is not known without its compiler.
    """
    devices = np.empty(where.devices, object)
    for i, device in enumerate(stand_ins(where)):
        devices[i] = device
    return devices.reshape(layout.dcn, layout.fsdp, layout.rows, layout.tp)
