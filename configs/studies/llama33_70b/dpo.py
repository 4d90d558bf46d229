"""DPO against SFT, on Llama 3.3 70B with the paper's 682 behaviours (v5p:2x2x4).

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import dpo


def get_config() -> ConfigDict:
    return dpo("../../llama33_70b.py", small=False, topology="v5p:2x2x4")
