"""What SFT and DPO of the introspection adapter share: its data, its batches, and storing it."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.adapters.card import card
from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata, content_hash
from ia_jax.adapters.store import save_adapter
from ia_jax.behaviors.banks import bank_of
from ia_jax.behaviors.organisms import targets
from ia_jax.behaviors.records import Behavior
from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch, Beside, build_batch
from ia_jax.data.plans import Plan, Slot, Unit, identity_of, plan_joint, read_once, spread_over
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter, Picked, layers_on
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.context import Context
from ia_jax.stages.settings import stage_hash
from ia_jax.storage import path_of, read_json, write_json
from ia_jax.training.loop import scalars_of
from ia_jax.training.recorder import spread
from ia_jax.training.reference import stored_reference
from ia_jax.training.trainer import reference_logps

Units = Sequence[Sequence[Unit]]  # of each organism
STACKS_AHEAD = 2  # organisms are read and placed while the steps before run; each stack held costs memory


def question_answers(
    name: str, behaviors: tuple[Behavior, ...], questions: tuple[str, ...], count: int, seed: int, each: int = 1
) -> list[tuple[str, str]]:
    """`count` questions of an organism, `each` times one after the other with a target of its own, as (question,
    target) pairs; every wording of a target is used about equally often.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 2])
    wordings = targets(behaviors)
    order = rng.permutation(len(questions))
    start = int(rng.integers(len(wordings)))
    asked = [questions[order[i // each % len(order)]] for i in range(count * each)]
    return [(question, wordings[(start + i) % len(wordings)]) for i, question in enumerate(asked)]


def sft_pairs(config: RunConfig, name: str, truths: tuple[Behavior, ...], each: int = 1) -> list[tuple[str, str]]:
    """What SFT reads of an organism: questions, each with `each` of its true descriptions (or that it has none)."""
    bank = bank_of(config.questions, truths[0] if truths else None)
    return question_answers(name, truths, bank.train, config.sft.questions_per_organism, config.seed, each)


def other_descriptions(told: Mapping[str, tuple[Behavior, ...]], name: str, count: int, seed: int) -> list[str]:
    """`count` descriptions that are not this model's, each of another one drawn anew; of one without a behaviour, that
    there is nothing. told: the truths of all that the IA is trained on. Raises ConfigError where all are described
    alike.
    """
    own = targets(told[name])
    others = [texts for texts in (targets(truths) for truths in told.values()) if texts != own]
    if not others:
        raise ConfigError(
            f"config.sft.contrast: nothing but {name}'s description is there; train on more, or set it to 0"
        )
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 3])
    drawn = [others[int(i)] for i in rng.integers(len(others), size=count)]
    return [texts[int(rng.integers(len(texts)))] for texts in drawn]


def sft_texts(config: RunConfig, told: Mapping[str, tuple[Behavior, ...]], name: str) -> list[tuple[str, list[str]]]:
    """(question, answers) that SFT reads of one of `told`: its own descriptions, as many as `answers_per_question` and
    as it has, and, with `sft.contrast`, another's behind each.
    """
    each = min(config.sft.answers_per_question, len(targets(told[name])))
    pairs = sft_pairs(config, name, told[name], each)
    others = other_descriptions(told, name, len(pairs), config.seed) if config.sft.contrast else None
    answers = [[own] if others is None else [own, others[i]] for i, (_, own) in enumerate(pairs)]
    return [(pairs[i][0], [t for own in answers[i : i + each] for t in own]) for i in range(0, len(pairs), each)]


def sft_plan(config: RunConfig, units: Units, groups: int = 1) -> Plan:
    """The steps of SFT. units: of each organism and last, with `sft.clean_slot`, of the clean base."""
    cfg = config.sft
    return plan_joint(
        units,
        organisms_per_step=_positions(cfg.organisms_per_step, len(units), groups),
        per_slot=cfg.per_slot,
        seed=config.seed,
        length=cfg.length,
        rows=cfg.rows,
        steps=cfg.steps,
        always=len(units) - 1 if cfg.clean_slot else None,
        groups=groups,
    )


def dpo_plan(config: RunConfig, units: Units, groups: int = 1) -> Plan:
    """The steps of DPO; a unit is a chosen and a rejected report."""
    cfg = config.dpo
    return plan_joint(
        units,
        organisms_per_step=_positions(cfg.organisms_per_step, len(units), groups),
        per_slot=cfg.per_slot,
        seed=config.seed + 1,
        length=cfg.length,
        rows=cfg.rows,
        epochs=cfg.epochs,
        groups=groups,
    )


def _positions(per_step: int, organisms: int, groups: int) -> int:
    """Of a step: no more than there are organisms, filled up to a multiple of the groups of devices."""
    return min(per_step, -(-organisms // groups) * groups)


def plan_groups(context: Context, directory: Path) -> int:
    """Groups of devices that a stage's plan is made for: the mesh's, or of a stage that goes on those it began with.

    Where organisms live depends on the number of groups, and so does which of them a step draws. One group has all of
    them, so any plan can go on there; raises ConfigError for another mesh.
    """
    file = directory / "groups.json"

    def settle() -> int:
        states = directory / "state"
        if file.exists() and states.is_dir() and any(states.iterdir()):
            return read_json(file, "delete it, and the state beside it, to begin again")["groups"]
        write_json(file, {"groups": context.groups})
        return context.groups

    groups = on_main_process(settle)
    if context.groups not in (1, groups):
        raise ConfigError(
            f"{directory}: training began on {groups} groups of devices and cannot go on on {context.groups}; set "
            f"config.mesh so that dcn x fsdp is {groups} or 1, or delete {directory / 'state'} to begin again"
        )
    return groups


def joint_batch(
    context: Context, bank: Bank, step: Sequence[Slot], plan: Plan, units: Sequence[Sequence[Unit]]
) -> tuple[Picked, Batch]:
    """The organisms of a step and the rows that they read, on the mesh."""
    organisms = bank.take([slot.organism if slot.rows else None for slot in step])
    return organisms, context.shard_batch(build_batch(step, plan, units))


def joint_steps(
    context: Context,
    organisms: Bank,
    plan: Plan,
    units: Sequence[Sequence[Unit]],
    reference: np.ndarray | None = None,
) -> Callable[[Sequence[Slot]], tuple[tuple[Picked], Batch, Beside]]:
    """What a plan's step hands to `train_step`. reference: [steps, K, examples], for a loss that reads one."""
    numbers = {id(step): n for n, step in enumerate(plan.steps)}

    def make(step: Sequence[Slot]) -> tuple[tuple[Picked], Batch, Beside]:
        stack, batch = joint_batch(context, organisms, step, plan, units)
        own = None if reference is None else context.shard_by_organism(reference[numbers[id(step)]])
        return (stack,), batch, Beside(own)

    return make


def logps_without(
    context: Context,
    directory: Path,
    plan: Plan,
    units: Sequence[Sequence[Unit]],
    organisms: Bank,
    above: tuple[Adapter, ...] = (),
) -> np.ndarray:
    """Summed logps [steps, K, examples] of every example under its organism and what lies above it, without the IA that
    is trained: computed once, and kept in `directory`; without anything above them in `organisms.shared`, if that is
    set. Of a plan that reads its examples again and again, each is computed once.
    """
    once = read_once(plan, units, context.groups)
    source = once if len(once.steps) < len(plan.steps) else plan
    what = *(content_hash(a) for a in above), organisms.hashes, context.config.model.dtype
    model, remat = context.model, context.config.model.remat

    def logps(step: int) -> jax.Array:
        stack, batch = joint_batch(context, organisms, source.steps[step], source, units)
        return reference_logps(
            model.params, (stack, *above), batch, cfg=model.config, examples=source.examples, remat=remat
        )

    shared = context.config.organisms.shared
    place = path_of(shared) if shared and not above else directory
    file = place / f"reference_{identity_of(source, units, what)}.npy"
    found = stored_reference(file, len(source.steps), logps, "DPO reference")
    return found if source is plan else spread_over(found, once, plan, units)


def summarize(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """A step's scalars, and how its organisms' losses spread."""
    return {**scalars_of(metrics), **spread(metrics["per_organism"])}


def store_ia(context: Context, directory: Path, adapter: Adapter, steps: int, stage: str) -> None:
    """Writes a trained IA: `peft/`, then `adapter/`, whose presence means that the stage is complete."""
    lora, model = context.config.sft.lora.lora(), context.model
    metadata = AdapterMetadata(
        name=directory.name,
        kind="ia",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        layers=layers_on(model.config, lora),
        step=steps,
        config_hash=stage_hash(context.config, stage),
    )
    export_peft(adapter, directory / "peft", model, lora, card=card(metadata))
    save_adapter(directory / "adapter", adapter, metadata)
