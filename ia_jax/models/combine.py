"""Adapters of several ranks, sites and layers brought together: spread over the same layers, or summed into one."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models.lora import (
    NDIM,
    RANK_AXIS,
    RESIDUAL,
    SITES,
    Adapter,
    layers_of,
    map_leaves,
    on_layers,
    rank_of,
    sites_of,
    zeros_along,
)


def spread_layers(adapter: Adapter, layers: tuple[int, ...] | None, count: int) -> Adapter:
    """The adapter on more layers (None: all `count` of the model), with zeros on those where it does not sit.

    So adapters on different layers stack. Zeros change nothing; but unlike those of `pad_rank` they are only kept zero
    by not being trained (a vector's gradient there is not zero).
    """
    own, wanted = (tuple(range(count)) if x is None else x for x in (layers_of(adapter), layers))
    if not set(own) <= set(wanted):
        raise ConfigError(f"an adapter on layer {min(set(own) - set(wanted))} cannot be put on layers without it")
    if own == wanted:
        return on_layers(sites_of(adapter), layers)
    rows = [wanted.index(n) for n in own]

    def spread(site: str, factor: str, x: Any) -> Any:
        axis = x.ndim - NDIM[factor]
        shape = (*x.shape[:axis], len(wanted), *x.shape[axis + 1 :])
        where = (*[slice(None)] * axis, np.array(rows))
        if isinstance(x, np.ndarray):
            out = np.zeros(shape, x.dtype)
            out[where] = x
            return out
        return jnp.zeros(shape, x.dtype).at[where].set(x)

    return on_layers(sites_of(map_leaves(spread, adapter)), layers)


def concatenate_ranks(*adapters: Adapter) -> Adapter:
    """The sum of several adapters as one: factors side by side along the rank, so no delta is recomputed or rounded.

    Its rank is the sum of theirs; a projection or layer that one of them does not touch is zero in that one's columns.
    Vectors are added. Numpy stays numpy. Leaves may have an organism axis, if those of all adapters do.
    """
    if len(adapters) == 1:
        return adapters[0]
    layers = common_layers([layers_of(adapter) for adapter in adapters])
    count = max(_layer_count(adapter) for adapter in adapters) if layers is None else 0
    trees = [spread_layers(adapter, layers, count) for adapter in adapters]
    ranks = [rank_of(adapter) for adapter in adapters]

    def joined(site: str, factor: str) -> Any:
        own = [tree.get(site, {}).get(factor) for tree in trees]
        there = [x for x in own if x is not None]
        if factor == "v":
            return sum(there[1:], start=there[0])
        axis, numpy = RANK_AXIS[factor], isinstance(there[0], np.ndarray)
        parts = [
            zeros_along(_first(there[0], axis), axis, after=r) if x is None else x
            for x, r in zip(own, ranks, strict=True)
        ]
        return (np if numpy else jnp).concatenate(parts, axis=axis)

    found = [t for t in SITES if any(t in tree for tree in trees)]
    return on_layers({t: {n: joined(t, n) for n in (("v",) if t == RESIDUAL else ("a", "b"))} for t in found}, layers)


def common_layers(all_layers: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The layers on which adapters on these can be stacked: every one that any of them sits on; None for all."""
    named = [layers for layers in all_layers if layers is not None]
    return tuple(sorted(set().union(*named))) if named and len(named) == len(all_layers) else None


def _layer_count(adapter: Adapter) -> int:
    """Rows of its leaves along the layers."""
    leaves = next(iter(adapter.values()))
    factor, x = next(iter(leaves.items()))
    return x.shape[x.ndim - NDIM[factor]]


def _first(x: Any, axis: int) -> Any:
    """None of it along an axis: what is then filled up is all zeros."""
    return x[(slice(None),) * (x.ndim + axis) + (slice(0, 0),)]
