"""The device mesh, and the rules that say on which of its axes each logical axis of an array lies.

A mesh has four axes, whatever their sizes (one device is 1 x 1 x 1 x 1):
    dcn     copies of the base, each with organisms of its own; one or more on every slice. All that crosses the slow
            network between slices is the gradient of what the copies share
    fsdp    organisms, and shards of the frozen base
    rows    the rows of one organism, and further shards of the base
    tp      heads, MLP columns and vocabulary
It is always Explicit: a wrong contraction raises while tracing instead of gathering activations at run time. Everything
that computes runs under one: `with jax.set_mesh(make_mesh()):`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError

MESH_AXES = ("dcn", "fsdp", "rows", "tp")


@dataclass(frozen=True)
class Rules:
    """Logical axes to mesh axes. A value, static where it meets `jax.jit`; pass another for another layout.

    organism and rows are axes of activations and adapters, layers and rank of adapters; embed, heads, mlp and vocab of
    the base, of adapters and (but for embed) of activations.
    """

    organism: tuple[str, ...] = ("dcn", "fsdp")
    rows: tuple[str, ...] = ("rows",)
    layers: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp", "rows")
    heads: tuple[str, ...] = ("tp",)
    mlp: tuple[str, ...] = ("tp",)
    vocab: tuple[str, ...] = ("tp",)
    rank: tuple[str, ...] = ()

    def spec(self, *axes: str | None) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes. A mesh axis is used once, by the first that claims it.

        So the input axis of an organism's LoRA (`organism, layers, embed, rank`) lies on `rows` alone where the
        organisms already lie on `fsdp`, while the shared IA (`layers, embed, rank`) is sharded like the base.
        """
        used: set[str] = set()
        spec: list[str | tuple[str, ...] | None] = []
        for axis in axes:
            claimed = tuple(m for m in self._mesh_axes(axis) if m not in used) if axis else ()
            used.update(claimed)
            spec.append(claimed if len(claimed) > 1 else claimed[0] if claimed else None)
        return PartitionSpec(*spec)

    def sharding(self, mesh: Mesh | AbstractMesh, *axes: str | None) -> NamedSharding:
        return NamedSharding(mesh, self.spec(*axes))

    def reshard(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """`x` moved to where these logical axes lie on the mesh in use."""
        return jax.sharding.reshard(x, self.spec(*axes))

    def partial_sums(self, summed: str | None, *axes: str | None) -> PartitionSpec | None:
        """Of an array with these logical axes, which is a sum over the axis `summed`: where it lies while every device
        has added up no more than its own part. None where one device has all of it.
        """
        spread = frozenset(m for m in self._mesh_axes(summed) if mesh_in_use().shape[m] > 1) if summed else None
        return PartitionSpec(*self.spec(*axes), unreduced=spread) if spread else None

    def size(self, axis: str, mesh: Mesh | AbstractMesh | None = None) -> int:
        """Over how many devices a logical axis is spread, of this mesh or of the one in use."""
        mesh = mesh_in_use() if mesh is None else mesh
        return math.prod(mesh.shape[m] for m in self._mesh_axes(axis))

    def _mesh_axes(self, axis: str) -> tuple[str, ...]:
        return getattr(self, axis)


TRAINING = Rules()
# At every new token a step reads the whole base, and does little with it: so it is gathered once, before the first.
DECODING = Rules(embed=())


def mesh_in_use() -> AbstractMesh:
    """The mesh that is set. Raises ConfigError where there is none, or one of other axes than `MESH_AXES`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ConfigError("no mesh is set; write `with jax.set_mesh(make_mesh()):` around the call")
    if not set(MESH_AXES) <= set(mesh.axis_names):
        raise ConfigError(f"the mesh has the axes {', '.join(mesh.axis_names)}; make it with make_mesh")
    return mesh


def mesh_of(tree: Any) -> Mesh:
    """The mesh on which a model, an adapter or a state lies."""
    sharding = jax.tree.leaves(tree)[0].sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        raise ConfigError(f"these arrays lie on no mesh ({sharding}); put them on one with jax.device_put")
    return sharding.mesh


def make_mesh(fsdp: int = 1, tp: int = 1, dcn: int = 1, rows: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """An Explicit mesh with `MESH_AXES` over the first `dcn * fsdp * rows * tp` devices.

    Raises ConfigError where there are too few devices, and where some process or slice of the run would have no part.
    """
    count, shape = dcn * fsdp * rows * tp, describe({"dcn": dcn, "fsdp": fsdp, "rows": rows, "tp": tp})
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
    if dcn % slices:
        raise ConfigError(f"mesh {shape} is over {slices} slices; set --config.mesh.dcn={slices}, or a multiple of it")
    # A torus axis may be split: 32 x 2 fits no union of whole axes of a 4x4x4 slice, and jax.make_mesh refuses it.
    split = {"allow_split_physical_axes": True}
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (dcn // slices, fsdp, rows, tp), (slices, 1, 1, 1), devices, **split
        )
    else:
        grid = mesh_utils.create_device_mesh((dcn, fsdp, rows, tp), devices, **split)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def describe(sizes: Mapping[str, int]) -> str:
    """A mesh in words, as its settings are named: "fsdp=4 x tp=2" (dcn and rows only where there are several)."""
    return " x ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1 or axis in ("fsdp", "tp"))


def pad_to_mesh(tree: Any, groups: int | None = None) -> Any:
    """Arrays [K, ...] with zeros appended along K up to a multiple of the device groups that organisms are spread over.

    What is appended is an adapter that changes nothing, a row without tokens, an organism without updates to make.
    groups: another number of which to be a multiple.
    """
    groups = TRAINING.size("organism") if groups is None else groups

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
    return jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim)), tree)


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
