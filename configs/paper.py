"""The paper's recipe on one device, for any base: --config.model.name=NAME. See `ia_jax/paper_recipe.py`."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-8B")
