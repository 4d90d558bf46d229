"""The device mesh and the one table that says which logical axis of a weight or activation lies on which mesh axis.

Mesh axes are `fsdp` (data, organisms and shards of the frozen base) and `tp` (heads, MLP columns, vocabulary). The mesh
is always Explicit: a wrong contraction raises while tracing instead of gathering activations at run time. The same
functions run without a mesh (one device, nothing to say), on a 1x1 mesh and on a pod.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError

RULES: dict[str, str | None] = {
    "organism": "fsdp",
    "rows": "fsdp",
    "layers": None,
    "embed": "fsdp",
    "heads": "tp",
    "mlp": "tp",
    "vocab": "tp",
    "rank": None,
    "head_dim": None,
}


def make_mesh(fsdp: int = 1, tp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """An Explicit mesh `("fsdp", "tp")` over the first `fsdp * tp` devices."""
    devices = jax.devices() if devices is None else devices
    if fsdp * tp > len(devices):
        raise ConfigError(f"mesh fsdp={fsdp} x tp={tp} needs {fsdp * tp} devices, {len(devices)} are visible")
    axis_types = (AxisType.Explicit, AxisType.Explicit)
    return jax.make_mesh((fsdp, tp), ("fsdp", "tp"), axis_types=axis_types, devices=devices[: fsdp * tp])


def partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes to a PartitionSpec. A mesh axis is used once, by the first logical axis that claims it.

    So the input axis of an organism's LoRA (`organism, layers, embed, rank`) stays whole where the organisms already
    lie on `fsdp`, while the shared IA (`layers, embed, rank`) is sharded like the base.
    """
    used: set[str] = set()
    spec: list[str | None] = []
    for axis in axes:
        mesh_axis = RULES[axis] if axis is not None else None
        spec.append(mesh_axis if mesh_axis not in used else None)
        if mesh_axis is not None:
            used.add(mesh_axis)
    return PartitionSpec(*spec)


def constrain_to(*axes: str | None) -> PartitionSpec | None:
    """The `out_sharding` for an activation with these logical axes, or None where no mesh is set."""
    return None if jax.sharding.get_abstract_mesh().empty else partition(axes)


def reshard(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` moved to these logical axes (nothing to do without a mesh)."""
    spec = constrain_to(*axes)
    return x if spec is None else jax.sharding.reshard(x, spec)


def named_sharding(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(mesh, partition(axes))
