"""Qwen3 32B with the paper's recipe, on eight v5p chips (v5p:2x2x2)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-32B", copies=2, tp=4)
