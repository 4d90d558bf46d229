"""The demo: SmolLM2-135M, four categories, 52 organisms, in minutes on two CPU cores."""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.organisms.optimizer.lr = 3e-3
    c.sft.optimizer.lr = 1e-3
    c.sft.steps = 80
    # At 2e-4 with 24 abstention pairs, DPO taught the IA to deny what it had reported (docs/demo.md).
    c.dpo.optimizer.lr = 5e-5
    c.preferences.abstention_pairs = 8
    return c
