"""The training step: a frozen stack, one trained member on top of it, and a loss.

| what | frozen | trained |
|---|---|---|
| organisms | () | [K, ...] |
| organisms taught in phases, or hardened | (first [K, ...],) | second [K, ...] |
| the introspection adapter | (organisms [K, ...],), or two of each | one, over all of them |

A member with an organism axis is K trainings at once: each organism has a loss, clip, moments, schedule and rate of its
own, and nothing is shared but the base, so that organism i in a stack is organism i alone. A member without one is
trained on the mean of the losses of those organisms that a step reads.
"""

import math
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ia_jax.data.batch import Batch, Beside, token_counts
from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.dropout import Dropout, row_keys
from ia_jax.models.lora import Stack, adapter_shardings
from ia_jax.models.transformer import Params, forward
from ia_jax.parallel.mesh import TRAINING, Rules, mesh_in_use, replicate
from ia_jax.training.accumulate import sum_over_parts
from ia_jax.training.differences import by_organism, is_difference
from ia_jax.training.logps import example_sums, supervised_kl, supervised_logps
from ia_jax.training.losses import Loss, kl_estimate
from ia_jax.training.optimizer import AdamW, apply_direction, learning_rate, make_optimizer
from ia_jax.training.state import Diverged, TrainState

NOTHING = Beside()


@partial(
    jax.jit,
    static_argnames=("cfg", "loss", "rules", "remat", "accumulate", "dropout"),
    donate_argnames="state",
)
def train_step(
    params: Params,
    state: TrainState,
    frozen: Stack,
    batch: Batch,
    beside: Beside = NOTHING,
    *,
    cfg: ModelConfig,
    loss: Loss,
    optimizer: AdamW,
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
    dropout: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of `state.member` on top of `frozen`, by the gradient of `loss` on the batch.

    beside: what the loss reads besides. optimizer: all of it but the rate, of which `state.lr` is the highest.
    `accumulate` takes the rows in so many parts, one after the other: the same loss and gradient in less memory.
    dropout: of the trained member's inputs.

    With an organism axis, metrics are [K]: `loss`, `grad_norm`, `lr`, `updated`, the loss's terms where it has several,
    and what it sees of its examples. An organism is updated if it has a row and has not diverged. It diverges when its
    loss, gradient or update is not finite, or the tokens that are to become likely are on average less so than in a
    uniform guess twice over (2 ln V); it is masked from then on, and so changes no bit of the others.

    Without one, the loss is the mean over the organisms that have a row of each one's own (paper_facts 2.3), metrics
    are means alike, and `per_organism` is [K] (NaN for one without a row). Both: counts of tokens.

    Raises ConfigError where the loss misses something in `beside`, or the rows do not divide.
    """
    organisms = state.updates.ndim == 1
    loss.check(batch, beside)
    placed = adapter_shardings(state, mesh_in_use(), organisms=organisms, rules=rules)
    state = jax.tree.map(jax.sharding.reshard, state, placed)  # nothing moves where a step left it
    present = batch.target_weight.sum((1, 2)) > 0
    see = partial(_token_logps, params, cfg=cfg, rules=rules, remat=remat)
    counts = loss.counts(batch, beside, rules)
    kl = _mismatched_kl(see, (*frozen, state.member), beside, accumulate, rules)
    plain = beside.plain if loss.kl_weight else None
    plain_tokens = None if plain is None else plain.target_weight.sum((1, 2))
    rows = [None if b is None else (b, _drawn(state, b, n, dropout)) for n, b in enumerate((batch, plain))]

    def over_organisms(term: jax.Array) -> jax.Array:
        """[K] -> what is differentiated: organisms' own, or the mean of those that are there."""
        return term if organisms else jnp.where(present, term, 0.0).sum() / jnp.maximum(present.sum(), 1)

    def over_examples(values: jax.Array, number: jax.Array) -> jax.Array:
        """[K, N] -> the mean of an organism's examples, or of all."""
        if organisms:
            return values.sum(-1) / jnp.maximum(number, 1)
        return values.sum() / jnp.maximum(number.sum(), 1)

    def objective(member: Any, rows: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        (batch, drawn), plain = rows
        stack = *frozen, member
        scores = loss.scores(see(stack, batch, drawn, dropout), batch, counts, beside, rules, kl)
        terms, weights = scores.terms, loss.weights
        main = next(iter(terms.values()))
        if plain is not None:
            away = _mean_kl(params, stack, plain, plain_tokens, cfg=cfg, rules=rules, remat=remat, dropout=dropout)
            terms, weights = terms | {"kl": away}, weights | {"kl": loss.kl_weight}
        own = {name: over_organisms(term) for name, term in terms.items()}
        value = reduce(add, (weights[name] * own[name] for name in own))
        seen = {name: over_examples(*pair) for name, pair in scores.seen.items()}
        metrics = {"loss": value, "per_organism": main, "nll": scores.nll} | (own if len(own) > 1 else {}) | seen
        return value.sum(), metrics  # the sum's gradient is each organism's own

    grads, metrics = sum_over_parts(partial(jax.grad(objective, has_aux=True), state.member), rows, accumulate, rules)
    losses, nll = metrics.pop("per_organism"), metrics.pop("nll")
    after, more = _updated(state, grads, optimizer)
    metrics |= more | token_counts(batch)
    if not organisms:
        metrics["per_organism"] = jnp.where(present, losses, jnp.nan)
        return after, replicate(metrics)
    after, metrics["updated"] = _masked(state, after, metrics, nll, present, cfg)
    return after, replicate(metrics)


@jax.named_scope("optimizer")
def _updated(state: TrainState, grads: Any, optimizer: AdamW) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step in the direction that Adam makes of the gradient."""

    def by_member(function: Any) -> Any:
        return jax.vmap(function) if state.updates.ndim else function

    def direct(grad: Any, moments: Any, member: Any, scale: Any) -> tuple[Any, Any]:
        return make_optimizer(optimizer, scale).update(grad, moments, member)

    norms = by_member(optax.global_norm)(grads)
    direction, moments = by_member(direct)(grads, state.moments, state.member, state.scale)
    lr = learning_rate(optimizer, (state.updates + 1) / jnp.maximum(state.total, 1), state.lr)
    member = by_member(apply_direction)(state.member, direction, lr)
    after = replace(state, member=member, moments=moments, updates=state.updates + 1)
    return after, {"grad_norm": norms, "lr": lr}


def _masked(
    state: TrainState, after: TrainState, metrics: dict, nll: jax.Array, present: jax.Array, cfg: ModelConfig
) -> tuple[TrainState, jax.Array]:
    """The state after a step of those organisms that read something and are well, before it of the others; and [K]
    which are which.
    """
    causes = {  # the last that holds is told
        Diverged.WORSE_THAN_GUESSING: nll > 2 * math.log(cfg.vocab_size),
        Diverged.UPDATE: ~_finite_by_organism((after.member, after.moments)),
        Diverged.GRADIENT: ~jnp.isfinite(metrics["grad_norm"]),
        Diverged.LOSS: ~jnp.isfinite(metrics["loss"]),
    }
    diverged = state.diverged
    for cause, holds in causes.items():
        diverged = jnp.where(holds & (state.diverged == 0), int(cause), diverged)
    update = present & (diverged == 0)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(update.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    member, moments = jax.tree.map(keep, (after.member, after.moments), (state.member, state.moments))
    updates = state.updates + update
    return replace(after, member=member, moments=moments, updates=updates, diverged=diverged), update


def _finite_by_organism(tree: Any) -> jax.Array:
    """[K]: whether all of an organism's numbers are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in floats]
    return reduce(jnp.logical_and, finite)


# ---------------------------------------------------------------------------------------------------------------------
# What losses are functions of
# ---------------------------------------------------------------------------------------------------------------------


def _token_logps(
    params: Params,
    stack: Stack,
    batch: Batch,
    drawn: jax.Array | None = None,
    dropout: float = 0.0,
    *,
    cfg: ModelConfig,
    rules: Rules,
    remat: str,
) -> jax.Array:
    """[K, B, P] log-probabilities of a batch's supervised tokens under a stack."""

    def own(params: Params, stack: Stack, rows: tuple[Batch, Any], trained: bool) -> jax.Array:
        batch, drawn = rows
        more = _dropout(drawn, dropout)
        hidden = forward(params, *_rows(batch), stack, cfg, rules=rules, remat=remat, **more)
        return supervised_logps(params, hidden, batch, rules=rules, trained_head=trained)

    return by_organism(own, params, stack, (batch, drawn))


def _mean_kl(
    params: Params,
    stack: Stack,
    plain: tuple[Batch, Any],
    tokens: jax.Array | None,
    *,
    cfg: ModelConfig,
    rules: Rules,
    remat: str,
    dropout: float,
) -> jax.Array:
    """[K] KL(stack without its last member || stack), the mean over an organism's `tokens` supervised ones."""

    def hidden_before(params: Params, stack: Stack, batch: Batch, trained: bool) -> jax.Array:
        return forward(params, *_rows(batch), stack, cfg, rules=rules)

    assert tokens is not None
    batch, drawn = plain
    before = jax.lax.stop_gradient(by_organism(hidden_before, params, stack[:-1], batch))

    def own(changed: Params, stack: Stack, rows: tuple[Batch, Any, jax.Array], trained: bool) -> jax.Array:
        batch, drawn, before = rows
        more = _dropout(drawn, dropout)
        hidden = forward(changed, *_rows(batch), stack, cfg, rules=rules, remat=remat, **more)
        base = params if trained else changed
        return supervised_kl(changed, hidden, base, before, batch, rules=rules, trained_head=trained)

    kl = by_organism(own, params, stack, (batch, drawn, before))
    return (kl * batch.target_weight).sum((1, 2)) / jnp.maximum(tokens, 1)


def _mismatched_kl(see: Any, stack: Stack, beside: Beside, accumulate: int, rules: Rules) -> jax.Array | None:
    """[K] the estimate of KL(stack || reference) by mismatched answers, without dropout and in a forward pass alone."""
    rows, reference = beside.mismatched, beside.mismatched_reference
    if rows is None or reference is None:
        return None
    count, stack = reference.shape[1], jax.lax.stop_gradient(stack)

    def sums(part: Batch) -> tuple[jax.Array, jax.Array]:
        ones = jnp.ones_like(part.target_weight)
        return example_sums(see(stack, part), part, count, rules), example_sums(ones, part, count, rules)

    policy, lengths = sum_over_parts(sums, rows, accumulate, rules)
    return kl_estimate(policy, reference, lengths)


def _rows(batch: Batch) -> tuple[Any, Any, Any]:
    return batch.tokens, batch.segment_ids, batch.positions


# ---------------------------------------------------------------------------------------------------------------------
# Dropout: the one place that knows of it
# ---------------------------------------------------------------------------------------------------------------------


def _drawn(state: TrainState, batch: Batch, which: int, rate: float) -> jax.Array | None:
    """uint32 [K, B, 2]: a random key's data for every row of a batch; None where nothing is dropped.

    It comes from the organism's seed, its count of updates, which batch of the step it is, and the row. Where one
    member is trained over all, from its seed and count and the organism's place in the step.
    """
    if not rate:
        return None
    if is_difference(state.member):
        raise ConfigError(f"dropout={rate:g} is of a LoRA's inputs, and a full fine-tune has none; set it to 0")
    organisms, count = batch.tokens.shape[:2]
    fold = jax.random.fold_in
    if state.updates.ndim:
        own = jax.vmap(lambda seed, updates: fold(jax.random.key(seed), updates))(state.seeds, state.updates)
    else:
        one = fold(jax.random.key(state.seeds), state.updates)
        own = jax.vmap(lambda place: fold(one, place))(jnp.arange(organisms))
    return jax.random.key_data(row_keys(jax.vmap(lambda key: fold(key, which))(own), count))


def _dropout(drawn: jax.Array | None, rate: float) -> dict[str, Any]:
    """What `forward` is told, so that the inputs of the stack's last member are dropped."""
    return {} if drawn is None else {"dropout": Dropout(rate, jax.random.wrap_key_data(drawn))}


@partial(jax.jit, static_argnames=("cfg", "examples", "rules", "remat", "accumulate"))
def reference_logps(
    params: Params,
    stack: Stack,
    batch: Batch,
    *,
    cfg: ModelConfig,
    examples: int,
    rules: Rules = TRAINING,
    remat: str = "none",
    accumulate: int = 1,
) -> jax.Array:
    """Summed log-probability of every example's supervised tokens, [K, examples], under a stack: what preferences are
    measured from, computed once.
    """

    def logps(part: Batch) -> jax.Array:
        tokens = _token_logps(params, stack, part, cfg=cfg, rules=rules, remat=remat)
        return example_sums(tokens, part, examples, rules)

    return replicate(sum_over_parts(logps, batch, accumulate, rules))
