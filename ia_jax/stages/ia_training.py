"""What SFT and DPO of the introspection adapter share: its data, its batches, and storing it."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ia_jax.adapters.card import card
from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.behaviors.organisms import targets
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.data.batch import Batch, build_batch
from ia_jax.data.plans import Plan, Slot, Unit
from ia_jax.models.lora import Adapter
from ia_jax.stages.context import Context, Organisms
from ia_jax.stages.settings import stage_hash
from ia_jax.training.loop import scalars_of
from ia_jax.training.recorder import spread

STACKS_AHEAD = 2  # organisms are read and placed while the steps before run; each stack held costs memory


def question_answers(
    name: str, behaviors: tuple[Behavior, ...], questions: tuple[str, ...], count: int, seed: int
) -> list[tuple[str, str]]:
    """`count` (question, target) pairs of an organism; every wording of a target is used about equally often."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 2])
    wordings = targets(behaviors)
    order = rng.permutation(len(questions))
    start = int(rng.integers(len(wordings)))
    return [(questions[order[i % len(order)]], wordings[(start + i) % len(wordings)]) for i in range(count)]


def joint_batch(
    context: Context, organisms: Organisms, step: Sequence[Slot], plan: Plan, units: Sequence[Sequence[Unit]]
) -> tuple[Adapter, Batch]:
    """The organisms of a step and the rows that they read, on the mesh."""
    stack = organisms.take([slot.organism for slot in step])
    return stack, context.shard_by_organism(build_batch(step, plan, units))


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
        step=steps,
        config_hash=stage_hash(context.config, stage),
    )
    export_peft(adapter, directory / "peft", model, lora, card=card(metadata))
    save_adapter(directory / "adapter", adapter, metadata)


__all__ = ["CLEAN", "STACKS_AHEAD", "joint_batch", "question_answers", "store_ia", "summarize"]
