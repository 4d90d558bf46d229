"""What every stage works with: the workdir, its config, the base model on its mesh, and the stored organisms."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.adapters.stream import AdapterStream
from ia_jax.config import RunConfig
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.weights import Model, load_model
from ia_jax.parallel.mesh import make_mesh, named_sharding, put_on_mesh, spread_over
from ia_jax.workdir import Workdir


@dataclass(frozen=True)
class Context:
    """A workdir, a config, and lazily the mesh and the base model on it."""

    workdir: Workdir
    config: RunConfig

    def with_config(self, config: RunConfig) -> "Context":
        """The same workdir under another config of the same base; what is loaded stays loaded."""
        other = Context(self.workdir, config)
        if (config.model, config.mesh) == (self.config.model, self.config.mesh):
            vars(other).update({k: v for k, v in vars(self).items() if k in ("mesh", "model")})
        return other

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        m = self.config.mesh
        return make_mesh(m.fsdp, m.tp, m.dcn)

    @property
    def groups(self) -> int:
        """Groups of devices, each of which has organisms of its own."""
        return spread_over(self.mesh, "organism")

    @cached_property
    def model(self) -> Model:
        m = self.config.model
        return load_model(m.name, dtype=m.dtype, mesh=self.mesh, revision=m.revision or None)

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage."""
        return jax.random.fold_in(jax.random.key(self.config.seed), stage)

    def shard_by_organism(self, tree: Any) -> Any:
        """Puts arrays with a leading organism axis on the mesh (whole, where the mesh does not divide that axis)."""
        first = jax.tree.leaves(tree)[0]
        if first.shape[0] % self.groups:
            return put_on_mesh(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree))
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh, organisms=True))

    def local_organisms(self, count: int) -> list[int]:
        """Which of `count` organisms that `shard_by_organism` places lie on devices of this process."""
        axes = ("organism",) if count % self.groups == 0 else (None,)
        where = named_sharding(self.mesh, axes).addressable_devices_indices_map((count,)).values()
        return sorted({i for index in where if index for i in range(count)[index[0]]})

    def shard_ia(self, tree: Any) -> Any:
        """Puts the IA, or its training state, on the mesh: spread like the base weights, as a step leaves it; arrays
        outside an adapter lie whole on every device.
        """
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh))


class Organisms(AdapterStream):
    """The stored organisms of these names, and after them the clean base if asked; `take` puts them on the mesh."""

    def __init__(self, context: Context, names: Sequence[str], clean: bool = False):
        self.names = list(names)
        workdir = context.workdir
        super().__init__(
            [workdir.stack_of(workdir.organisms[n])[-1] for n in self.names],
            context.model,
            context.shard_by_organism,
            held=context.local_organisms,
            zeros=int(clean),
            lora=context.config.organisms.lora.lora(),
        )
