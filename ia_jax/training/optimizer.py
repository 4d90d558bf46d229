"""One optimizer for organisms and IA: clip, Adam, decoupled weight decay, a schedule over a fraction of training."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ia_jax.models.lora import peft_parametrization


# To jax the rate is data, and all else structure: a step that was compiled for one rate serves all.
@partial(
    jax.tree_util.register_dataclass,
    data_fields=("lr",),
    meta_fields=("warmup_fraction", "final_lr_fraction", "b1", "b2", "eps", "weight_decay", "clip_norm"),
)
@dataclass(frozen=True)
class AdamW:
    """AdamW after clipping each adapter's gradient, with linear warm-up and cosine decay.

    lr: the highest learning rate.
    warmup_fraction: of all steps, until it is reached.
    final_lr_fraction: of it, at the end.
    b1, b2, eps, weight_decay: of AdamW.
    clip_norm: the most that an adapter's gradient may measure.
    """

    lr: float = 1e-4
    warmup_fraction: float = 0.05
    final_lr_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


def learning_rate(cfg: AdamW, progress: jax.Array, peak: jax.Array) -> jax.Array:
    """Linear warm-up to `peak`, then cosine decay to `final_lr_fraction` of it; [K] where organisms have their own.

    progress: 1/steps at the first step, 1 at the last.
    """
    warm = jnp.clip(progress / max(cfg.warmup_fraction, 1e-9), 0.0, 1.0) if cfg.warmup_fraction else 1.0
    along = jnp.clip((progress - cfg.warmup_fraction) / max(1 - cfg.warmup_fraction, 1e-9), 0.0, 1.0)
    cosine = cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * along))
    return peak * jnp.minimum(warm, 1.0) * cosine


def make_optimizer(cfg: AdamW, scale: jax.Array | None) -> optax.GradientTransformation:
    """The direction of a step (without the learning rate), for one adapter of this scale, in PEFT's parametrization.

    scale: None for what is no adapter (a full fine-tune), whose numbers are taken as they are.
    """
    parts = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm > 0 else []
    parts.append(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps))
    if cfg.weight_decay:
        parts.append(optax.add_decayed_weights(cfg.weight_decay))
    chain = optax.chain(*parts)
    return chain if scale is None else peft_parametrization(chain, scale)


def apply_direction(adapter: Any, direction: Any, lr: jax.Array) -> Any:
    return jax.tree.map(lambda p, d: p - lr * d, adapter, direction)
