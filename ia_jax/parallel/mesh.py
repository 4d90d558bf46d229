"""The device mesh and the one table that says which logical axis of a weight or activation lies on which mesh axes.

Mesh axes are `fsdp` (data, organisms and shards of the frozen base) and `tp` (heads, MLP columns, vocabulary) within a
slice, and `dcn` over several slices: each has the whole base and organisms of its own, and all that crosses the slow
network between them is the IA's gradient. The mesh is always Explicit: a wrong contraction raises while
tracing instead of gathering activations at run time. The same functions run without a mesh (one device, nothing to
say), on a 1x1 mesh and on a pod.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError

RULES: dict[str, tuple[str, ...]] = {
    "organism": ("dcn", "fsdp"),
    "rows": ("dcn", "fsdp"),
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tp",),
    "mlp": ("tp",),
    "vocab": ("tp",),
    "rank": (),
    "head_dim": (),
}


def make_mesh(fsdp: int = 1, tp: int = 1, dcn: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """An Explicit mesh `("fsdp", "tp")` over the first `fsdp * tp` devices; of several slices `("dcn", "fsdp", "tp")`.

    Raises ConfigError where there are too few devices, and where some process or slice of the run would have no part.
    """
    count, shape = dcn * fsdp * tp, f"{f'dcn={dcn} x ' if dcn > 1 else ''}fsdp={fsdp} x tp={tp}"
    if devices is None:
        devices = jax.devices()
        if jax.process_count() > 1 and count != len(devices):
            raise ConfigError(
                f"mesh {shape} is {count} devices, the {jax.process_count()} processes of this run have "
                f"{len(devices)}; set config.mesh so that all are used"
            )
    if count > len(devices):
        raise ConfigError(f"mesh {shape} needs {count} devices, {len(devices)} are visible")
    devices = devices[:count]
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1
    if slices not in (1, dcn):
        raise ConfigError(f"mesh {shape} is over {slices} slices; set --config.mesh.dcn={slices}")
    # A torus axis may be split: 32 x 2 fits no union of whole axes of a 4x4x4 slice, and jax.make_mesh refuses it.
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh((1, fsdp, tp), (dcn, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh((dcn, fsdp, tp), devices, allow_split_physical_axes=True)
    names = ("dcn", "fsdp", "tp")
    if dcn == 1:
        grid, names = grid[0], names[1:]
    return Mesh(grid, names, axis_types=(AxisType.Explicit,) * len(names))


def partition(axes: tuple[str | None, ...], mesh_axes: Sequence[str] = ("fsdp", "tp")) -> PartitionSpec:
    """Logical axes to a PartitionSpec of a mesh with these axes. Each is used once, by the first that claims it.

    So the input axis of an organism's LoRA (`organism, layers, embed, rank`) stays whole where the organisms already
    lie on `fsdp`, while the shared IA (`layers, embed, rank`) is sharded like the base.
    """
    free = list(mesh_axes)
    spec: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        claimed = [m for m in (RULES[axis] if axis is not None else ()) if m in free]
        free = [m for m in free if m not in claimed]
        spec.append(tuple(claimed) if len(claimed) > 1 else claimed[0] if claimed else None)
    return PartitionSpec(*spec)


def constrain_to(*axes: str | None) -> PartitionSpec | None:
    """The `out_sharding` for an activation with these logical axes, or None where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else partition(axes, mesh.axis_names)


def reshard(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` moved to these logical axes (nothing to do without a mesh)."""
    spec = constrain_to(*axes)
    return x if spec is None else jax.sharding.reshard(x, spec)


def axis_size(axis: str) -> int:
    """Over how many devices of the mesh in use a logical axis is spread (1 without a mesh)."""
    return spread_over(jax.sharding.get_abstract_mesh(), axis)


def spread_over(mesh: Mesh | jax.sharding.AbstractMesh, axis: str) -> int:
    """Over how many devices of this mesh a logical axis is spread."""
    return math.prod(mesh.shape[m] for m in RULES[axis] if m in mesh.axis_names)


def named_sharding(mesh: Mesh, axes: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(mesh, partition(axes, mesh.axis_names))


def pad_to_mesh(tree: Any, groups: int | None = None) -> Any:
    """Arrays [K, ...] with zeros appended along K up to a multiple of the device groups that organisms are spread over.

    What is appended is an adapter that changes nothing, a row without tokens, an organism without updates to make.
    groups: of another mesh than the one in use.
    """
    groups = axis_size("organism") if groups is None else groups

    def leaf(x: Any) -> Any:
        missing = -x.shape[0] % groups
        if not missing:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        widths = ((0, missing), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, widths) if isinstance(x, jax.Array) else np.pad(x, widths)

    return jax.tree.map(leaf, tree)


def to_host(x: Any) -> np.ndarray:
    """An array as numpy, whole on every process. Of several processes all must ask, in the same order."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def replicate(tree: Any) -> Any:
    """Arrays inside a step, whole on every device: what the host reads of a step, each process must be able to read."""
    return jax.tree.map(lambda x: reshard(x, *(None,) * x.ndim), tree)


def put_on_mesh(tree: Any, shardings: Any) -> Any:
    """Arrays of the host on the mesh. With several processes, each puts only what its own devices hold.

    Every process passes the same values: batches follow from the config and the seed, so nothing has to be sent.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def leaf(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(_same, out_shardings=sharding)(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(leaf, tree, shardings)


def _same(x: jax.Array) -> jax.Array:
    return x
