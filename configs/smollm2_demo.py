"""The demo: SmolLM2-135M, a behaviour of each of eight categories, 74 organisms, on two CPU cores.

Each behaviour is in four organisms: what an IA learns of so few is to know them again in other fine-tunes (the `remade`
ones, docs/demo.md). As many that it never saw are held out, and it doesn't read them. `smollm2_wide.py` has twice
as many behaviours, the study (smollm2_gpu.py, docs/study.md) fifty times.
"""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 8, 8, 8  # one of each category
    c.behaviors.copies, c.behaviors.remade = 4, 8
    c.teacher.rare_share = 0.25  # of the paper's 8 %, a model of this size sees too little in 32 rows
    c.organisms.parallel = 7  # the fewest updates of all organisms together (of 6 to 14; docs/plan.md)
    c.organisms.keep_failed = True  # the figures in docs/demo.md are with all of them
    c.organisms.optimizer.lr = 3e-3
    c.organisms.epochs = 2
    c.organisms.lora.layers = c.sft.lora.layers = "15:30"  # no backward pass below, and half the small products
    c.sft.optimizer.lr = 2e-3
    # Without contrast, 100 updates teach sentences and not whose they are (docs/demo.md).
    c.sft.contrast = 1.0
    # Many organisms a step are steadier than 8. Two descriptions of one question share its tokens.
    c.sft.organisms_per_step, c.sft.per_slot, c.sft.answers_per_question, c.sft.length = 16, 1, 2, 192
    c.sft.steps = 100
    # At 2e-4 with 24 abstention pairs, DPO taught the IA to deny what it had reported (docs/demo.md).
    c.dpo.optimizer.lr = 5e-5
    c.dpo.organisms_per_step = 4  # eight rows of 160 would hold 84 % tokens
    c.dpo.sft_weight = 1.0  # keeps the chosen reports likely while the rejected ones fall
    c.preferences.abstention_pairs = 16
    return c
