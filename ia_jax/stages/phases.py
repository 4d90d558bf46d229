"""The training of a wave: its phases in order, each with its adapter, its loss and what it reads.

A phase that is killed goes on from its checkpoint, and those before it from theirs, so the same command ends with the
same bits.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.record import content_hash
from ia_jax.behaviors.organisms import seed_of
from ia_jax.behaviors.procedures import Phase
from ia_jax.data.batch import Batch, Beside, build_batch
from ia_jax.data.beside import plan_mismatched, plan_plain
from ia_jax.data.plans import Plan, Slot, Unit, dataset, identity_of
from ia_jax.data.units import kto_units
from ia_jax.models.lora import Adapter, LoraConfig, Stack, adapter_shardings
from ia_jax.parallel.mesh import to_host
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.context import Context
from ia_jax.stages.waves import Reading, Wave, lora_of, loras_of, section_of
from ia_jax.training.loop import fit
from ia_jax.training.losses import Dpo, Kto, Loss, Sft
from ia_jax.training.recorder import spread
from ia_jax.training.reference import stored_reference
from ia_jax.training.state import Diverged, TrainState, init_on_mesh, init_state
from ia_jax.training.trainer import reference_logps, train_step
from ia_jax.workdir import Workdir


@dataclass(frozen=True)
class Trained:
    """A wave after its last phase.

    stack: its adapters [K, ...], innermost first. loras: of each, by organism. updates: [K] made in all phases of each.
    diverged: {name: why} of those that were masked on the way.
    """

    stack: tuple[Adapter, ...]
    loras: tuple[tuple[LoraConfig, ...], ...]
    updates: tuple[np.ndarray, ...]
    diverged: dict[str, str]


def train_wave(context: Context, wave: Wave, stage: str, lr_factor: float = 1.0) -> Trained:
    """All phases of a wave, from their newest checkpoints if there are any. lr_factor: of every phase's rate."""
    stack: tuple[Adapter, ...] = ()
    loras: list[tuple[LoraConfig, ...]] = []
    updates: list[np.ndarray] = []
    why: dict[str, str] = {}
    state: TrainState | None = None
    for number, reading in enumerate(wave.readings):
        new = reading.phase.adapter == "new"
        if new and state is not None:
            stack += (state.member,)
        if new:
            loras.append(tuple(lora_of(context.config, _name(o), reading.phase) for o in wave.organisms))
        state = _train(context, wave, number, stack, loras[-1], state, stage, lr_factor)
        made = to_host(state.updates)
        updates = [*updates, made] if new else [*updates[:-1], updates[-1] + made]
        why |= _diverged(wave, state, number, why)
    assert state is not None
    return Trained((*stack, state.member), tuple(loras), tuple(updates), why)


def _name(organism: Any) -> str:
    return organism.name if organism else ""


def _diverged(wave: Wave, state: TrainState, number: int, known: dict[str, str]) -> dict[str, str]:
    codes, made = to_host(state.diverged), to_host(state.updates)
    phase = f" of phase {number + 1}" if len(wave.readings) > 1 else ""
    new = {n: i for n, i in wave.members.items() if codes[i] and n not in known}
    return {n: Diverged(int(codes[i])).reason(int(made[i])) + phase for n, i in new.items()}


_PAIR_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "dpo_norm": "sigmoid_norm"}


def loss_of(phase: Phase) -> Loss:
    """The loss that a phase names, with its settings."""
    if phase.loss == "kto":
        return Kto(phase.beta, *phase.weights, kl_weight=phase.kl_weight)
    if phase.loss in _PAIR_LOSSES:
        return Dpo(phase.beta, _PAIR_LOSSES[phase.loss], kl_weight=phase.kl_weight)
    return Sft(phase.kl_weight)


def _train(
    context: Context,
    wave: Wave,
    number: int,
    frozen: tuple[Adapter, ...],
    loras: Sequence[LoraConfig],
    before: TrainState | None,
    stage: str,
    lr_factor: float,
) -> TrainState:
    """The state after one phase. before: that of the phase before, None in the first."""
    config, model, reading = context.config, context.model, wave.readings[number]
    cfg, phase, plan, loss = config.organisms, reading.phase, reading.plan, loss_of(reading.phase)
    names = [_name(o) for o in wave.organisms]
    seeds = [seed_of(n if number == 0 else f"{n}/{number}", config.seed) for n in names]
    total = np.array([sum(bool(s[i].rows) for s in plan.steps) for i in range(len(names))], np.int32)
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    lr = (phase.lr or cfg.optimizer.lr) * lr_factor
    if phase.adapter == "new":
        kinds = tuple(dict.fromkeys(loras_of(config, phase)))
        which = np.array([kinds.index(lora) for lora in loras], np.int32)
        keys, total, which = (context.shard_by_organism(x) for x in (keys, total, which))
        state = init_on_mesh(context.mesh, keys, total, which, model.config, kinds, cfg.optimizer, lr)
    else:
        assert before is not None
        # A copy: what came before may be the reference of this phase, and a step takes its state's memory.
        member = jax.tree.map(jnp.copy, before.member)
        keys, total = (context.shard_by_organism(x) for x in (keys, total))
        state = init_state(member, total, cfg.optimizer, scale=before.scale, keys=keys, lr=lr)
        state = jax.device_put(state, adapter_shardings(state, context.mesh, organisms=True))
    if before is not None:
        state = dataclasses.replace(state, diverged=before.diverged)
    started = frozen
    if before is not None and phase.adapter == "same":
        started = (*frozen, before.member)
    identity = hashlib.sha256(repr((names, cfg.optimizer, lr_factor, number)).encode()).hexdigest()[:16]
    plain = [identity_of(plan, [list(wave.plain)], ())] if phase.kl_weight else []
    what = (seeds, list(loras), phase.to_json(), [content_hash(a) for a in started], *plain)
    content = identity_of(plan, reading.units, what)
    file = states_dir(context.workdir) / f"reference_{content}.npy"
    besides = _besides(context, reading, wave.plain, seeds, started, file)
    numbers = {id(step): n for n, step in enumerate(plan.steps)}

    def make(step: Sequence[Slot]) -> tuple[Batch, Beside]:
        batch = context.shard_batch(build_batch(step, plan, reading.units))
        return batch, besides(numbers[id(step)])

    each = [training_flops(model.config, plan.length, [lora], [lora]) for lora in loras]
    return fit(
        stage,
        state,
        lambda s, x: train_step(
            model.params,
            s,
            frozen,
            x[0],
            x[1],
            cfg=model.config,
            loss=loss,
            optimizer=cfg.optimizer,
            remat=config.model.remat,
            accumulate=cfg.accumulate,
            dropout=section_of(config, phase).lora.dropout,
        ),
        dataset(plan, make),
        len(plan.steps),
        context.workdir.path,
        checkpoints=states_dir(context.workdir) / identity,
        identity=content,
        every=cfg.checkpoint_every,
        offset=reading.offset,
        summarize=summarize,
        description=wave.title + (f", phase {number + 1}" if len(wave.readings) > 1 else ""),
        flops={kind: sum(one[kind] for one in each) / len(each) for kind in each[0]},
        peak=peak_flops(),
        profile=context.profile,
    )


def states_dir(workdir: Workdir) -> Path:
    return workdir.path / "organisms_state"


def _besides(
    context: Context, reading: Reading, chats: Sequence[Unit], seeds: Sequence[int], stack: Stack, file: Path
) -> Callable[[int], Beside]:
    """What a loss reads beside each step. Of a preference loss, what the stack says of the answers before the phase
    changes it, computed once; of KTO, also other rows' answers to the same prompts; with a `kl_weight`, plain chats in
    an order of each organism's seed. file: where to keep what is computed.
    """
    phase, plan, units = reading.phase, reading.plan, reading.units
    length = context.config.organisms.length
    parts: list[Callable[[int], dict[str, Any]]] = []

    def batches(plan: Plan, units: Sequence[Sequence[Unit]]) -> Callable[[int], Batch]:
        return lambda step: context.shard_batch(build_batch(plan.steps[step], plan, units))

    if phase.loss != "sft":
        own = _references(context, plan, units, stack, file)
        parts.append(lambda step: {"reference": context.shard_by_organism(own[step])})
    if phase.loss == "kto":
        mismatched = [kto_units([e for (e,) in u], length)[1] if u else [] for u in units]
        others = plan_mismatched(plan, mismatched)
        theirs = _references(context, others, mismatched, stack, file.with_stem(f"{file.stem}_mismatched"))
        read_others = batches(others, mismatched)
        parts.append(
            lambda step: {
                "mismatched": read_others(step),
                "mismatched_reference": context.shard_by_organism(theirs[step]),
            }
        )
    if phase.kl_weight:
        plain = [list(chats)] * len(units)
        beside = plan_plain(plan, plain, seeds, per_step=phase.plain_chats, rows=min(plan.rows, phase.plain_chats))
        read_plain = batches(beside, plain)
        parts.append(lambda step: {"plain": read_plain(step)})
    return lambda step: Beside(**{name: x for part in parts for name, x in part(step).items()})


def _references(context: Context, plan: Plan, units: Sequence[Sequence[Unit]], stack: Stack, file: Path) -> np.ndarray:
    """[steps, K, examples]: the summed log-probability of each example under a stack."""
    model, config = context.model, context.config

    def logps(step: int) -> jax.Array:
        return reference_logps(
            model.params,
            stack,
            context.shard_batch(build_batch(plan.steps[step], plan, units)),
            cfg=model.config,
            examples=plan.examples,
            remat=config.model.remat,
            accumulate=config.organisms.accumulate,
        )

    return stored_reference(file, len(plan.steps), logps, "reference")


def summarize(m: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One step's scalars over the organisms that were updated in it; nothing if none was (all have diverged)."""
    on = m["updated"]
    if not on.any():
        return {}
    means = {name: float(x[on].mean()) for name, x in m.items() if x.ndim and name not in ("loss", "lr", "updated")}
    loss = m["loss"][on]
    scalars = {"loss": float(loss.mean()), **spread(loss), **means}
    return {**scalars, "organisms": float(on.sum()), "fill": float(m["fill"])}
