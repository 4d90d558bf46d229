"""Stages 3 and 5: the introspection adapter, by joint SFT and then by DPO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ia_jax.adapters.card import card
from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata, content_hash
from ia_jax.adapters.store import is_complete, save_adapter
from ia_jax.behaviors.banks import bank_of
from ia_jax.behaviors.records import CLEAN
from ia_jax.config import config_hash
from ia_jax.data.batch import Batch, build_batch
from ia_jax.data.plans import Plan, Slot, Unit, dataset, identity_of, plan_joint
from ia_jax.data.transcripts import read_jsonl
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.lora import Adapter, init_lora
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.progress import progress
from ia_jax.stages.ia_data import question_answers
from ia_jax.stages.order import is_done
from ia_jax.stages.session import Organisms, Session, behaviors_in
from ia_jax.training.introspection import dpo_step, init_state, sequence_logps, sft_step
from ia_jax.training.loop import fit, scalars_of
from ia_jax.training.recorder import spread

STACKS_AHEAD = 2  # organisms are read and placed while the steps before run; each stack held costs memory


def run_sft(session: Session) -> None:
    """Trains the IA jointly over the organisms of the train split (and the clean model)."""
    directory, cfg = session.workdir.ia_dir("sft"), session.config.sft
    if is_done(session.workdir, "sft"):
        return
    model, lora, bank = session.model, cfg.lora.lora(), session.config.questions
    behaviors = usable(session, "train")
    organisms = Organisms(session, [b.name for b in behaviors], clean=cfg.clean_slot)
    known = [*behaviors, *([None] if cfg.clean_slot else [])]
    units: list[list[Unit]] = [
        [
            (session.example(q, a, cfg.length, b.name if b else CLEAN),)
            for q, a in question_answers(b, bank_of(bank, b).train, cfg.questions_per_organism, session.config.seed)
        ]
        for b in known
    ]
    plan = plan_joint(
        units,
        organisms_per_step=min(cfg.organisms_per_step, len(known)),
        per_slot=cfg.per_slot,
        seed=session.config.seed,
        length=cfg.length,
        rows=cfg.rows,
        steps=cfg.steps,
        always=len(behaviors) if cfg.clean_slot else None,
    )
    ia = session.shard_ia(init_lora(session.key(3), model.config, lora))
    state = session.shard_ia(init_state(ia, len(plan.steps), lora, cfg.optimizer))
    static: dict[str, Any] = {"cfg": model.config, "lora": lora, "optimizer": cfg.optimizer}
    static |= {"remat": session.config.model.remat, "accumulate": cfg.accumulate}
    state = fit(
        "ia_sft",
        state,
        lambda s, x: sft_step(model.params, s, x[0], x[1], **static),
        dataset(plan, lambda step: _joint_batch(session, organisms, step, plan, units), STACKS_AHEAD),
        len(plan.steps),
        session.workdir.path,
        checkpoints=directory / "state",
        identity=identity_of(plan, units, organisms.hashes),
        every=cfg.checkpoint_every,
        summarize=summarize,
        description="IA, SFT",
        flops=training_flops(model.config, cfg.length, [organisms.lora, lora], [lora]),
        peak=peak_flops(),
    )
    _finish(session, directory, state.adapter, len(plan.steps))


def run_dpo(session: Session) -> None:
    """Refines the SFT IA on the preference pairs of the dpo organisms."""
    directory, cfg = session.workdir.ia_dir("dpo"), session.config.dpo
    if is_done(session.workdir, "dpo"):
        return
    model, lora = session.model, session.config.sft.lora.lora()
    pairs = read_jsonl(session.workdir.preferences_file, "run `ia-jax preferences` first")
    if not pairs:
        raise ConfigError(f"{session.workdir.preferences_file} holds no pair; delete it and run `ia-jax preferences`")
    names = [n for n in session.workdir.named("dpo") if any(p["organism"] == n for p in pairs)]
    has_clean = any(p["organism"] == CLEAN for p in pairs)
    organisms = Organisms(session, names, clean=has_clean)
    units: list[list[Unit]] = [
        [
            tuple(session.example(p["question"], p[side], cfg.length, name) for side in ("chosen", "rejected"))
            for p in pairs
            if p["organism"] == name
        ]
        for name in [*names, *([CLEAN] if has_clean else [])]
    ]
    plan = plan_joint(
        units,
        organisms_per_step=min(cfg.organisms_per_step, len(units)),
        per_slot=cfg.per_slot,
        seed=session.config.seed + 1,
        length=cfg.length,
        rows=cfg.rows,
        epochs=cfg.epochs,
    )
    start = session.shard_ia(session.workdir.ia("sft", model))
    remat = session.config.model.remat
    reference = _reference(session, directory, plan, units, organisms, start)
    state = session.shard_ia(init_state(jax.tree.map(lambda x: x.copy(), start), len(plan.steps), lora, cfg.optimizer))
    static: dict[str, Any] = {"cfg": model.config, "lora": lora, "optimizer": cfg.optimizer, "beta": cfg.beta}
    static |= {"sft_weight": cfg.sft_weight, "remat": remat, "accumulate": cfg.accumulate}
    numbers = {id(step): n for n, step in enumerate(plan.steps)}

    def make(step: Sequence[Slot]) -> tuple[Adapter, Batch, Any]:
        stack, batch = _joint_batch(session, organisms, step, plan, units)
        return stack, batch, session.shard_by_organism(reference[numbers[id(step)]])

    state = fit(
        "ia_dpo",
        state,
        lambda s, x: dpo_step(model.params, s, *x, **static),
        dataset(plan, make, STACKS_AHEAD),
        len(plan.steps),
        session.workdir.path,
        checkpoints=directory / "state",
        identity=identity_of(plan, units, (content_hash(start), organisms.hashes)),
        every=cfg.checkpoint_every,
        summarize=summarize,
        description="IA, DPO",
        flops=training_flops(model.config, cfg.length, [organisms.lora, lora], [lora]),
        peak=peak_flops(),
    )
    _finish(session, directory, state.adapter, len(plan.steps))


def summarize(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """A step's scalars, and how its organisms' losses spread."""
    return {**scalars_of(metrics), **spread(metrics["per_organism"])}


def usable(session: Session, split: str) -> list:
    """The split's behaviours whose organisms did not fail the behaviour check (all, with `keep_failed`)."""
    behaviors = behaviors_in(session, split)
    missing = on_main_process(
        lambda: [b.name for b in behaviors if not is_complete(session.workdir.organism_dir(b.name))]
    )
    if missing:
        raise ConfigError(f"organism {missing[0]} is not trained; run `ia-jax organisms` first")
    if not behaviors:
        raise IAError(f"the {split} split has no organism: see {session.workdir.left_out_file} for those left out")
    if session.config.organisms.keep_failed:
        return behaviors
    rows = read_jsonl(session.workdir.checks_file, "run `ia-jax organisms` first")
    failed = {r["organism"] for r in rows if not r["ok"]}
    kept = [b for b in behaviors if b.name not in failed]
    if not kept:
        raise IAError(f"no organism of the {split} split passed its behaviour check; train them longer")
    return kept


def _joint_batch(
    session: Session, organisms: Organisms, step: Sequence[Slot], plan: Plan, units: Sequence[Sequence[Unit]]
) -> tuple[Adapter, Batch]:
    stack = organisms.take([slot.organism for slot in step])
    return stack, session.shard_batch(build_batch(step, plan, units))


def _reference(
    session: Session,
    directory: Path,
    plan: Plan,
    units: Sequence[Sequence[Unit]],
    organisms: Organisms,
    ia: Adapter,
) -> np.ndarray:
    """Summed logps [steps, K, examples] of every pair under (organism, SFT IA), computed once.

    Cached under a hash of the adapters, the tokens and the plan; another hash is a miss, never a silent reuse.
    """
    what = content_hash(ia), organisms.hashes, session.config.model.dtype
    file = directory / f"reference_{identity_of(plan, units, what)}.npy"
    if on_main_process(file.exists):
        return np.load(file, allow_pickle=False)
    model, rows = session.model, []
    with progress(len(plan.steps), "DPO reference") as bar:
        for step in plan.steps:
            stack, batch = _joint_batch(session, organisms, step, plan, units)
            logps = sequence_logps(
                model.params,
                stack,
                ia,
                batch,
                cfg=model.config,
                examples=plan.examples,
                remat=session.config.model.remat,
                accumulate=session.config.dpo.accumulate,
            )
            rows.append(np.asarray(logps))
            bar.update(1)
            stop_if_preempted("DPO reference")
    on_main_process(lambda: _keep(file, np.stack(rows)))
    return np.stack(rows)


def _keep(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name("reference.partial.npy")
    np.save(temporary, values)
    temporary.replace(file)


def _finish(session: Session, directory: Path, adapter: Adapter, steps: int) -> None:
    lora, model = session.config.sft.lora.lora(), session.model
    metadata = AdapterMetadata(
        name=directory.name,
        kind="ia",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        step=steps,
        config_hash=config_hash(session.config),
    )
    export_peft(adapter, directory / "peft", model, lora, card=card(metadata))
    save_adapter(directory / "adapter", adapter, metadata)
