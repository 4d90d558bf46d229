"""Going through the layers with a stack of adapters, of which not every one sits on every layer.

The layers are cut into runs on which the same members act, and each run is one scan. So what lies below the lowest
layer of the member that is trained depends on nothing that has a gradient: it is not differentiated, and saves nothing
for a backward pass. Where all members sit on all layers there is one run.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter, LayerStack, Scanned, layers_of, sites_of
from ia_jax.models.project import LayerOf
from ia_jax.models.quantize import Int8

# (carry, (number of the layer, its weights, its adapters)) -> (carry, what it gives)
Layer = Callable[[Any, tuple[jax.Array, dict[str, Any], LayerStack]], tuple[Any, Any]]


class Run(NamedTuple):
    """Layers `start` to `stop` - 1; of each member the first of its rows there, None where it does not act."""

    start: int
    stop: int
    rows: tuple[int | None, ...]


def runs(stack: Sequence[Adapter], count: int) -> list[Run]:
    """A model's `count` layers in runs on which the same members act."""
    own = [layers_of(member) or tuple(range(count)) for member in stack]
    beyond = [layers[-1] for layers in own if layers[-1] >= count]
    if beyond:
        raise ConfigError(f"an adapter sits on layer {beyond[0]}, but the model has layers 0 to {count - 1}")
    active = [[n in layers for layers in own] for n in range(count)]
    starts = [n for n in range(count) if n == 0 or active[n] != active[n - 1]]
    return [
        Run(a, b, tuple(layers.index(a) if a in layers else None for layers in own))
        for a, b in pairwise([*starts, count])
    ]


def scan_layers(layer: Layer, carry: Any, weights: dict[str, Any], stack: Scanned) -> tuple[Any, list[Any]]:
    """`layer` from the first to the last; returns the carry, and of each run what its layers gave.

    weights: leaves [L, ...]. stack: from `to_scan`.
    """
    count = jax.tree.leaves(weights)[0].shape[0]
    parts, given = runs(stack, count), []
    for run in parts:
        numbers = jnp.arange(run.start, run.stop)
        adapters = tuple(_rows(member, row, run) for member, row in zip(stack, run.rows, strict=True))
        if len(parts) == 1:
            carry, out = jax.lax.scan(layer, carry, (numbers, weights, adapters))
        else:
            carry, out = _scan_part(layer, carry, weights, run, (numbers, adapters))
        given.append(out)
    return carry, given


def _scan_part(layer: Layer, carry: Any, weights: dict[str, Any], run: Run, inputs: tuple) -> tuple[Any, Any]:
    """A scan over some of the layers, for which their matrices are not copied out of those of all."""
    matrices = {n: w for n, w in weights.items() if isinstance(w, Int8) or (isinstance(w, jax.Array) and w.ndim > 2)}
    rest = jax.tree.map(lambda x: x[run.start : run.stop], {n: w for n, w in weights.items() if n not in matrices})

    def one(carry: Any, inputs: tuple) -> tuple[Any, Any]:
        (number, adapters), w = inputs
        return layer(carry, (number, w | {n: LayerOf(x, number) for n, x in matrices.items()}, adapters))

    return jax.lax.scan(one, carry, (inputs, rest))


def _rows(member: Adapter, row: int | None, run: Run) -> dict[str, Any]:
    """A member's part of a run."""
    if row is None:
        return {}
    size = run.stop - run.start
    return jax.tree.map(lambda x: x if x.shape[0] == size else x[row : row + size], sites_of(member))


def each_layer(stack: Scanned, count: int) -> list[LayerStack]:
    """The stack of every one of a model's `count` layers, as arrays of their own. stack: from `to_scan`."""
    own = [layers_of(member) or tuple(range(count)) for member in stack]

    def at(member: Adapter, layers: tuple[int, ...], number: int) -> dict[str, Any]:
        if number not in layers:
            return {}
        return jax.tree.map(lambda x: x[layers.index(number)], sites_of(member))

    return [tuple(at(m, layers, n) for m, layers in zip(stack, own, strict=True)) for n in range(count)]
