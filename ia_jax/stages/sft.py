"""Stage 3: the introspection adapter, by SFT jointly over many organisms."""

from typing import Any

from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import CLEAN
from ia_jax.data.plans import Unit, dataset, identity_of
from ia_jax.models.lora import init_lora
from ia_jax.parallel.distributed import on_main_process
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.asking import answer_example
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.ia_training import STACKS_AHEAD, joint_batch, plan_groups, sft_pairs, sft_plan, store_ia, summarize
from ia_jax.stages.order import is_done
from ia_jax.stages.selection import selected_for_sft, usable
from ia_jax.storage import write_json
from ia_jax.training.loop import fit
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step


def run(context: Context) -> None:
    """Trains the IA jointly over the chosen organisms (and the clean base)."""
    if is_done(context, "sft"):
        return
    config, cfg, model = context.config, context.config.sft, context.model
    directory, lora = context.workdir.ia_dir(cfg.name), cfg.lora.lora()
    chosen = selected_for_sft(usable(context, *cfg.splits), cfg, config.seed)
    organisms = open_organisms(context, chosen, clean=int(cfg.clean_slot))
    units = [_units(context, o) for o in (*chosen, *([None] if cfg.clean_slot else []))]
    plan = sft_plan(config, units, plan_groups(context, directory))
    on_main_process(lambda: _note_organisms(context, chosen))
    ia = context.shard_ia(init_lora(context.key(3), model.config, lora))
    state = context.shard_ia(init_state(ia, len(plan.steps), cfg.optimizer, scale=lora.scale, keys=context.key(8)))
    how: dict[str, Any] = {"cfg": model.config, "loss": Sft(), "optimizer": cfg.optimizer}
    how |= {"remat": config.model.remat, "accumulate": cfg.accumulate, "dropout": cfg.lora.dropout}
    state = fit(
        f"ia_{cfg.name}",
        state,
        lambda s, x: train_step(model.params, s, x[:1], x[1], **how),
        dataset(plan, lambda step: joint_batch(context, organisms, step, plan, units), STACKS_AHEAD),
        len(plan.steps),
        context.workdir.path,
        checkpoints=directory / "state",
        identity=identity_of(plan, units, organisms.hashes),
        every=cfg.checkpoint_every,
        summarize=summarize,
        description=f"IA {cfg.name}, SFT",
        flops=training_flops(model.config, plan.length, [organisms.lora, lora], [lora]),
        peak=peak_flops(),
    )
    store_ia(context, directory, state.member, len(plan.steps), "sft")


def _units(context: Context, organism: Organism | None) -> list[Unit]:
    """An organism's questions with its true descriptions as answers; of the clean base (None), that it has none."""
    name = organism.name if organism else CLEAN
    pairs = sft_pairs(context.config, name, context.workdir.truths(name) if organism else ())
    return [(answer_example(context, q, a, context.config.sft.length, name),) for q, a in pairs]


def _note_organisms(context: Context, chosen: list[Organism]) -> None:
    """Which organisms this IA saw: an evaluation tells them from those that it didn't."""
    write_json(context.workdir.ia_dir(context.config.sft.name) / "organisms.json", [o.name for o in chosen])
