"""The demo: SmolLM2-135M, four categories, 64 organisms, in minutes on two CPU cores."""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.organisms.optimizer.lr = 2e-3
    c.sft.optimizer.lr = 1e-3
    c.dpo.optimizer.lr = 2e-4
    return c
