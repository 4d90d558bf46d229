"""What training changes: one member of a stack, its moments, and where each of its organisms stands."""

from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig, adapter_shardings, init_organisms, pad_rank
from ia_jax.training.optimizer import AdamW, make_optimizer


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
class TrainState:
    """The trained member of a stack. With an organism axis all is [K, ...], and each organism is trained by itself;
    without, the member is one, trained over all organisms that a step reads, and the rest are scalars.

    member:   an adapter, or the difference of a full fine-tune (`training.differences`).
    moments:  Adam's.
    scale:    alpha/rank, which an adapter's `b` holds; None for a difference.
    lr:       the highest learning rate; an organism's own.
    updates:  made so far; total: planned.
    diverged: 0 or the `Diverged` for which an organism has been left as it was before the step that failed.
    seeds:    uint32, of the random keys that dropout's masks come from.
    """

    member: Any
    moments: Any
    scale: jax.Array | None
    lr: jax.Array
    updates: jax.Array
    total: jax.Array
    diverged: jax.Array
    seeds: jax.Array


def init_state(
    member: Any,
    total: Any,
    optimizer: AdamW,
    *,
    scale: Any = 1.0,
    keys: jax.Array | None = None,
    lr: Any = None,
) -> TrainState:
    """The state before the first update of `member`, which may have been trained before.

    total: updates planned: [K] for a member with an organism axis, else a number. scale: alpha/rank, a number or [K];
    None for a full fine-tune. keys: random keys [K] or one, of which dropout has seeds of its own (default: seeds 0).
    lr: a number or [K] in place of `optimizer.lr`. Raises ConfigError for an array of another length.
    """
    total = jnp.asarray(total, jnp.int32)

    def each(name: str, value: Any) -> jax.Array:
        if np.ndim(value) and np.shape(value) != total.shape:
            there = f"there are {total.size} organisms" if total.ndim else "this member has no organism axis"
            raise ConfigError(
                f"{name} has {np.size(value)} values, but {there}; give one for each, or a number for all"
            )
        # Of one type, whether it was a number or an array: a step would be compiled for each.
        return jnp.zeros_like(total, jnp.float32) + jnp.asarray(value, jnp.float32)

    moments = make_optimizer(optimizer, None).init  # which does not depend on the scale
    bits = jax.vmap(jax.random.bits) if total.ndim else jax.random.bits
    return TrainState(
        member,
        (jax.vmap(moments) if total.ndim else moments)(member),
        None if scale is None else each("scale", scale),
        each("lr", optimizer.lr if lr is None else lr),
        jnp.zeros_like(total),
        total,
        jnp.zeros_like(total),
        jnp.zeros_like(total, jnp.uint32) if keys is None else bits(keys),
    )


def init_organisms_state(
    keys: jax.Array,
    total: Any,
    kinds: Any,
    cfg: ModelConfig,
    loras: Sequence[LoraConfig],
    optimizer: AdamW,
    lr: Any = None,
) -> TrainState:
    """New organisms of several ranks and alphas on the same targets, padded with zeros to the largest rank of `loras`.

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

    scale = pick(*[jnp.full_like(total, lora.scale, jnp.float32) for lora in loras])
    return init_state(jax.tree.map(pick, *each), total, optimizer, scale=scale, keys=keys, lr=lr)


@partial(jax.jit, static_argnames=("mesh", "cfg", "loras"))
def init_on_mesh(
    mesh: Mesh,
    keys: jax.Array,
    total: jax.Array,
    kinds: jax.Array,
    cfg: ModelConfig,
    loras: tuple[LoraConfig, ...],
    optimizer: AdamW,
    lr: Any = None,
) -> TrainState:
    """`init_organisms_state`, every leaf put where its logical axes lie, which is where a step leaves it."""
    state = init_organisms_state(keys, total, kinds, cfg, loras, optimizer, lr)
    return jax.tree.map(jax.sharding.reshard, state, adapter_shardings(state, mesh, organisms=True))
