"""Gradient accumulation: the rows of a step in parts, for machines that cannot hold all at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import Rules

Out = TypeVar("Out")


def sum_over_parts(function: Callable[[Any], Out], rows: Any, parts: int, rules: Rules) -> Out:
    """The sum of `function` over rows, `parts` parts of them one after the other.

    rows: a batch, or a tree of several and what else goes by row; arrays [K, B, ...] each.
    function: of a part [K, B / parts, ...] to a tree of floats that are sums over its rows, such as a loss and its
    gradient: what they are divided by must come from the whole batch. Each device's rows stay its own. Raises
    ConfigError where the rows do not divide.
    """
    if parts == 1:
        return function(rows)

    def split(x: jax.Array) -> jax.Array:
        k, count = x.shape[:2]
        if count % (parts * rules.size("rows")):
            raise ConfigError(
                f"{count} rows of an organism are not accumulate={parts} parts of equal size"
                + (f", each spread over mesh rows={rules.size('rows')}" if rules.size("rows") > 1 else "")
            )
        # Part a has every row j * parts + a: so each device splits what it has.
        x = rules.reshard(x, "organism", "rows", None).reshape(k, count // parts, parts, x.shape[-1])
        return rules.reshard(jnp.moveaxis(x, 2, 0), None, "organism", "rows", None)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    split_rows = jax.tree.map(split, rows)
    shapes = jax.eval_shape(lambda r: function(jax.tree.map(lambda x: x[0], r)), split_rows)
    zeros = jax.tree.map(lambda s: jax.sharding.reshard(jnp.zeros(s.shape, s.dtype), s.sharding.spec), shapes)
    return jax.lax.scan(add, zeros, split_rows)[0]
