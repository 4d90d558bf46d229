"""The introspection adapter: one LoRA trained over many frozen organisms at once, by SFT and then by DPO.

Both steps see a stack `(organisms [K, ...], IA)` and differentiate the IA alone.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ia_jax.data.batch import Batch, token_counts
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Adapter, LoraConfig
from ia_jax.models.transformer import Params, forward
from ia_jax.parallel.mesh import replicate
from ia_jax.training.losses import dpo_loss, example_logps, sft_loss, supervised_logps
from ia_jax.training.optimizer import AdamW, apply_direction, learning_rate, make_optimizer


class IAState(NamedTuple):
    """The IA, its Adam moments, updates made and planned."""

    adapter: Adapter
    moments: Any
    updates: jax.Array
    total: jax.Array


def init_state(adapter: Adapter, total: int, lora: LoraConfig, optimizer: AdamW) -> IAState:
    moments = make_optimizer(optimizer, lora.scale).init(adapter)
    return IAState(adapter, moments, jnp.int32(0), jnp.int32(total))


def _token_logps(
    params: Params, organisms: Adapter, ia: Adapter, batch: Batch, cfg: ModelConfig, remat: str
) -> jax.Array:
    hidden = forward(params, batch.tokens, batch.segment_ids, batch.positions, (organisms, ia), cfg, remat=remat)
    return supervised_logps(params, hidden, batch)


def _updated(
    state: IAState, grads: Adapter, lora: LoraConfig, optimizer: AdamW
) -> tuple[IAState, dict[str, jax.Array]]:
    direction, moments = make_optimizer(optimizer, lora.scale).update(grads, state.moments, state.adapter)
    lr = learning_rate(optimizer, (state.updates + 1) / state.total)
    adapter = apply_direction(state.adapter, direction, lr)
    metrics = {"grad_norm": optax.global_norm(grads), "lr": lr}
    return IAState(adapter, moments, state.updates + 1, state.total), metrics


@partial(jax.jit, static_argnames=("cfg", "lora", "optimizer", "remat"), donate_argnames="state")
def sft_step(
    params: Params,
    state: IAState,
    organisms: Adapter,
    batch: Batch,
    *,
    cfg: ModelConfig,
    lora: LoraConfig,
    optimizer: AdamW,
    remat: str = "none",
) -> tuple[IAState, dict[str, jax.Array]]:
    """Mean over the step's organisms of each one's mean token loss (paper_facts 2.3: every batch's loss over k).

    Metrics: the loss, `per_organism` [K] (NaN where an organism has no row), gradient norm, rate and token counts.
    """

    def mean_loss(ia: Adapter) -> tuple[jax.Array, jax.Array]:
        losses = sft_loss(_token_logps(params, organisms, ia, batch, cfg, remat), batch.target_weight)
        present = batch.target_weight.sum(-1) > 0
        return (losses * present).sum() / present.sum(), jnp.where(present, losses, jnp.nan)

    (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.adapter)
    state, metrics = _updated(state, grads, lora, optimizer)
    return state, replicate({"loss": loss, "per_organism": losses, **metrics, **token_counts(batch)})


@partial(jax.jit, static_argnames=("cfg", "examples", "remat"))
def sequence_logps(
    params: Params,
    organisms: Adapter,
    ia: Adapter,
    batch: Batch,
    *,
    cfg: ModelConfig,
    examples: int,
    remat: str = "none",
) -> jax.Array:
    """Summed log-probability of every example's answer, [K, examples]: the DPO reference, computed once."""
    return replicate(example_logps(_token_logps(params, organisms, ia, batch, cfg, remat), batch, examples))


@partial(jax.jit, static_argnames=("cfg", "lora", "optimizer", "beta", "sft_weight", "remat"), donate_argnames="state")
def dpo_step(
    params: Params,
    state: IAState,
    organisms: Adapter,
    batch: Batch,
    reference: jax.Array,
    *,
    cfg: ModelConfig,
    lora: LoraConfig,
    optimizer: AdamW,
    beta: float,
    sft_weight: float = 0.0,
    remat: str = "none",
) -> tuple[IAState, dict[str, jax.Array]]:
    """One DPO update. Examples alternate chosen, rejected; reference: [K, 2N] of `sequence_logps` under the SFT IA.

    The loss is the mean over the step's organisms of each one's mean over its own pairs, as in SFT (paper_facts 2.3).
    `sft_weight` adds the mean token loss of the chosen answers (RPO), averaged alike, which keeps their probability
    from falling. Metrics: as `sft_step` (`per_organism` is each one's DPO loss), and those of all pairs alike.
    """
    count = reference.shape[1]

    def mean_loss(ia: Adapter) -> tuple[jax.Array, dict[str, jax.Array]]:
        token_logps = _token_logps(params, organisms, ia, batch, cfg, remat)
        policy = example_logps(token_logps, batch, count)
        lengths = example_logps(jnp.ones_like(token_logps), batch, count)
        chosen, rejected = policy[:, 0::2], policy[:, 1::2]
        is_pair = lengths[:, 0::2] > 0
        own = is_pair.sum(-1)
        present, pairs = own > 0, jnp.maximum(own.sum(), 1)
        losses = dpo_loss(chosen, rejected, reference[:, 0::2], reference[:, 1::2], beta)
        margin = (chosen - reference[:, 0::2]) - (rejected - reference[:, 1::2])
        of_organism = jnp.where(is_pair, losses, 0.0).sum(-1) / jnp.maximum(own, 1)
        tokens = jnp.where(is_pair, lengths[:, 0::2], 0.0).sum(-1)
        nll_of_organism = -jnp.where(is_pair, chosen, 0.0).sum(-1) / jnp.maximum(tokens, 1)
        dpo, nll = (x.sum() / jnp.maximum(present.sum(), 1) for x in (of_organism, nll_of_organism))
        metrics = {
            "dpo_loss": dpo,
            "per_organism": jnp.where(present, of_organism, jnp.nan),
            "chosen_nll": nll,
            "margin": jnp.where(is_pair, margin, 0.0).sum() / pairs,
            "accuracy": jnp.where(is_pair, margin > 0, False).sum() / pairs,
        }
        return dpo + sft_weight * nll, metrics

    (loss, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.adapter)
    state, more = _updated(state, grads, lora, optimizer)
    return state, replicate({"loss": loss, **metrics, **more, **token_counts(batch)})
