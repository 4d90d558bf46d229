"""What the backward pass keeps of a layer, by the names of its values; all else it computes again.

Values are named where they are made (`checkpoint_name`): a projection's output by the projection, the low-rank products
of adapters LOW, what a layer gets LAYER, which every policy keeps.
"""

from collections.abc import Callable
from typing import Any

import jax

from ia_jax.errors import ConfigError

Layer = Callable[[Any, Any], tuple[Any, Any]]  # a scan's body

LAYER, LOW = "layer", "low"
# Each holds less than the one before (on the chip), and computes no less again.
KEPT: dict[str, tuple[str, ...]] = {
    "products": ("q", "k", "v", "o", "gate", "up", LOW),  # again: norms, rotations, attention, SwiGLU
    "mlp": ("q", "k", "v", "o", LOW),  # and gate and up
    "full": (),
    "offload": (),  # as "full", and what the layer gets waits in the host's memory
}
REMAT_POLICIES = ("none", *KEPT)


def remembering(remat: str, layer: Layer) -> Layer:
    """`layer`, of which a derivative keeps what the policy `remat` says. Raises ConfigError for one that is unknown."""
    if remat not in REMAT_POLICIES:
        raise ConfigError(f"remat {remat!r} unknown; choose from {', '.join(REMAT_POLICIES)}")
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    if remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*KEPT[remat])
    return jax.checkpoint(layer, policy=policy)
