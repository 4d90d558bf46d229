"""The recipe of the audits: SmolLM2-135M, ten organisms of each of eight behaviours, thirty clean ones, 170 in all.

The demo (smollm2_demo.py) with more of everything that made its reports worth weighing (docs/evidence.md): of its
behaviours' other fine-tunes 69 to 79 % are named where the demo names a third, and clean fine-tunes get a claim in 3 to
11 % of reports where it was 36 % with six clean ones in SFT (two seeds and one). `ia-jax nulls`, `calibrate` and
`audit-family` go on from here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

DEMO = Path(__file__).with_name("smollm2_demo.py")


def get_config() -> ConfigDict:
    c = runpy.run_path(str(DEMO))["get_config"]()
    c.behaviors.copies, c.behaviors.remade = 10, 32  # four more fine-tunes of each, which nothing is trained on
    c.behaviors.clean_train = 30
    c.sft.steps = 300
    return c
