"""DPO against SFT, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import dpo


def get_config() -> ConfigDict:
    return dpo("../smollm2_science.py", small=True, rate=5e-5)
