"""What a step of organisms starts from: adapters with rates of their own, and how they are optimised."""

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.training.optimizer import AdamW
from ia_jax.training.state import init_state
from tests import tiny

K, ROWS, STEPS, LENGTH = 4, 2, 3, 32
# A large eps: else Adam divides rounding errors by rounding errors.
OPTIMIZER = AdamW(lr=1e-2, warmup_fraction=0.0, clip_norm=0.5, eps=1e-2)
HOW = {"cfg": tiny.TINY, "optimizer": OPTIMIZER}
RATES = np.array([1e-2, 3e-3, 2e-2, 1e-2], np.float32)


def fresh(lr=RATES, member=None):
    member = tiny.adapter(2, lora=tiny.FEW, organisms=K, size=0.1) if member is None else member
    keys = jax.vmap(jax.random.key)(jnp.arange(K))
    return init_state(member, np.full(K, STEPS), OPTIMIZER, scale=tiny.FEW.scale, keys=keys, lr=lr)
