"""Stage 3: the introspection adapter, by SFT jointly over many organisms."""

from collections.abc import Mapping
from typing import Any

from ia_jax.adapters.bank import Bank
from ia_jax.adapters.store import is_complete
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.data.plans import Unit, dataset, identity_of, shared
from ia_jax.evals.baselines import deranged
from ia_jax.models.lora import init_lora
from ia_jax.parallel.distributed import on_main_process
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.asking import answer_example
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.ia_training import (
    STACKS_AHEAD,
    joint_steps,
    logps_without,
    plan_groups,
    sft_plan,
    sft_texts,
    store_ia,
    summarize,
)
from ia_jax.stages.order import is_done
from ia_jax.stages.selection import selected_for_sft, usable
from ia_jax.storage import write_json
from ia_jax.training.loop import fit
from ia_jax.training.losses import of_descriptions
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step


def run(context: Context) -> None:
    """Trains the IA jointly over the chosen organisms (and the clean base); with `sft.shuffled_null` first another one,
    to which each organism is described as another one's.
    """
    if is_done(context, "sft"):
        return
    cfg, workdir = context.config.sft, context.workdir
    chosen = selected_for_sft(usable(context, *cfg.splits), cfg, context.config.seed)
    organisms = open_organisms(context, chosen, clean=int(cfg.clean_slot))
    truths = {o.name: workdir.truths(o.name) for o in chosen}
    for name, told in {cfg.shuffled_name: shuffled(truths, context.config.seed), cfg.name: truths}.items():
        wanted = name == cfg.name or cfg.shuffled_null
        if wanted and not on_main_process(lambda name=name: is_complete(workdir.ia_dir(name) / "adapter")):
            _train(context, name, organisms, told)


def shuffled(truths: Mapping[str, tuple[Behavior, ...]], seed: int) -> dict[str, tuple[Behavior, ...]]:
    """{organism: what is true of another one}; clean ones keep that there is nothing. By behaviours: organisms of the
    same ones are told the same, so that there is as much to be learned by heart as from the truth.
    """
    described = list(dict.fromkeys(own for own in truths.values() if own))
    others = deranged(len(described), seed)
    another = {own: described[other] for own, other in zip(described, others, strict=True)}
    return {n: another.get(own, own) for n, own in truths.items()}


def _train(context: Context, name: str, organisms: Bank, told: Mapping[str, tuple[Behavior, ...]]) -> None:
    """Trains `ia/<name>`. told: what the IA is to say of each organism of the bank (but the clean base, its last)."""
    config, cfg, model = context.config, context.config.sft, context.model
    directory, lora = context.workdir.ia_dir(name), cfg.lora.lora()
    everyone = {**told, CLEAN: ()} if cfg.clean_slot else told
    units = [_units(context, n, everyone) for n in everyone]
    plan = sft_plan(config, units, plan_groups(context, directory))
    on_main_process(lambda: write_json(context.workdir.seen_file(name), list(told)))
    ia = context.shard_ia(init_lora(context.key(3), model.config, lora))
    state = context.shard_ia(init_state(ia, len(plan.steps), cfg.optimizer, scale=lora.scale, keys=context.key(8)))
    loss = of_descriptions(cfg.contrast, cfg.contrast_beta)
    reference = logps_without(context, directory, plan, units, organisms) if cfg.contrast else None
    how: dict[str, Any] = {"cfg": model.config, "loss": loss, "optimizer": cfg.optimizer}
    how |= {"remat": config.model.remat, "accumulate": cfg.accumulate, "dropout": cfg.lora.dropout}
    state = fit(
        f"ia_{name}",
        state,
        lambda s, x: train_step(model.params, s, *x, **how),
        dataset(plan, joint_steps(context, organisms, plan, units, reference), STACKS_AHEAD),
        len(plan.steps),
        context.workdir.path,
        checkpoints=directory / "state",
        identity=identity_of(plan, units, organisms.hashes),
        every=cfg.checkpoint_every,
        summarize=summarize,
        description=f"IA {name}, SFT",
        flops=training_flops(model.config, plan.length, [organisms.lora, lora], [lora]),
        peak=peak_flops(),
        profile=context.profile,
    )
    store_ia(context, directory, state.member, len(plan.steps), "sft")


def _units(context: Context, name: str, told: Mapping[str, tuple[Behavior, ...]]) -> list[Unit]:
    """Questions to an organism with true descriptions as answers; without any, that there is nothing to report. With
    `sft.contrast`, each beside an answer that is another's.
    """
    config = context.config
    return [
        shared([answer_example(context, question, text, config.sft.length, name) for text in answers])
        for question, answers in sft_texts(config, told, name)
    ]
