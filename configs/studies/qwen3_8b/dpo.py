"""DPO against SFT, on Qwen3 8B with the paper's 682 behaviours (v6e:2x2).

What it asks and its arms: `ia_jax/studies/paper.py`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import dpo


def get_config() -> ConfigDict:
    return dpo("../../qwen3_8b.py", small=False, topology="v6e:2x2")
