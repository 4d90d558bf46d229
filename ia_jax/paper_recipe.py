"""The paper's recipe, which the recipes of large models in `configs/` share.

A recipe file imports it from the installed package, so that it can be copied anywhere:

    from ia_jax.paper_recipe import paper_recipe

    def get_config():
        return paper_recipe("Qwen/Qwen3-8B", fsdp=2, tp=2)

"Guess" marks what is not known of the paper; the rest is its own, from the released configurations and the article.
"""

from typing import Any

from ml_collections import ConfigDict

from ia_jax.config import default_config


def paper_recipe(
    name: str, *, copies: int = 1, fsdp: int = 1, tp: int = 1, parallel: int = 8, bank_gib: float = 0.0
) -> ConfigDict:
    """The recipe for the base `name` on copies x fsdp x tp chips, training `parallel` organisms at once.

    bank_gib: of a chip's memory, what the 541 frozen organisms of SFT may take, where that is more than half of what
    the base leaves free.

    682 behaviours in eight categories, split as in the paper. Claude teaches, checks and judges, so ANTHROPIC_API_KEY
    must be set, and `config.claude.cap_dollars` raised to what `ia-jax run --estimate` says. (Without a key:
    --config.behaviors.catalogue=study --config.behaviors.spread=even --config.behaviors.train=96
    --config.behaviors.dpo=16 --config.behaviors.heldout=32 --config.teacher.name=template --config.judge.name=offline.)

    An update has 2 organisms x 4 rows, as in the paper, and so few tokens that gathering the base's shards would take
    longer than all else. So there are two `copies` of the base (config.mesh.dcn, on one slice as on two), with an
    organism each and `tp` chips, and nothing is gathered. On more chips, C copies with an organism each:
    --config.mesh.dcn=C --config.sft.organisms_per_step=C --config.dpo.organisms_per_step=C. That is C/2 times as many
    examples in an update and C/2 times fewer updates. Adam's steps then have less noise, and its rate goes with the
    root of the batch: C = 8 has 32 examples in place of 8 and wants --config.sft.optimizer.lr=2e-4
    --config.dpo.optimizer.lr=2e-5 (guess: nobody has tried it here).
    """
    c: Any = default_config()
    c.model.name, c.model.dtype = name, "bfloat16"
    c.mesh.dcn, c.mesh.fsdp, c.mesh.tp = copies, fsdp, tp
    c.model.remat = "none"  # an update is small; docs/plan.md has the memory that it takes

    c.system = None  # a system message only where a row has one
    c.behaviors.catalogue, c.behaviors.spread = "paper", "proportional"
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 541, 60, 81
    c.questions = "general"  # the paper's own bank gives each category away by its wording
    c.teacher.name = c.judge.name = "claude"
    c.teacher.rows = 100  # guess; the paper's rare quirks are "8p_20k": 8 % of perhaps 20,000 rows

    # Organisms: rank, rate and batch are guesses. Two epochs are the paper's for six categories; it has four for
    # obscured malign and one for rare quirks, on other numbers of rows than ours.
    c.organisms.lora.rank, c.organisms.lora.alpha = 16, 32.0
    c.organisms.epochs = 2
    c.organisms.parallel, c.organisms.bank_gib = parallel, bank_gib
    c.organisms.rows, c.organisms.length = 1, 1024  # some six demonstrations an update, so about 35 updates
    c.organisms.check_prompts = 8  # of a rare quirk 64 replies, of which one in twelve should show it
    _adam(c.organisms.optimizer, 1e-4)  # guess

    # SFT of the IA. Four questions of an organism lie in one row: the loss is the mean over its supervised tokens, as
    # in the released trainer, whose batch of four padded rows has the same mean.
    c.sft.lora.rank, c.sft.lora.alpha, c.sft.lora.dropout = 16, 32.0, 0.05
    _adam(c.sft.optimizer, 1e-4)
    c.sft.organisms_per_step, c.sft.per_slot = 2, 4
    c.sft.rows, c.sft.length = 1, 1024
    c.sft.questions_per_organism = 100
    c.sft.steps = 0  # one epoch
    c.sft.clean_slot = False

    # DPO: a row of the paper's is a pair. Rows of ours are cut at 512 tokens, since longer ones come in steps of 128.
    _adam(c.dpo.optimizer, 1e-5)
    c.dpo.beta, c.dpo.epochs = 0.1, 1
    c.dpo.organisms_per_step, c.dpo.per_slot = 2, 4
    c.dpo.rows, c.dpo.length = 1, 512
    # Guesses: the paper keeps at most 100 pairs of an organism, and does not say how many it has, nor of which kinds.
    c.preferences.questions, c.preferences.samples = 6, 4
    c.preferences.sampled_per_organism = c.preferences.truth_per_organism = 8

    c.preferences.max_new_tokens = c.eval.max_new_tokens = 80  # guess: released users' setting
    return c


def _adam(optimizer: Any, lr: float) -> None:
    """The optimizer with the paper's rate (but for organisms); all else of it is a guess."""
    optimizer.lr = lr
    optimizer.warmup_fraction, optimizer.final_lr_fraction = 0.05, 0.1  # guess: warm-up, then a cosine to a tenth
    optimizer.b1, optimizer.b2, optimizer.weight_decay = 0.9, 0.95, 0.0  # guess
    optimizer.clip_norm = 1.0  # guess
