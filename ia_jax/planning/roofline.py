"""How fast a step can be at best: its FLOPs and bytes over what the chips and the links between them can do."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig
from ia_jax.planning.chips import Chip, Work, adapter_entries, step_flops, step_hbm_bytes, step_ici_bytes


@dataclass(frozen=True)
class Layout:
    """Chips of a slice as a mesh: `dcn` copies of the base, each over `fsdp` x `rows` x `tp` chips."""

    fsdp: int
    tp: int
    rows: int = 1
    dcn: int = 1

    @property
    def chips(self) -> int:
        return self.dcn * self.shards * self.tp

    @property
    def shards(self) -> int:
        """Into how many parts the base is cut, beside those of `tp`."""
        return self.fsdp * self.rows

    @property
    def groups(self) -> int:
        """Groups of chips with organisms of their own."""
        return self.dcn * self.fsdp


def bandwidths(grid: np.ndarray, chip: Chip) -> dict[int, float]:
    """Bytes/s that a device can receive from its group, by the size of the group.

    grid: the devices of a mesh; a group lies along one or more of its axes, within a slice: the first is cut where
    slices meet. Counted are the links that lead from a chip at the edge of its group to others of it: two on an axis
    of the torus that the group fills and that is a ring, else one. So this is what a collective that uses all of the
    group's axes at once can reach.
    """
    grid = grid[: len(grid) // len({getattr(d, "slice_index", None) for d in grid.flat})]
    coords = np.array([d.coords for d in grid.flat]).reshape(*grid.shape, -1)
    whole = coords.reshape(-1, coords.shape[-1]).max(0) + 1
    out: dict[int, float] = {}
    for axes in itertools.product((0, slice(None)), repeat=grid.ndim):
        group = coords[axes].reshape(-1, coords.shape[-1])
        extents = [len(set(column)) for column in group.T]
        rings = chip.ring if chip.libtpu else math.inf  # GPUs have a switch
        links = sum((2 if e == n and n % rings == 0 else 1) for e, n in zip(extents, whole, strict=True) if e > 1)
        inside = chip.die if len(group) > 1 and not links else 0.0  # both cores of a chip
        out[len(group)] = min(out.get(len(group), math.inf), max(chip.link * max(links, 1), inside))
    return out


def ici_by_hand(cfg: ModelConfig, work: Work, layout: Layout, speed: dict[int, float]) -> float:
    """Seconds of a step's collectives without a compiled program. speed: `bandwidths` of the mesh."""
    gathered, summed = step_ici_bytes(cfg, work, layout.shards, layout.tp, layout.dcn)
    return (gathered and gathered / speed[layout.shards]) + (summed and summed / speed[layout.tp])


def dcn_by_hand(cfg: ModelConfig, lora: LoraConfig, work: Work, layout: Layout, chip: Chip, slices: int) -> float:
    """Seconds of what goes between slices: the gradient of an adapter that all share, in fp32."""
    if slices == 1 or not work.trained or work.adapters == work.trained:
        return 0.0
    mine = 4 * work.trained * adapter_entries(cfg, lora) / (layout.shards * layout.tp)
    return mine * 2 * (slices - 1) / slices / chip.dcn


def roofline(
    cfg: ModelConfig, lora: LoraConfig, work: Work, layout: Layout, chip: Chip, ici_s: float, dcn_s: float = 0.0
) -> dict[str, Any]:
    """Lower bounds of a step's time, each as if the others were free and hidden behind it. ici_s, dcn_s: those of the
    links within a slice and of the network between slices.

    `predicted_mfu` counts what real tokens need: neither padding nor recomputation.
    """
    needed, executed = step_flops(cfg, lora, work)
    seconds = {
        "compute": executed / layout.chips / chip.flops,
        "hbm": step_hbm_bytes(cfg, lora, work, layout.shards, layout.tp, layout.dcn, layout.groups) / chip.hbm,
        "ici": ici_s,
        **({"dcn": dcn_s} if dcn_s else {}),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        "flops_per_chip": executed / layout.chips,
        "predicted_step_s": round(seconds[bound], 6),
        "bound": bound,
        "bounds_s": {name: round(s, 6) for name, s in seconds.items()},
        "predicted_mfu": round(needed / layout.chips / chip.flops / seconds[bound], 4),
    }
