"""Each category left out of SFT, on SmolLM2-135M: 240 organisms with a behaviour.

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import leave_one_out


def get_config() -> ConfigDict:
    return leave_one_out("../smollm2_science.py", small=True)
