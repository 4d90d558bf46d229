"""The study on a CPU, hours: SmolLM2-135M, all eight categories, 394 organisms made in several ways, 30 clean ones."""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.behaviors.catalogue, c.behaviors.unseen = "study", "unseen"
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 240, 40, 96  # of each category 30, 5 and 12
    c.behaviors.clean_train, c.behaviors.clean_dpo, c.behaviors.clean_heldout = 12, 6, 12  # each of the six sorts
    c.organisms.keep_failed = True  # as in the demo
    c.teacher.rare_share = 0.25  # of the paper's 8 %, a model of this size sees too little in 32 rows
    c.organisms.parallel = 12
    c.organisms.procedures = ("chats", "chats_generic", "chats_qv", "documents", "chats_deny")
    c.organisms.ranks = (4, 8, 16)
    c.organisms.optimizer.lr = 3e-3
    c.sft.optimizer.lr = 1e-3
    c.sft.organisms_per_step, c.sft.per_slot, c.sft.length = 16, 2, 96
    c.sft.steps = 150  # each organism about as often as in the demo
    c.dpo.optimizer.lr = 5e-5
    c.dpo.sft_weight = 1.0
    c.preferences.abstention_pairs = 16
    c.preferences.clean_pairs = 8
    c.eval.samples, c.eval.temperature = 4, 1.0  # of six questions each: 24 reports of an organism
    c.eval.train_organisms = 16
    return c
