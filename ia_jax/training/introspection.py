"""The introspection adapter: one LoRA trained over many frozen organisms at once, by SFT and then by DPO.

Both steps see a stack `(organisms [K, ...], IA)` and differentiate the IA alone.
"""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ia_jax.data.batch import Batch, token_counts
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Adapter, LoraConfig
from ia_jax.models.transformer import Params, forward
from ia_jax.parallel.mesh import TRAINING, Rules, replicate
from ia_jax.training.accumulate import sum_over_parts
from ia_jax.training.losses import dpo_loss, example_logps, sft_loss, supervised_logps
from ia_jax.training.optimizer import AdamW, apply_direction, learning_rate, make_optimizer


@flax.struct.dataclass
class IAState:
    """The IA, its Adam moments, updates made and planned."""

    adapter: Adapter
    moments: Any
    updates: jax.Array
    total: jax.Array


def init_state(adapter: Adapter, total: int, lora: LoraConfig, optimizer: AdamW) -> IAState:
    moments = make_optimizer(optimizer, lora.scale).init(adapter)
    return IAState(adapter, moments, jnp.int32(0), jnp.int32(total))


def _token_logps(
    params: Params, organisms: Adapter, ia: Adapter, batch: Batch, cfg: ModelConfig, rules: Rules, remat: str
) -> jax.Array:
    rows = batch.tokens, batch.segment_ids, batch.positions
    hidden = forward(params, *rows, (organisms, ia), cfg, rules=rules, remat=remat)
    return supervised_logps(params, hidden, batch, rules=rules)


def _updated(
    state: IAState, grads: Adapter, lora: LoraConfig, optimizer: AdamW
) -> tuple[IAState, dict[str, jax.Array]]:
    direction, moments = make_optimizer(optimizer, lora.scale).update(grads, state.moments, state.adapter)
    lr = learning_rate(optimizer, (state.updates + 1) / state.total)
    adapter = apply_direction(state.adapter, direction, lr)
    metrics = {"grad_norm": optax.global_norm(grads), "lr": lr}
    return IAState(adapter, moments, state.updates + 1, state.total), metrics


@partial(jax.jit, static_argnames=("cfg", "lora", "optimizer", "rules", "remat", "accumulate"), donate_argnames="state")
def sft_step(
    params: Params,
    state: IAState,
    organisms: Adapter,
    batch: Batch,
    *,
    cfg: ModelConfig,
    lora: LoraConfig,
    optimizer: AdamW,
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
) -> tuple[IAState, dict[str, jax.Array]]:
    """Mean over the step's organisms of each one's mean token loss (paper_facts 2.3: every batch's loss over k).

    `accumulate` takes the rows in so many parts, one after the other: the same loss and gradient in less memory.
    Metrics: the loss, `per_organism` [K] (NaN where an organism has no row), gradient norm, rate and token counts.
    """
    tokens = batch.target_weight.sum((1, 2))
    present = tokens > 0

    def mean_loss(ia: Adapter, part: Batch) -> tuple[jax.Array, jax.Array]:
        losses = sft_loss(_token_logps(params, organisms, ia, part, cfg, rules, remat), part.target_weight, tokens)
        return (losses * present).sum() / present.sum(), losses

    gradient = partial(jax.value_and_grad(mean_loss, has_aux=True), state.adapter)
    (loss, losses), grads = sum_over_parts(gradient, batch, accumulate, rules)
    state, metrics = _updated(state, grads, lora, optimizer)
    per_organism = jnp.where(present, losses, jnp.nan)
    return state, replicate({"loss": loss, "per_organism": per_organism, **metrics, **token_counts(batch)})


@partial(jax.jit, static_argnames=("cfg", "examples", "rules", "remat", "accumulate"))
def sequence_logps(
    params: Params,
    organisms: Adapter,
    ia: Adapter,
    batch: Batch,
    *,
    cfg: ModelConfig,
    examples: int,
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
) -> jax.Array:
    """Summed log-probability of every example's answer, [K, examples]: the DPO reference, computed once."""

    def logps(part: Batch) -> jax.Array:
        return example_logps(_token_logps(params, organisms, ia, part, cfg, rules, remat), part, examples, rules)

    return replicate(sum_over_parts(logps, batch, accumulate, rules))


@partial(
    jax.jit,
    static_argnames=("cfg", "lora", "optimizer", "beta", "sft_weight", "rules", "remat", "accumulate"),
    donate_argnames="state",
)
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
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
) -> tuple[IAState, dict[str, jax.Array]]:
    """One DPO update. Examples alternate chosen, rejected; reference: [K, 2N] of `sequence_logps` under the SFT IA.

    The loss is the mean over the step's organisms of each one's mean over its own pairs, as in SFT (paper_facts 2.3).
    `sft_weight` adds the mean token loss of the chosen answers (RPO), averaged alike, which keeps their probability
    from falling. `accumulate` as in `sft_step`; no pair lies on two rows. Metrics: as `sft_step` (`per_organism` is
    each one's DPO loss), and those of all pairs alike.
    """
    count = reference.shape[1]

    def chosen_lengths(rows: Batch) -> jax.Array:
        """[K, N]: tokens of each chosen answer in these rows, 0 where they do not hold the pair."""
        return example_logps(jnp.ones_like(rows.target_weight), rows, count, rules)[:, 0::2]

    lengths = chosen_lengths(batch)
    own, tokens = (lengths > 0).sum(-1), jnp.maximum(lengths.sum(-1), 1)
    present, pairs = own > 0, jnp.maximum(own.sum(), 1)
    organisms_present = jnp.maximum(present.sum(), 1)

    def mean_loss(ia: Adapter, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy = example_logps(_token_logps(params, organisms, ia, part, cfg, rules, remat), part, count, rules)
        here = chosen_lengths(part) > 0
        chosen, rejected = policy[:, 0::2], policy[:, 1::2]
        losses = dpo_loss(chosen, rejected, reference[:, 0::2], reference[:, 1::2], beta)
        margin = (chosen - reference[:, 0::2]) - (rejected - reference[:, 1::2])
        per_organism = jnp.where(here, losses, 0.0).sum(-1) / jnp.maximum(own, 1)
        nll_of_organism = -jnp.where(here, chosen, 0.0).sum(-1) / tokens
        dpo, nll = per_organism.sum() / organisms_present, nll_of_organism.sum() / organisms_present
        metrics = {
            "dpo_loss": dpo,
            "per_organism": per_organism,
            "chosen_nll": nll,
            "margin": jnp.where(here, margin, 0.0).sum() / pairs,
            "accuracy": (here & (margin > 0)).sum() / pairs,
        }
        return dpo + sft_weight * nll, metrics

    gradient = partial(jax.value_and_grad(mean_loss, has_aux=True), state.adapter)
    (loss, metrics), grads = sum_over_parts(gradient, batch, accumulate, rules)
    metrics["per_organism"] = jnp.where(present, metrics["per_organism"], jnp.nan)
    state, more = _updated(state, grads, lora, optimizer)
    return state, replicate({"loss": loss, **metrics, **more, **token_counts(batch)})
