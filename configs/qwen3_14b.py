"""Qwen3 14B with the paper's recipe, on eight v6e chips (v6e:2x4)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("Qwen/Qwen3-14B", copies=2, tp=4, bank_gib=17.5)
