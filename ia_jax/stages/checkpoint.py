"""Merged and fully fine-tuned checkpoints: as targets of an audit, and put back into the base's basis."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.checkpoint import Alignment, aligned_tensors, low_rank, open_pair, with_kept
from ia_jax.adapters.merge import write_checkpoint
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.models.sources import SafetensorsSource
from ia_jax.models.transformer import Params, param_shardings
from ia_jax.models.weights import assemble
from ia_jax.parallel.mesh import put_on_mesh
from ia_jax.stages.context import Context

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float32"}


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tune to audit.

    params: its weights, None where `adapters` say all of it. at_dose: weights as far from the base as asked. about: how
    it was read, in words.
    """

    params: Params | None
    at_dose: Callable[[float], Params] | None
    adapters: tuple[Adapter, ...]
    about: str


def read_checkpoint(context: Context, model: str, rank: int | None = None, revision: str | None = None) -> Checkpoint:
    """A checkpoint of the run's base: its own weights, or with `rank` the difference cut to a LoRA of that rank (the
    error is in `about`; embeddings, norms and biases that changed are kept whole).

    Sharded like the base; memory: a second set of weights, and a third while it is scaled. Raises ConfigError for what
    is no fine-tune of this base, or is not finite.
    """
    base, own = context.config.model, context.model
    pair = open_pair(base.name, model, base.revision or None, revision, context.model_cache)
    if rank is not None:
        cut = low_rank(pair, rank)
        adapters = (jax.tree.map(jnp.asarray, cut.adapter),)
        error = f"cut to rank {rank} with an error of {100 * cut.error:.1f} %"
        about = f"difference {100 * cut.size:.2f} % of the base, {error}"
        if not cut.kept:
            return Checkpoint(None, None, adapters, about)

        def place(value: np.ndarray, old: jax.Array) -> jax.Array:
            return put_on_mesh(value.astype(old.dtype), old.sharding)

        params = with_kept(own.params, cut.kept, place)
        names = ", ".join(path[-1] for path in cut.kept)
        return Checkpoint(params, _doses(own.params, params), adapters, f"{about}; kept whole: {names}")
    if base.quantization:
        raise ConfigError(
            f"--model={model}: this run's base is held in {base.quantization}, whose steps are larger than most "
            "fine-tunes' changes; give --rank to cut the difference to a LoRA, or use a run with model.quantization=''"
        )
    params = assemble(pair.model, base.dtype, param_shardings(own.config, context.mesh))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not bool(jnp.isfinite(leaf).all()):
            name = ".".join(p.key for p in path)
            raise ConfigError(f"{model}: {name} holds values that are not finite; export it again")
    return Checkpoint(params, _doses(own.params, params), (), "all of its weights")


def _doses(base: Params, params: Params) -> Callable[[float], Params]:
    @jax.jit
    def between(base: Params, params: Params, dose: jax.Array) -> Params:
        def leaf(b: Any, p: Any) -> Any:
            b32 = b.astype(jnp.float32)
            return (b32 + dose * (p.astype(jnp.float32) - b32)).astype(b.dtype)

        return jax.tree.map(leaf, base, params)

    def at_dose(dose: float) -> Params:
        return base if dose == 0.0 else params if dose == 1.0 else between(base, params, jnp.float32(dose))

    return at_dose


def align(model: str, destination: Path, to: str, revision: str | None = None) -> dict[str, Any]:
    """Writes a checkpoint in its base's basis (`adapters.align`), in the dtype that it is stored in; says what was
    undone and the distance to the base before and after. Nothing is left behind where it cannot be aligned.
    """
    pair = open_pair(to, model, None, revision)
    if not isinstance(pair.model, SafetensorsSource):
        raise ConfigError(f"{model}: only safetensors are aligned; export it as a Hugging Face directory")
    stored, _ = pair.model.raw_rows(next(iter(pair.model_names.values())).name, np.array([0]))
    found, there = Alignment(), destination.exists()
    try:
        shards = write_checkpoint(aligned_tensors(pair, found), pair.model, destination, _STORED[stored])
    except ConfigError:
        shutil.rmtree(destination, ignore_errors=True)
        if there:
            destination.mkdir()
        raise
    return {
        "model": model,
        "base": to,
        "destination": str(destination),
        "shards": shards,
        "undone": {k: v for k, v in vars(found.undone).items() if v},
        "in_words": found.undone.in_words(),
        "distance_before": round(found.before, 6),
        "distance_after": round(found.after, 6),
    }
