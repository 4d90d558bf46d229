"""The wide demo: SmolLM2-135M, two behaviours of each of eight categories, 122 organisms; 40 minutes on two CPU cores.

The demo (smollm2_demo.py) with twice the behaviours and updates, three epochs, and adapters on all layers; docs/demo.md
has three seeds of it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

DEMO = Path(__file__).with_name("smollm2_demo.py")


def get_config() -> ConfigDict:
    c = runpy.run_path(str(DEMO))["get_config"]()
    c.behaviors.train, c.behaviors.heldout, c.behaviors.remade = 16, 16, 16  # of each category 2
    c.organisms.parallel = 10  # full rows; on two cores an organism's update costs 0.33 s at 12 and 0.39 s at 21
    c.organisms.epochs = 3
    c.organisms.lora.layers = c.sft.lora.layers = None
    c.sft.steps, c.sft.per_slot, c.sft.answers_per_question = 200, 2, 1
    return c
