"""A topology in words, like "v5p:4x4x4", "2xv5p:2x2x4" (two slices) or "h100:8"."""

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.planning.chips import CHIPS, Chip


@dataclass(frozen=True)
class Topology:
    """`slices` slices (of GPUs: nodes) of a torus of chips with the lengths `shape`."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """All of them: what is paid for."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """What JAX shows and `config.mesh` counts: two of each v7x chip, else one."""
        return self.chips * self.chip.cores

    @property
    def memory(self) -> float:
        """Bytes of all devices."""
        return self.devices * self.chip.capacity

    @property
    def of_libtpu(self) -> str:
        """One slice, as libtpu spells it."""
        return f"{self.chip.libtpu}:{'x'.join(map(str, self.shape))}"


def topology_of(text: str) -> Topology:
    """[SLICESx]CHIP:SHAPE. Raises ConfigError for a chip that is unknown, or a shape that it does not come in."""
    match = re.fullmatch(r"(?:(\d+)x)?(?:(tpu7x)|([a-z]\w*)):(\d+(?:x\d+)*)", text)
    name = match and (match[3] or "v7x")
    if match is None or name not in CHIPS:
        spelled = name or re.sub(r"^\d+x", "", text.partition(":")[0])
        why = (
            f"no chip {spelled!r}; known: {', '.join(CHIPS)}" if spelled not in CHIPS else "not of the form CHIP:SHAPE"
        )
        raise ConfigError(f"--topology {text}: {why} (as in v5p:4x4x4, 2xv5p:4x4x4 or h100:8)")
    chip, shape, slices = CHIPS[name], tuple(int(n) for n in match[4].split("x")), int(match[1] or 1)
    if len(shape) != chip.axes:
        like = f"{name}:{'x'.join('4' * chip.axes)}"
        axes = f"a torus of {chip.axes} axes" if chip.axes > 1 else "a node of up to 8"
        raise ConfigError(f"--topology {text}: {name} is {axes}; write it like {like}")
    if min(shape) < 1 or slices < 1:
        raise ConfigError(f"--topology {text}: lengths and slices are at least 1")
    if not chip.libtpu and shape[0] > chip.ring:
        raise ConfigError(f"--topology {text}: a node has {chip.ring}; write several like 2x{name}:{chip.ring}")
    return Topology(text, chip, shape, slices)


def stand_ins(topology: Topology) -> list[SimpleNamespace]:
    """Devices with their places on the torus, in the order of the axes: for sums that need no compiler."""
    return [
        SimpleNamespace(coords=coords, slice_index=number)
        for number in range(topology.slices)
        for coords in np.ndindex(*topology.shape)
        for _ in range(topology.chip.cores)
    ]
