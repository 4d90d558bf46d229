"""Numbers of organisms in SFT, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import data_organisms


def get_config() -> ConfigDict:
    return data_organisms("../smollm2_science.py", small=True)
