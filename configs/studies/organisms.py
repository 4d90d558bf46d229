"""How organisms were made, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import organisms


def get_config() -> ConfigDict:
    return organisms("../smollm2_science.py", small=True)
