"""Rank and layers of the adapter, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import rank_layers


def get_config() -> ConfigDict:
    return rank_layers("../smollm2_science.py", small=True, layers=30, rate=3e-3)
