"""What every stage works with: the workdir, its config, the base model on its mesh, and the stored organisms."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from ia_jax.adapters.bank import Bank, open_bank
from ia_jax.behaviors.organisms import Organism
from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch, batch_shardings
from ia_jax.models.hub import BUCKET_HOME
from ia_jax.models.lora import adapter_shardings
from ia_jax.models.transformer import Params
from ia_jax.models.weights import DTYPES, Model, load_model
from ia_jax.parallel.distributed import is_multi_process
from ia_jax.parallel.mesh import TRAINING, make_mesh, put_on_mesh
from ia_jax.storage import bucket_of, in_bucket
from ia_jax.workdir import Workdir


@dataclass(frozen=True)
class Context:
    """A workdir, a config, and lazily the mesh and the base model on it.

    profile: steps of each training that are traced. shared: what was loaded, by whichever of the contexts that work
    with the same base.
    """

    workdir: Workdir
    config: RunConfig
    profile: int = 0
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def with_config(self, config: RunConfig) -> "Context":
        """The same workdir under another config; the same base is loaded once for both."""
        return self.at(self.workdir, config)

    def at(self, workdir: Workdir, config: RunConfig) -> "Context":
        """Another workdir under another config; the same base is loaded once for both, by whoever needs it first."""
        same = (config.model, config.mesh) == (self.config.model, self.config.mesh)
        other = Context(workdir, config, self.profile, self.shared if same else {})
        if same:
            vars(other).update({k: v for k, v in vars(self).items() if k in ("mesh", "model")})
        return other

    def with_weights(self, params: Params) -> "Context":
        """The same with other weights in place of the base's, of which nothing else is known."""
        other = self.with_config(self.config)
        vars(other)["model"] = replace(self.model, params=params)
        return other

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        m = self.config.mesh
        if "mesh" not in self.shared:
            self.shared["mesh"] = make_mesh(m.fsdp, m.tp, m.dcn, m.rows)
        return self.shared["mesh"]

    @property
    def groups(self) -> int:
        """Groups of devices, each of which has organisms of its own."""
        return TRAINING.size("organism", self.mesh)

    @cached_property
    def model(self) -> Model:
        m = self.config.model
        if "model" not in self.shared:
            cache = self.model_cache
            self.shared["model"] = load_model(m.name, m.dtype, self.mesh, m.revision or None, m.quantization, cache)
        return self.shared["model"]

    @property
    def model_cache(self) -> str:
        """Where models of the hub are kept for all processes; "": each has its own cache."""
        if self.config.model.cache or not (in_bucket(self.workdir.path) and is_multi_process()):
            return self.config.model.cache
        return f"gs://{bucket_of(self.workdir.path)}/{BUCKET_HOME}"

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage."""
        return jax.random.fold_in(jax.random.key(self.config.seed), stage)

    def shard_by_organism(self, tree: Any) -> Any:
        """Puts arrays with a leading organism axis, a multiple of `groups`, on the mesh."""
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh, organisms=True))

    def shard_batch(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh: by organism and, within each, by row."""
        return put_on_mesh(batch, batch_shardings(batch, self.mesh))

    def shard_ia(self, tree: Any) -> Any:
        """Puts the IA, or its training state, on the mesh: spread like the base weights, as a step leaves it; arrays
        outside an adapter lie whole on every device.
        """
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh))


def open_organisms(context: Context, organisms: Sequence[Organism], clean: int = 0) -> Bank:
    """The stored adapters of these organisms as a bank on the mesh, and after them the clean base `clean` times."""
    cfg = context.config.organisms
    return open_bank(
        [context.workdir.stack_of(o) for o in organisms],
        context.model,
        context.mesh,
        dtype=DTYPES[context.config.model.dtype],
        zeros=clean,
        lora=cfg.lora.lora(),
        budget_bytes=round(cfg.bank_gib * 2**30) if cfg.bank_gib else None,
        cache_bytes=round(cfg.cache_gib * 2**30),
    )
