"""Qwen3 1.7B with the paper's recipe, on one v6e chip (v6e:1x1)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-1.7B", parallel=4, bank_gib=18.0)
