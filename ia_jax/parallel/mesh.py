"""The device mesh and the one table that says which logical axis of a weight or activation lies on which mesh axis.

Mesh axes are `fsdp` (data, organisms and shards of the frozen base) and `tp` (heads, MLP columns, vocabulary). The mesh
is always Explicit: a wrong contraction raises while tracing instead of gathering activations at run time. The same
functions run without a mesh (one device, nothing to say), on a 1x1 mesh and on a pod.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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
    # A torus axis may be split: 32 x 2 fits no union of whole axes of a 4x4x4 slice, and jax.make_mesh refuses it.
    grid = mesh_utils.create_device_mesh((fsdp, tp), devices[: fsdp * tp], allow_split_physical_axes=True)
    return Mesh(grid, ("fsdp", "tp"), axis_types=(AxisType.Explicit, AxisType.Explicit))


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


def axis_size(axis: str) -> int:
    """Over how many devices of the mesh in use a logical axis is spread (1 without a mesh)."""
    mesh, mesh_axis = jax.sharding.get_abstract_mesh(), RULES[axis]
    return 1 if mesh.empty or mesh_axis is None else mesh.shape[mesh_axis]


def named_sharding(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(mesh, partition(axes))


def place(tree: Any, shardings: Any) -> Any:
    """Arrays of the host on the mesh. With several processes, each puts only what its own devices hold.

    Every process passes the same values: batches follow from the config and the seed, so nothing has to be sent.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def leaf(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda a: a, out_shardings=sharding)(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(leaf, tree, shardings)
