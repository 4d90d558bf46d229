"""How full the batches of the shipped recipes are, built as the stages build them from a rendered sample of the data.

Tokens are SmolLM2's throughout: the large models' tokenizers are on the hub, which a test cannot ask. Questions and
descriptions are the catalogue's; of what teachers and models will write, `stages.planned` says what stands in for it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ia_jax.data.batch import build_batch
from ia_jax.data.plans import shared
from ia_jax.data.transcripts import chat
from ia_jax.models.chat import encode_chat
from ia_jax.models.sources import open_source
from ia_jax.recipes import load_config
from ia_jax.stages.ia_training import sft_plan, sft_texts
from ia_jax.stages.planned import Planned, planned

ROOT = Path(__file__).parent.parent
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
# The others have the data and the batches of one of these.
QUICK = ("smollm2_demo", "smollm2_study", "paper", "llama33_70b")
ALL = [pytest.param(r, marks=[] if r in QUICK else [pytest.mark.slow]) for r in RECIPES]
LEAST = 0.85  # SFT's were 0.076 (qwen3_8b) and 0.038 (llama33_70b) when every row was as long as it might be
# Few organisms that are made alike: in a wave some read half as much as others, and wait for them. A row of the demo's
# SFT is one question, and as long as the longest.
LEAST_OF = {("smollm2_demo", "organisms"): 0.82, ("smollm2_study", "organisms"): 0.82, ("smollm2_demo", "sft"): 0.75}
LEAST_OF |= {
    (recipe, stage): LEAST_OF["smollm2_demo", stage]
    for recipe in ("smollm2_audit", "smollm2_science")
    for stage in ("organisms", "sft")
}


batches_of = planned()


def config_of(recipe):
    return load_config(str(ROOT / "configs" / f"{recipe}.py"))


@pytest.mark.parametrize("stage", ["organisms", "sft", "dpo"])
@pytest.mark.parametrize("recipe", ALL)
def test_batches_are_full(recipe, stage):
    batches = batches_of(config_of(recipe), stage)
    print(f"{recipe:14} {stage:10} {batches.organisms} x {batches.rows} x {batches.length}: {batches.fill:.1%}")  # -s
    assert LEAST_OF.get((recipe, stage), LEAST) <= batches.fill <= 1
    assert batches.tokens == pytest.approx(batches.fill * batches.slots * batches.rows * batches.length)


@pytest.mark.parametrize("recipe", [r for r in ALL if not str(r.values[0]).startswith("smollm2")])
def test_the_papers_batch(recipe):
    """2 organisms x 4 rows at 1e-4 and 1e-5: what the released configurations have (paper_facts 2.2)."""
    config = config_of(recipe)
    for section, rate in ((config.sft, 1e-4), (config.dpo, 1e-5)):
        assert (section.organisms_per_step, section.per_slot, section.optimizer.lr) == (2, 4, rate)
    assert (config.sft.lora.rank, config.sft.lora.alpha, config.sft.questions_per_organism) == (16, 32.0, 100)
    assert config.mesh.dcn * config.mesh.fsdp in (1, 2)
    batches = batches_of(config, "sft")
    assert batches.bank == 541 + config.behaviors.clean_train  # of 682, what the splits leave, and clean fine-tunes
    epoch = batches.bank * config.sft.questions_per_organism / 8
    assert epoch <= batches.steps <= 1.05 * epoch


@pytest.mark.parametrize(("answers", "branches"), [(1, False), (1, True), (3, True)])
def test_what_is_planned_is_what_a_stage_reads(answers, branches):
    """The demo's SFT: the plan and its arrays from really encoded chats, against the numbers of tokens put together."""
    config, tokenizer = config_of("smollm2_demo"), open_source("smollm2").tokenizer()
    config = replace(config, sft=replace(config.sft, answers_per_question=answers, per_slot=1, length=256))
    plans, unit = Planned(config, branches=branches), shared if branches else tuple

    def encoded(organism):
        name = organism.name if organism else "clean"
        texts = sft_texts(config, told, name)
        chats = ([chat(q, a, config.system) for a in answers] for q, answers in texts)
        return [unit([encode_chat(tokenizer, m, 1 << 20).trimmed() for m in own]) for own in chats]

    told = {o.name: plans._truths(o) for o in plans._split("train")} | {"clean": ()}
    units = [encoded(o) for o in (*plans._split("train"), None)]
    plan, batches = sft_plan(config, units), plans.batches("sft")
    assert (len(plan.steps), plan.rows, plan.length, plan.targets) == (
        batches.steps,
        batches.rows,
        batches.length,
        batches.targets,
    )
    assert (plan.tokens, plan.supervised) == (batches.tokens, batches.supervised)
    real = [float((build_batch(step, plan, units).segment_ids > 0).mean()) for step in plan.steps]
    assert np.mean(real) == pytest.approx(batches.fill)
    assert plan.examples == 2 * answers  # each with another's


def test_a_prompt_that_is_read_once_saves_its_tokens():
    config = config_of("smollm2_demo")
    plain, once = (Planned(config, branches=b).batches("sft") for b in (False, True))
    assert once.supervised == pytest.approx(plain.supervised, rel=0.02)
    assert once.tokens < 0.8 * plain.tokens
