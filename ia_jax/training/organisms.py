"""K organisms in one step over one frozen base: each has its own loss, gradient, clip, Adam moments and schedule.

Nothing is shared between organisms but the base weights they read, so organism i in a stack is organism i alone.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import partial, reduce
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ia_jax.data.batch import Batch, token_counts
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Adapter, LoraConfig, adapter_shardings, init_organisms, pad_rank
from ia_jax.models.transformer import Params, forward
from ia_jax.parallel.mesh import TRAINING, Rules, mesh_in_use, replicate
from ia_jax.training.accumulate import sum_over_parts
from ia_jax.training.losses import sft_loss, supervised_logps
from ia_jax.training.optimizer import AdamW, apply_direction, learning_rate, make_optimizer


class Diverged(IntEnum):
    """Why an organism is no longer trained; 0 means that it is."""

    LOSS = 1
    GRADIENT = 2
    UPDATE = 3
    WORSE_THAN_GUESSING = 4

    def reason(self, updates: int) -> str:
        """In words, for an organism that had made `updates` updates."""
        what = {
            Diverged.LOSS: "its loss was not finite",
            Diverged.GRADIENT: "its gradient was not finite",
            Diverged.UPDATE: "the update overflowed",
            Diverged.WORSE_THAN_GUESSING: "its loss was over twice that of a uniform guess",
        }
        return f"{what[self]} at update {updates + 1}"


@flax.struct.dataclass
class OrganismsState:
    """adapters: leaves [K, ...]; moments: Adam's, [K, ...]; scale: [K] alpha/rank, which `b` holds; updates: [K] made;
    total: [K] planned; diverged: [K], 0 or the `Diverged` for which an organism has been left as it was before the step
    that failed.
    """

    adapters: Adapter
    moments: Any
    scale: jax.Array
    updates: jax.Array
    total: jax.Array
    diverged: jax.Array


def init_state(
    keys: jax.Array, total: jax.Array, cfg: ModelConfig, lora: LoraConfig, optimizer: AdamW
) -> OrganismsState:
    """Organisms of one kind of adapter. keys, total: [K]."""
    return init_mixed_state(keys, total, jnp.zeros_like(total), cfg, (lora,), optimizer)


def init_mixed_state(
    keys: jax.Array,
    total: jax.Array,
    kinds: jax.Array,
    cfg: ModelConfig,
    loras: Sequence[LoraConfig],
    optimizer: AdamW,
) -> OrganismsState:
    """Organisms of several ranks and alphas on the same targets, padded with zeros to the largest rank of `loras`.

    Organism i is of kind `loras[kinds[i]]` and starts as it does alone; what is padded stays exactly zero. keys, total,
    kinds: [K].
    """
    rank = max(lora.rank for lora in loras)
    each = [pad_rank(init_organisms(keys, cfg, lora), rank) for lora in loras]

    def pick(*options: jax.Array) -> jax.Array:
        chosen = options[0]
        for kind, option in enumerate(options[1:], 1):
            chosen = jnp.where((kinds == kind).reshape(-1, *[1] * (option.ndim - 1)), option, chosen)
        return chosen

    adapters = jax.tree.map(pick, *each)
    scale = pick(*[jnp.full_like(total, lora.scale, jnp.float32) for lora in loras])
    moments = jax.vmap(lambda a, s: make_optimizer(optimizer, s).init(a))(adapters, scale)
    return OrganismsState(adapters, moments, scale, jnp.zeros_like(total), total, jnp.zeros_like(total))


def init_on_mesh(
    mesh: Mesh,
    keys: jax.Array,
    total: jax.Array,
    kinds: jax.Array,
    cfg: ModelConfig,
    loras: Sequence[LoraConfig],
    optimizer: AdamW,
) -> OrganismsState:
    """`init_mixed_state`, every leaf made where its logical axes lie, which is where a step leaves it."""
    make = partial(init_mixed_state, cfg=cfg, loras=loras, optimizer=optimizer)
    shardings = adapter_shardings(jax.eval_shape(make, keys, total, kinds), mesh, organisms=True)
    return jax.jit(make, out_shardings=shardings)(keys, total, kinds)


@partial(jax.jit, static_argnames=("cfg", "optimizer", "rules", "remat", "accumulate"), donate_argnames="state")
def organisms_step(
    params: Params,
    state: OrganismsState,
    batch: Batch,
    *,
    cfg: ModelConfig,
    optimizer: AdamW,
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
) -> tuple[OrganismsState, dict[str, jax.Array]]:
    """One update of every organism that has a row in this batch and has not diverged. Metrics are [K].

    An organism diverges when its loss, gradient or update is not finite, or its loss is over 2 ln V (twice a uniform
    guess). It is masked from then on, and so changes no bit of the others. `accumulate` takes the rows in so many
    parts, one after the other: the same loss and gradient in less memory.
    """
    placed = adapter_shardings(state, mesh_in_use(), organisms=True, rules=rules)
    state = jax.tree.map(jax.sharding.reshard, state, placed)  # nothing moves where `init_on_mesh` made it
    tokens = batch.target_weight.sum((1, 2))

    def total_loss(adapters: Adapter, part: Batch) -> tuple[jax.Array, jax.Array]:
        rows = part.tokens, part.segment_ids, part.positions
        hidden = forward(params, *rows, (adapters,), cfg, rules=rules, remat=remat)
        losses = sft_loss(supervised_logps(params, hidden, part, rules=rules), part.target_weight, tokens)
        return losses.sum(), losses  # the sum's gradient is each organism's own

    gradient = partial(jax.grad(total_loss, has_aux=True), state.adapters)
    grads, losses = sum_over_parts(gradient, batch, accumulate, rules)
    norms = jax.vmap(optax.global_norm)(grads)
    direction, moments = jax.vmap(lambda g, m, a, s: make_optimizer(optimizer, s).update(g, m, a))(
        grads, state.moments, state.adapters, state.scale
    )
    lr = learning_rate(optimizer, (state.updates + 1) / jnp.maximum(state.total, 1))
    adapters = jax.vmap(apply_direction)(state.adapters, direction, lr)
    causes = {  # the last that holds is told
        Diverged.WORSE_THAN_GUESSING: losses > 2 * math.log(cfg.vocab_size),
        Diverged.UPDATE: ~_finite_by_organism((adapters, moments)),
        Diverged.GRADIENT: ~jnp.isfinite(norms),
        Diverged.LOSS: ~jnp.isfinite(losses),
    }
    diverged = state.diverged
    for cause, holds in causes.items():
        diverged = jnp.where(holds & (state.diverged == 0), int(cause), diverged)
    update = (tokens > 0) & (diverged == 0)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(update.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    state = OrganismsState(
        jax.tree.map(keep, adapters, state.adapters),
        jax.tree.map(keep, moments, state.moments),
        state.scale,
        state.updates + update,
        state.total,
        diverged,
    )
    return state, replicate({"loss": losses, "grad_norm": norms, "updated": update, **token_counts(batch)})


def _finite_by_organism(tree: Any) -> jax.Array:
    """[K]: whether all of an organism's numbers are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in floats]
    return reduce(jnp.logical_and, finite)
