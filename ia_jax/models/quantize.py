"""The projections' matrices in int8: symmetric, weight-only, one step for every output channel.

W [in, out] is kept as whole numbers V in -127 … 127 and steps s [out], s = max |W| over the inputs / 127, so that V s
is within half a step of W. `models.project` multiplies by V, which bf16 holds exactly, and by s what comes out, and the
cotangent on the way back. Embeddings, output matrix, norms and biases stay as they are.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError

INT8 = "int8"
QUANTIZATIONS = ("", INT8)
LARGEST = 127


class Int8(NamedTuple):
    """A matrix [..., in, out], or what is said of one. values: int8; scale: fp32 [..., out], the steps."""

    values: Any
    scale: Any


def check_quantization(name: str) -> None:
    """Raises ConfigError for what is none."""
    if name not in QUANTIZATIONS:
        raise ConfigError(f"quantization {name!r} is not one of {', '.join(map(repr, QUANTIZATIONS))}")


def quantize(weight: jax.Array) -> Int8:
    """[..., in, out] to the nearest steps. A column of zeros has step 0; one that is not finite, no finite step."""
    wide = weight.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2) / LARGEST
    steps = wide / jnp.where(scale == 0, 1.0, scale)[..., None, :]
    return Int8(jnp.round(steps).astype(jnp.int8), scale)


def dequantize(weight: Int8) -> jax.Array:
    """The matrix that it stands for, fp32 [..., in, out]."""
    return weight.values.astype(jnp.float32) * weight.scale[..., None, :]


@partial(jax.jit, donate_argnames="into")
def put_layer(into: Int8, matrix: jax.Array, layer: jax.Array) -> Int8:
    """Matrices [L, in, out] with those of one layer, [in, out], in their place, quantized where they lie.

    Of devices that share a column each sees its part, and they agree on the largest.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        there = jax.typeof(old).sharding
        new = new if there.mesh.empty else jax.sharding.reshard(new, there)
        return jax.lax.dynamic_update_slice_in_dim(old, new, layer, 0)

    return jax.tree.map(put, into, quantize(matrix[None]))
