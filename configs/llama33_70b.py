"""Llama 3.3 70B Instruct with the paper's recipe, on 16 v5p chips (v5p:2x2x4)."""

from ml_collections import ConfigDict

from ia_jax.paper_recipe import paper_recipe


def get_config() -> ConfigDict:
    return paper_recipe("meta-llama/Llama-3.3-70B-Instruct", copies=2, tp=8, parallel=8, bank_gib=48.0)
