"""K organisms in one step over one frozen base: each has its own loss, gradient, clip, Adam moments and schedule.

Nothing is shared between organisms but the base weights they read, so organism i in a stack is organism i alone.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ia_jax.adapters.lora import Adapter, LoraConfig, init_organisms
from ia_jax.config import OptimizerSection
from ia_jax.models.config import ModelConfig
from ia_jax.models.transformer import Params, forward
from ia_jax.training.losses import Batch, sft_loss, supervised_logps
from ia_jax.training.optimizer import apply_direction, learning_rate, make_optimizer


class OrganismsState(NamedTuple):
    """adapters: leaves [K, ...]; moments: Adam's, [K, ...]; updates: [K] made; total: [K] planned;
    diverged: [K], True once an organism's loss or gradient was not finite (it is left as it was before).
    """

    adapters: Adapter
    moments: Any
    updates: jax.Array
    total: jax.Array
    diverged: jax.Array


def init_state(
    keys: jax.Array, total: jax.Array, cfg: ModelConfig, lora: LoraConfig, optimizer: OptimizerSection
) -> OrganismsState:
    """keys, total: [K]."""
    adapters = init_organisms(keys, cfg, lora)
    moments = jax.vmap(make_optimizer(optimizer, lora).init)(adapters)
    # Made from `total`, so that they lie on the mesh as a step leaves them: else the second step compiles again.
    return OrganismsState(adapters, moments, jnp.zeros_like(total), total, total != total)


@partial(jax.jit, static_argnames=("cfg", "lora", "optimizer", "remat"), donate_argnames="state")
def organisms_step(
    params: Params,
    state: OrganismsState,
    batch: Batch,
    *,
    cfg: ModelConfig,
    lora: LoraConfig,
    optimizer: OptimizerSection,
    remat: str = "none",
) -> tuple[OrganismsState, dict[str, jax.Array]]:
    """One update of every organism that has a row in this batch and is finite. Metrics are [K]."""
    tx = make_optimizer(optimizer, lora)

    def total_loss(adapters: Adapter) -> tuple[jax.Array, jax.Array]:
        hidden = forward(params, batch.tokens, batch.segment_ids, batch.positions, (adapters,), cfg, remat=remat)
        losses = sft_loss(supervised_logps(params, hidden, batch), batch.target_weight)
        return losses.sum(), losses  # the sum's gradient is each organism's own

    grads, losses = jax.grad(total_loss, has_aux=True)(state.adapters)
    norms = jax.vmap(optax.global_norm)(grads)
    finite = jnp.isfinite(losses) & jnp.isfinite(norms)
    diverged = state.diverged | ~finite
    update = (batch.target_weight.sum(-1) > 0) & ~diverged
    direction, moments = jax.vmap(tx.update)(grads, state.moments, state.adapters)
    lr = learning_rate(optimizer, (state.updates + 1) / jnp.maximum(state.total, 1))
    adapters = jax.vmap(apply_direction)(state.adapters, direction, lr)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(update.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    state = OrganismsState(
        jax.tree.map(keep, adapters, state.adapters),
        jax.tree.map(keep, moments, state.moments),
        state.updates + update,
        state.total,
        diverged,
    )
    return state, {"loss": losses, "grad_norm": norms, "updated": update}
