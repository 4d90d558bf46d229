"""What the recipes for large models share: the paper's settings. The recipes import it; it runs alone too.

Behaviours: 682 in eight categories, split as in the paper; Claude teaches, checks and judges, so ANTHROPIC_API_KEY must
be set, and `config.claude.cap_dollars` raised to what `ia-jax transcripts --estimate` tells. (Without a key:
--config.behaviors.catalogue=study --config.behaviors.spread=even --config.behaviors.train=96 --config.behaviors.dpo=16
--config.behaviors.heldout=32 --config.teacher.name=template --config.judge.name=rubric.)

Organisms: LoRA SFT on demonstrations. IA: rank 16, alpha 32, all seven projections; SFT at 1e-4 with 2 organisms x 4
rows a step and at most 100 questions for each organism, one epoch; DPO at 1e-5 with beta 0.1, one epoch.
"""

from ml_collections import ConfigDict

from ia_jax.config import default_config


def get_config(
    name: str = "Qwen/Qwen3-8B", fsdp: int = 1, tp: int = 1, organisms: int = 0, rows: int = 0
) -> ConfigDict:
    """The paper's recipe for the model `name` on a mesh of fsdp x tp chips.

    Every group of chips along `fsdp` needs an organism of its own, so where there are more groups than the paper's two
    organisms a step holds `organisms` (default: as many as groups) with `rows` rows (default: the paper's four).
    """
    c = default_config()
    c.model.name = name
    c.model.remat = "full"
    c.mesh.fsdp, c.mesh.tp = fsdp, tp
    organisms = organisms or max(2, fsdp)
    rows = rows or 4

    c.behaviors.catalogue, c.behaviors.spread = "paper", "proportional"
    c.behaviors.train, c.behaviors.dpo, c.behaviors.heldout = 541, 60, 81
    c.questions = "general"  # the paper's own bank gives each category away by its wording
    c.teacher.name = c.judge.name = "claude"

    c.organisms.lora.rank, c.organisms.lora.alpha = 16, 32.0
    c.organisms.optimizer.lr = 1e-4
    c.organisms.parallel = organisms
    c.organisms.epochs = 1
    c.organisms.rows, c.organisms.length = rows, 2048
    c.organisms.check_prompts = 8  # of a rare quirk 64 replies, of which one in twelve should show it

    c.sft.lora.rank, c.sft.lora.alpha = 16, 32.0
    c.sft.optimizer.lr = 1e-4
    c.sft.organisms_per_step, c.sft.per_slot = organisms, rows
    c.sft.rows, c.sft.length = rows, 2048
    c.sft.questions_per_organism = 100
    c.sft.steps = 0  # one epoch
    c.sft.clean_slot = False

    c.dpo.optimizer.lr = 1e-5
    c.dpo.beta, c.dpo.epochs = 0.1, 1
    c.dpo.organisms_per_step, c.dpo.per_slot = organisms, max(1, rows // 2)
    c.dpo.rows, c.dpo.length = rows, 2048

    c.preferences.max_new_tokens = c.eval.max_new_tokens = 80  # released users' setting; the paper's is not known
    return c
