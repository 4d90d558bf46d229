"""Chip-hours of a config's stages on a slice by hand: without a compiler, so in seconds and anywhere.

`ia-jax plan` compiles the step and reads its collectives from the program; here they are docs/plan.md's formulas, for
every stage. Both are rooflines, so lower bounds.
"""

import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np

from ia_jax.config import RunConfig, with_dtype
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.models.number_type import BF16
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import chip_of
from ia_jax.planning.roofline import Layout, bandwidths, ici_by_hand, roofline
from ia_jax.planning.steps import trained_lora, work_of


def stage_chip_hours(config: RunConfig, topology: str, stage: str, batches: Batches) -> float:
    """Chip-hours that a stage needs at least. stage: one of `planning.steps.STAGES`; batches: what it reads.

    Raises ConfigError where the topology is unknown, or has not as many chips as the config's mesh.
    """
    config = with_dtype(config, BF16)
    chip, layout = chip_of(topology), Layout(**asdict(config.mesh))
    shape = [int(n) for n in topology.partition(":")[2].split("x")]
    if math.prod(shape) != layout.chips:
        raise ConfigError(
            f"{topology} has {math.prod(shape)} chips, config.mesh {layout.chips}; choose another of them"
        )
    cfg, work = architecture(config.model.name, config.model.quantization), work_of(config, stage, batches)
    ici_s = ici_by_hand(cfg, work, layout, bandwidths(_grid(shape, layout), chip))
    step = roofline(cfg, trained_lora(config, stage), work, layout, chip, ici_s)
    return batches.steps * step["predicted_step_s"] * layout.chips / 3600


def _grid(shape: list[int], layout: Layout) -> np.ndarray:
    """Stand-ins of the slice's devices with their places on the torus, as a mesh of the layout, `tp` along the last
    axes: near to what JAX chooses, which is not known without its compiler.
    """
    devices = np.empty(math.prod(shape), object)
    for i, coords in enumerate(np.ndindex(*shape)):
        devices[i] = SimpleNamespace(coords=coords)
    return devices.reshape(layout.dcn, layout.fsdp, layout.rows, layout.tp)
