"""Which kind of machine the program being traced will run on, and what is done for the CPU alone."""

import jax


def platform() -> str:
    """The mesh's platform ("cpu", "gpu" or "tpu"; maybe of a slice that nobody here has), else the default backend's.

    `ia-jax plan` traces on a laptop for a TPU, so the default backend alone would say the wrong thing.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", None) or jax.default_backend()


def fix_layout_on_cpu(x: jax.Array) -> jax.Array:
    """`x`, laid out as it is written here when compiled for CPU, whose matrix products are fast in one layout only.

    Elsewhere the compiler chooses layouts better than we do, and a barrier would keep it from fusing.
    """
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x
