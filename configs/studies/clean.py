"""Clean fine-tunes in SFT, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import clean


def get_config() -> ConfigDict:
    return clean("../smollm2_science.py", small=True)
