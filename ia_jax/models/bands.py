"""A frozen adapter that acts on some layers only: which of them its effect goes through."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter, Member, has_organism_axis, layers_of, map_leaves, to_scan


def bands(layers: int, count: int) -> list[tuple[int, int]]:
    """A model's layers in so many bands (start, stop) from below, as equal as can be."""
    if not 1 <= count <= layers:
        raise ConfigError(f"{count} bands of a model with {layers} layers; choose 1 … {layers}")
    ends = [round(i * layers / count) for i in range(count + 1)]
    return list(pairwise(ends))


def inside(layers: int, band: tuple[int, int]) -> np.ndarray:
    """[L]: 1 on the layers of a band, 0 on the others."""
    number = np.arange(layers)
    return ((number >= band[0]) & (number < band[1])).astype(np.float32)


@jax.jit
def acting(member: Member, shares: jax.Array) -> Adapter:
    """A member of a stack, acting on each layer with a share of its strength. shares: [L], L layers of the model.

    One program serves all bands, and a band costs what the whole adapter does; an adapter that is *stored* on some
    layers (`models.lora.Placed`) is a program of its own, and costs nothing on the others. Of a bank's `Picked` the K
    that it names, [K, L, ...].
    """
    organisms, layers = has_organism_axis(member), layers_of(member)
    own = shares if layers is None else shares[jnp.array(layers)]

    def leaf(site: str, factor: str, x: jax.Array) -> jax.Array:
        if factor in ("b", "v"):
            x = x * own.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.swapaxes(x, 0, 1) if organisms else x

    [tree] = to_scan((member,))
    return map_leaves(leaf, tree)
