"""Qwen3 14B with the paper's recipe, on 16 v5e chips (v5e:4x4)."""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

paper = run_path(str(Path(__file__).with_name("paper.py")))["get_config"]


def get_config() -> ConfigDict:
    return paper("Qwen/Qwen3-14B", fsdp=8, tp=2, rows=2)
