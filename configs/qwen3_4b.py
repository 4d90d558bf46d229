"""Qwen3 4B with the paper's recipe, on four v6e chips (v6e:2x2)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-4B", copies=2, tp=2)
