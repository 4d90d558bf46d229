"""Qwen3 0.6B with the paper's recipe, on one chip."""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

paper = run_path(str(Path(__file__).with_name("paper.py")))["get_config"]


def get_config() -> ConfigDict:
    return paper("Qwen/Qwen3-0.6B")
