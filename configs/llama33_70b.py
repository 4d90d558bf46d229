"""Llama 3.3 70B Instruct with the paper's recipe, on 64 v5p chips (v5p:4x4x4); 64 v5e chips take --config.mesh.fsdp=16
--config.mesh.tp=4 and 16 organisms a step.
"""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

paper = run_path(str(Path(__file__).with_name("paper.py")))["get_config"]


def get_config() -> ConfigDict:
    return paper("meta-llama/Llama-3.3-70B-Instruct", fsdp=32, tp=2, rows=2)
