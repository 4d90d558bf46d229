"""One optimizer for organisms and IA: clip, Adam, decoupled weight decay, a schedule over a fraction of training."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ia_jax.adapters.lora import peft_parametrization
from ia_jax.config import OptimizerSection


def learning_rate(cfg: OptimizerSection, progress: jax.Array) -> jax.Array:
    """Linear warm-up, then cosine decay to `final_lr_fraction`. progress: 1/steps at the first step, 1 at the last."""
    warm = jnp.clip(progress / max(cfg.warmup_fraction, 1e-9), 0.0, 1.0) if cfg.warmup_fraction else 1.0
    along = jnp.clip((progress - cfg.warmup_fraction) / max(1 - cfg.warmup_fraction, 1e-9), 0.0, 1.0)
    cosine = cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * along))
    return cfg.lr * jnp.minimum(warm, 1.0) * cosine


def make_optimizer(cfg: OptimizerSection, scale: float | jax.Array) -> optax.GradientTransformation:
    """The direction of a step (without the learning rate), in PEFT's parametrization. For one adapter of this scale."""
    parts = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm > 0 else []
    parts.append(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps))
    if cfg.weight_decay:
        parts.append(optax.add_decayed_weights(cfg.weight_decay))
    return peft_parametrization(optax.chain(*parts), scale)


def apply_direction(adapter: Any, direction: Any, lr: jax.Array) -> Any:
    return jax.tree.map(lambda p, d: p - lr * d, adapter, direction)
