"""Qwen3 0.6B with the paper's recipe, on one v5e chip (v5e:1x1)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-0.6B", parallel=4, bank_gib=11.0)
