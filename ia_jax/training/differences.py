"""Full fine-tunes: a member of a stack that is the difference of every weight of the base, in place of an adapter.

A difference is a tree like the base's weights (embedding, norms, projections, biases, output matrix), fp32, each leaf
with an organism axis in front. The model is the base with it added, rounded to the base's dtype; so an organism needs a
model of its own while it is read, and they are taken one after the other. Weight decay pulls towards the base.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, Picked, Stack, has_organism_axis
from ia_jax.models.project import Trained
from ia_jax.models.transformer import Params, abstract_params
from ia_jax.parallel.mesh import mesh_in_use, replicate

Difference = Params
TREES = 4  # of a difference's size, while it is trained: itself, its gradient, and two moments


def is_difference(member: Any) -> bool:
    return isinstance(member, dict) and "layers" in member


def init_differences(cfg: ModelConfig, organisms: int, budget_bytes: int | None = None) -> Difference:
    """Zeros [organisms, ...] for every weight. Raises ConfigError where training would not fit, or on many devices.

    budget_bytes: for differences, gradients and moments (default: what is free of the device, and of the host's memory
    half, where devices are processors).
    """
    _check_device()
    if cfg.quantization:
        raise ConfigError(
            f"a full fine-tune changes weights that model.quantization={cfg.quantization!r} holds in steps; set it to "
            "'', or train a LoRA"
        )
    shapes = abstract_params(cfg, jnp.float32)
    one = TREES * sum(x.size * 4 for x in jax.tree.leaves(shapes))
    budget = _free_bytes() if budget_bytes is None else budget_bytes
    if organisms * one > budget:
        raise ConfigError(
            f"{organisms} full fine-tunes at once take {organisms * one / 2**30:.2f} GiB to train and "
            f"{budget / 2**30:.2f} GiB are free; "
            + (f"train at most {budget // one} at once" if budget >= one else "train a LoRA of this base")
        )
    return jax.tree.map(lambda x: jnp.zeros((organisms, *x.shape), x.dtype), shapes)


def with_difference(params: Params, difference: Difference) -> Params:
    """The weights of one organism. difference: without organism axis."""
    return jax.tree.map(lambda w, d: (w.astype(jnp.float32) + d).astype(w.dtype), params, difference)


def by_organism(
    function: Callable[[Params, Stack, Any, bool], jax.Array], params: Params, stack: Stack, rows: Any
) -> jax.Array:
    """`function(weights, adapters, rows, trained)` -> [K, ...] under a stack; `trained`: weights get gradients.

    A stack of adapters is one call of it. Where a member is a difference, organisms are taken one after the other, each
    with weights of its own, and the backward pass computes an organism's forward pass again.
    """
    places = [n for n, member in enumerate(stack) if is_difference(member)]
    if not places:
        return function(params, stack, rows, False)
    if len(places) > 1:
        raise ConfigError(f"a stack has {len(places)} full fine-tunes; add their differences up to one")
    _check_device()
    [place] = places
    # Said whole, which on one device they are: a slice of what is spread would have a cotangent of another type.
    stack, rows = replicate((stack, rows))
    difference, adapters = stack[place], stack[:place] + stack[place + 1 :]
    trained = place == len(stack) - 1
    shared = [not has_organism_axis(member) for member in adapters]

    def one(index: jax.Array) -> jax.Array:
        def own(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, index, 1)

        weights = with_difference(params, jax.tree.map(lambda x: own(x)[0], difference))
        members = tuple(
            m if same else m._replace(slots=own(m.slots)) if isinstance(m, Picked) else jax.tree.map(own, m)
            for m, same in zip(adapters, shared, strict=True)
        )
        weights = _marked(weights) if trained else weights
        return replicate(function(weights, members, jax.tree.map(own, rows), trained))[0]

    count = jax.tree.leaves(rows)[0].shape[0]
    if count == 1:
        return one(jnp.int32(0))[None]
    return jax.lax.map(jax.checkpoint(one), jnp.arange(count))


def _marked(weights: Params) -> Params:
    """With the projections' matrices marked as trained, which get gradients then."""
    layers = {name: Trained(w) if name in PROJECTIONS else w for name, w in weights["layers"].items()}
    return weights | {"layers": layers}


def _check_device() -> None:
    if mesh_in_use().size > 1:
        raise ConfigError(
            f"full fine-tunes work on one device, not on a mesh of {mesh_in_use().size}; set config.mesh to one, or "
            "train a LoRA"
        )


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
