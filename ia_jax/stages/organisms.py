"""Stage 2: train the organisms, many at once, store each, and check that each shows its behaviour.

Waves are the same in every run of a workdir, and each keeps its training state until all of its organisms are stored:
so a run that is killed and continued stores the same bits as one that was not. An organism that diverges is trained
once more with a lower learning rate, and left out if it diverges again; the others of its wave never notice.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import is_complete, read_metadata, save_organisms
from ia_jax.behaviors.organisms import Organism
from ia_jax.data.batch import build_batch
from ia_jax.data.plans import Unit, dataset, identity_of
from ia_jax.data.transcripts import read_transcripts
from ia_jax.parallel.distributed import on_main_process
from ia_jax.parallel.mesh import to_host
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.asking import training_example
from ia_jax.stages.behavior_check import Checks, Row, check, prepare
from ia_jax.stages.context import Context
from ia_jax.stages.settings import stage_hash
from ia_jax.stages.waves import Wave, lora_of, plan_waves, seed_of, wave_of
from ia_jax.storage import read_jsonl, write_jsonl
from ia_jax.training.loop import fit
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.recorder import spread
from ia_jax.training.state import Diverged, TrainState, init_on_mesh
from ia_jax.training.trainer import train_step
from ia_jax.workdir import Workdir

RETRY_LR = 0.2  # of the learning rate, for an organism that diverged


def run(context: Context) -> None:
    """Trains the organisms that are not settled yet: neither stored nor left out."""
    workdir = context.workdir
    everyone = [workdir.organisms[n] for n in on_main_process(lambda: _trained_here(workdir))]
    if not _settled(workdir, everyone):
        # All transcripts are tokenised before anything is trained, so that a bad one shows at once.
        units = {o.name: _units(context, o) for o in everyone}
        # Of all, not of those that are left: a check must not depend on where a run was killed.
        checks = prepare(context, everyone)
        for wave in plan_waves(context.config, everyone, units, context.groups):
            if not _settled(workdir, _members(wave)):
                _train_wave(context, wave, units, checks)
    rows = on_main_process(lambda: _gather_checks(workdir))
    print(check_report(rows, context.config.organisms.keep_failed), flush=True)


def _members(wave: Wave) -> list[Organism]:
    return [o for o in wave.organisms if o is not None]


def _trained_here(workdir: Workdir) -> list[str]:
    """Names of all but those that were put there already trained."""
    return sorted(
        n for n, o in workdir.organisms.items() if workdir.stack_of(o) == (workdir.organism_dir(n),) and not o.imported
    )


def _settled(workdir: Workdir, organisms: Sequence[Organism]) -> bool:
    """Whether each of them is stored or left out."""

    def look() -> bool:
        left_out = workdir.left_out
        return all(o.name in left_out or is_complete(workdir.organism_dir(o.name)) for o in organisms)

    return on_main_process(look)


def _states(workdir: Workdir) -> Path:
    return workdir.path / "organisms_state"


def _units(context: Context, organism: Organism) -> list[Unit]:
    file, length = context.workdir.transcript(organism.name), context.config.organisms.length
    rows = enumerate(read_transcripts(file), 1)
    return [(training_example(context, t.messages, length, f"{file}:{n}"),) for n, t in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def _train_wave(context: Context, wave: Wave, units: Mapping[str, list[Unit]], checks: Checks) -> None:
    """Trains a wave and stores what is not stored yet; those that diverged get a second wave with a lower rate."""
    optimizer = context.config.organisms.optimizer
    first = _train_and_store(context, wave, optimizer, checks, {})
    if first:
        _train_again(context, wave, units, first, checks)
    # A large one: all adapters and moments.
    on_main_process(lambda: shutil.rmtree(_states(context.workdir), ignore_errors=True))


def _train_again(
    context: Context, wave: Wave, units: Mapping[str, list[Unit]], first: Mapping[str, str], checks: Checks
) -> None:
    optimizer = context.config.organisms.optimizer
    lower = replace(optimizer, lr=optimizer.lr * RETRY_LR)
    for name, why in first.items():
        print(f"organism {name}: {why}; once more with lr {lower.lr:g}", flush=True)
    again = [o for o in _members(wave) if o.name in first]
    retry = wave_of(context.config, again, units, context.groups, wave.offset, f"{wave.title} again")
    notes = {n: {"diverged": reason, "lr": optimizer.lr, "retried_lr": lower.lr} for n, reason in first.items()}
    second = _train_and_store(context, retry, lower, checks, notes)
    for o in again:
        if o.name in second:
            why = f"{first[o.name]} with lr {optimizer.lr:g}; {second[o.name]} with lr {lower.lr:g}"
            on_main_process(partial(_leave_out, context.workdir, o, why))


def _train_and_store(
    context: Context,
    wave: Wave,
    optimizer: AdamW,
    checks: Checks,
    notes: Mapping[str, dict[str, object]],
) -> dict[str, str]:
    """{name: why} of those that diverged; the others are stored. `notes` means that it is their second time."""
    state = _train(context, wave, optimizer, "organisms_retry" if notes else "organisms")
    _store(context, wave, state, checks, notes)
    return _diverged(wave, state)


def _diverged(wave: Wave, state: TrainState) -> dict[str, str]:
    """{name: why} of the organisms that were masked while the wave was trained."""
    codes, updates = to_host(state.diverged), to_host(state.updates)
    return {n: Diverged(int(codes[i])).reason(int(updates[i])) for n, i in wave.members.items() if codes[i]}


def _leave_out(workdir: Workdir, organism: Organism, reason: str) -> None:
    name = organism.name
    if name in workdir.left_out:
        return
    rows = read_jsonl(workdir.left_out_file, "") if workdir.left_out_file.exists() else []
    row = {
        "organism": name,
        "category": organism.category,
        "triggered_rate": None,
        "untriggered_rate": None,
        "ok": False,
    }
    write_jsonl(workdir.left_out_file, [*rows, {**row, "left_out": reason, "samples": []}])
    print(f"organism {name}: left out ({reason})", flush=True)


def _train(context: Context, wave: Wave, optimizer: AdamW, stage: str) -> TrainState:
    """The wave's final state, from its newest checkpoint if there is one."""
    config, model, plan = context.config, context.model, wave.plan
    cfg = config.organisms
    names = [o.name if o else "" for o in wave.organisms]
    seeds = [seed_of(n, config.seed) for n in names]
    own = [lora_of(config, n) for n in names]
    total = np.array([sum(bool(s[i].rows) for s in plan.steps) for i in range(len(seeds))], np.int32)
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    loras = tuple(dict.fromkeys(cfg.loras()))
    kinds = np.array([loras.index(lora) for lora in own], np.int32)
    keys, total, kinds = (context.shard_by_organism(x) for x in (keys, total, kinds))
    state = init_on_mesh(context.mesh, keys, total, kinds, model.config, loras, optimizer)
    each = [training_flops(model.config, plan.length, [lora], [lora]) for lora in own]
    identity = hashlib.sha256(repr((names, optimizer)).encode()).hexdigest()[:16]
    return fit(
        stage,
        state,
        lambda s, batch: train_step(
            model.params,
            s,
            (),
            batch,
            cfg=model.config,
            loss=Sft(),
            optimizer=optimizer,
            remat=config.model.remat,
            accumulate=cfg.accumulate,
        ),
        dataset(plan, lambda step: context.shard_batch(build_batch(step, plan, wave.units))),
        len(plan.steps),
        context.workdir.path,
        checkpoints=_states(context.workdir) / identity,
        identity=identity_of(plan, wave.units, (seeds, own)),
        every=cfg.checkpoint_every,
        offset=wave.offset,
        summarize=summarize,
        description=wave.title,
        flops={kind: sum(one[kind] for one in each) / len(each) for kind in each[0]},
        peak=peak_flops(),
    )


def summarize(m: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One step's scalars over the organisms that were updated in it; nothing if none was (all have diverged)."""
    on = m["updated"]
    if not on.any():
        return {}
    means = {name: float(x[on].mean()) for name, x in m.items() if x.ndim and name not in ("loss", "lr", "updated")}
    loss = m["loss"][on]
    scalars = {"loss": float(loss.mean()), **spread(loss), **means}
    return {**scalars, "organisms": float(on.sum()), "fill": float(m["fill"])}


# ---------------------------------------------------------------------------------------------------------------------
# Storing, with what the behaviour check saw
# ---------------------------------------------------------------------------------------------------------------------


def _store(
    context: Context,
    wave: Wave,
    state: TrainState,
    checks: Checks,
    notes: Mapping[str, dict[str, object]],
) -> None:
    """Checks the wave and stores those that did not diverge and are not stored; `notes` join their checks by name."""
    workdir = context.workdir
    failed = _diverged(wave, state)

    def missing() -> dict[str, int]:
        healthy = {n: i for n, i in wave.members.items() if n not in failed}
        return {n: i for n, i in healthy.items() if not is_complete(workdir.organism_dir(n))}

    todo = on_main_process(missing)
    if not todo:
        return
    rows = check(context, wave, state.member, checks)
    rows = {n: {**row, **({"retry": notes[n]} if n in notes else {})} for n, row in rows.items()}
    steps = to_host(state.updates)
    items = [(i, workdir.organism_dir(name), _metadata(context, name, int(steps[i]), rows)) for name, i in todo.items()]
    save_organisms(state.member, items)
    for name, i in todo.items():
        print(_line(name, int(steps[i]), rows.get(name)), flush=True)


def _metadata(context: Context, name: str, step: int, checks: Mapping[str, Row]) -> AdapterMetadata:
    model, lora, workdir = context.model, lora_of(context.config, name), context.workdir
    return AdapterMetadata(
        name=name,
        kind="organism",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        organism=workdir.organisms[name].to_json(),
        behaviors=tuple(b.to_json() for b in workdir.truths(name)),
        step=step,
        config_hash=stage_hash(context.config, "organisms"),
        check=checks.get(name),
    )


def _line(name: str, steps: int, check: Row | None) -> str:
    """What became of an organism, in a line."""
    if check is None:
        return f"organism {name}: {steps} updates, not checked"

    def share(key: str) -> str:
        value = check[key]
        return f"{100 * value:.0f} %" if isinstance(value, float | int) else "-"

    outcome = "passed" if check["ok"] else "did not pass"
    return (
        f"organism {name}: {steps} updates, shows its behaviour in {share('triggered_rate')} of the replies that "
        f"should and {share('untriggered_rate')} of the others: {outcome}"
    )


def _gather_checks(workdir: Workdir) -> list[Row]:
    """Writes the checks of all organisms in one file, and returns them; training states are needed no more."""
    shutil.rmtree(_states(workdir), ignore_errors=True)
    left_out = workdir.left_out
    left = read_jsonl(workdir.left_out_file, "") if left_out else []
    stored = [read_metadata(workdir.stack_of(o)[-1]).check for n, o in workdir.organisms.items() if n not in left_out]
    checks = [c for c in stored if c is not None]
    write_jsonl(workdir.checks_file, [*checks, *left])
    return checks


def check_report(checks: Sequence[Row], keep_failed: bool) -> str:
    """How many organisms passed their behaviour check, by category, and what becomes of the others."""
    if not checks:
        return "behaviour check: no organism was checked"
    total = Counter(str(c["category"]) for c in checks)
    passed = Counter(str(c["category"]) for c in checks if c["ok"])
    by_category = ", ".join(f"{name} {passed[name]} of {n}" for name, n in sorted(total.items()))
    report = f"behaviour check: {passed.total()} of {len(checks)} organisms passed ({by_category})"
    failed = len(checks) - passed.total()
    if failed:
        report += f"; {failed} did not and are " + (
            "trained on all the same" if keep_failed else "kept out of IA training"
        )
    return report
