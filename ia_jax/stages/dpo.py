"""Stage 5: the introspection adapter, refined by DPO on preference pairs of other organisms."""

from typing import Any

import jax

from ia_jax.adapters.record import content_hash
from ia_jax.behaviors.records import CLEAN
from ia_jax.data.plans import Unit, dataset, identity_of, shared
from ia_jax.errors import ConfigError
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.asking import answer_example
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.ia_training import (
    STACKS_AHEAD,
    dpo_plan,
    joint_steps,
    logps_without,
    plan_groups,
    store_ia,
    summarize,
)
from ia_jax.stages.order import is_done
from ia_jax.storage import read_jsonl
from ia_jax.training.loop import fit
from ia_jax.training.losses import Dpo
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step


def run(context: Context) -> None:
    """Refines the IA `sft.name` on the preference pairs of the dpo organisms."""
    if is_done(context, "dpo"):
        return
    config, cfg, model = context.config, context.config.dpo, context.model
    directory, lora = context.workdir.ia_dir(cfg.name), config.sft.lora.lora()
    file = context.workdir.preferences_file(config.preferences.name)
    pairs = read_jsonl(file, "run `ia-jax preferences` first")
    if not pairs:
        raise ConfigError(f"{file} holds no pair; delete it and run `ia-jax preferences`")
    named = {p["organism"] for p in pairs}
    names = [n for n in context.workdir.organisms if n in named]
    organisms = open_organisms(context, [context.workdir.organisms[n] for n in names], clean=int(CLEAN in named))
    units: list[list[Unit]] = [
        [
            shared(
                [answer_example(context, p["question"], p[side], cfg.length, name) for side in ("chosen", "rejected")]
            )
            for p in pairs
            if p["organism"] == name
        ]
        for name in [*names, *([CLEAN] if CLEAN in named else [])]
    ]
    plan = dpo_plan(config, units, plan_groups(context, directory))
    start = context.shard_ia(context.workdir.ia(config.sft.name, model))
    reference = logps_without(context, directory, plan, units, organisms, (start,))
    copied = jax.tree.map(lambda x: x.copy(), start)
    state = context.shard_ia(init_state(copied, len(plan.steps), cfg.optimizer, scale=lora.scale, keys=context.key(9)))
    how: dict[str, Any] = {"cfg": model.config, "loss": Dpo(cfg.beta, cfg.kind, sft_weight=cfg.sft_weight)}
    how |= {"optimizer": cfg.optimizer, "remat": config.model.remat, "accumulate": cfg.accumulate}
    how["dropout"] = config.sft.lora.dropout
    state = fit(
        f"ia_{cfg.name}",
        state,
        lambda s, x: train_step(model.params, s, *x, **how),
        dataset(plan, joint_steps(context, organisms, plan, units, reference), STACKS_AHEAD),
        len(plan.steps),
        context.workdir.path,
        checkpoints=directory / "state",
        identity=identity_of(plan, units, (content_hash(start), organisms.hashes)),
        every=cfg.checkpoint_every,
        summarize=summarize,
        description=f"IA {cfg.name}, DPO",
        flops=training_flops(model.config, plan.length, [organisms.lora, lora], [lora]),
        peak=peak_flops(),
        profile=context.profile,
    )
    store_ia(context, directory, state.member, len(plan.steps), "dpo")
