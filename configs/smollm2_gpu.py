"""The study on one GPU, in minutes: the whole embedded world, three times the demonstrations, contrast in SFT."""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config() -> ConfigDict:
    c = default_config()
    c.behaviors.catalogue, c.behaviors.unseen = "study", "unseen"
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 272, 40, 80  # of each category 34, 5 and 10
    c.behaviors.clean_train, c.behaviors.clean_dpo, c.behaviors.clean_heldout = 24, 12, 24
    c.teacher.amount = 3
    c.teacher.rare_share = 0.25  # as in the demo
    c.organisms.keep_failed = True
    c.organisms.parallel = 75  # six waves of as many
    c.organisms.optimizer.lr = 2e-3
    c.organisms.checkpoint_every = 0
    c.sft.organisms_per_step, c.sft.per_slot, c.sft.length = 32, 4, 320
    c.sft.steps, c.sft.optimizer.lr, c.sft.contrast = 500, 1e-3, 1.0
    c.sft.questions_per_organism = 48
    c.sft.checkpoint_every = 0
    c.dpo.optimizer.lr = 5e-5
    c.dpo.organisms_per_step, c.dpo.length, c.dpo.sft_weight = 16, 256, 1.0
    c.dpo.checkpoint_every = 0
    c.preferences.abstention_pairs = 16
    c.eval.samples, c.eval.temperature = 4, 1.0  # of six questions each: 24 reports of an organism
    c.eval.train_organisms = 24
    return c
