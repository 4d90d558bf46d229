"""Gradient accumulation: the rows of a step in parts, for machines that cannot hold all at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ia_jax.data.batch import Batch
from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import Rules

Out = TypeVar("Out")


def sum_over_parts(function: Callable[[Batch], Out], batch: Batch, parts: int, rules: Rules) -> Out:
    """The sum of `function` over the batch, `parts` parts of its rows one after the other.

    function: of a batch [K, B / parts, ...] to a tree of floats that are sums over its rows, such as a loss and its
    gradient: what they are divided by must come from the whole batch. Each device's rows stay its own. Raises
    ConfigError where the rows do not divide.
    """
    if parts == 1:
        return function(batch)
    k, rows = batch.tokens.shape[:2]
    if rows % (parts * rules.size("rows")):
        raise ConfigError(
            f"{rows} rows of an organism are not accumulate={parts} parts of equal size"
            + (f", each spread over mesh rows={rules.size('rows')}" if rules.size("rows") > 1 else "")
        )

    def split(x: jax.Array) -> jax.Array:
        # Part a has every row j * parts + a: so each device splits what it has.
        x = rules.reshard(x, "organism", "rows", None).reshape(k, rows // parts, parts, x.shape[-1])
        return rules.reshard(jnp.moveaxis(x, 2, 0), None, "organism", "rows", None)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(lambda b: function(jax.tree.map(lambda x: x[0], b)), split_batch)
    zeros = jax.tree.map(lambda s: jax.sharding.reshard(jnp.zeros(s.shape, s.dtype), s.sharding.spec), shapes)
    return jax.lax.scan(add, zeros, split_batch)[0]
