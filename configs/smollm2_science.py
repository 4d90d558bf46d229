"""The recipe of the small studies: SmolLM2-135M, 240 organisms of 32 behaviours and 48 clean ones.

Of each of eight categories 20 organisms for SFT, 4 for DPO and 6 held out. A model of this size reads nothing that is
new to it (docs/study.md), and an ordering of nothing says nothing. So two behaviours of a category are in ten organisms
of SFT each, in two of DPO, and in two of those held out (`remade`: other fine-tunes of known behaviours, what the
studies' figures are of); two more behaviours, one organism each, no training knows.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

DEMO = Path(__file__).with_name("smollm2_demo.py")


def get_config() -> ConfigDict:
    c = runpy.run_path(str(DEMO))["get_config"]()
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 16, 0, 16  # of each category two known, two unknown
    c.behaviors.copies, c.behaviors.dpo_copies, c.behaviors.remade = 10, 2, 32
    c.behaviors.clean_train, c.behaviors.clean_dpo, c.behaviors.clean_heldout = 24, 6, 18
    # For the same tokens as the demo's 16 a step in 150 steps at 2e-3 (docs/science.md has the three side by side).
    c.sft.organisms_per_step, c.sft.steps, c.sft.optimizer.lr = 8, 300, 3e-3
    return c
