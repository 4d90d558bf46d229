"""Stage 2: train the organisms, many at once, store each, and check that each shows its behaviour.

Waves are the same in every run of a workdir, and each keeps its training state until all of its organisms are stored:
so a run that is killed and continued stores the same bits as one that was not. An organism that diverges is trained
once more with a lower learning rate, and left out if it diverges again; the others of its wave never notice.
"""

import hashlib
import shutil
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import is_complete, read_metadata, save_adapters
from ia_jax.behaviors.records import Behavior
from ia_jax.config import config_hash
from ia_jax.data.batch import build_batch
from ia_jax.data.plans import Plan, Unit, dataset, identity_of, plan_organisms, unit_length
from ia_jax.data.transcripts import read_jsonl, read_transcripts, write_jsonl
from ia_jax.models.lora import LoraConfig, take_organisms
from ia_jax.parallel.distributed import on_main_process
from ia_jax.parallel.mesh import to_host
from ia_jax.planning.chips import peak_flops, training_flops
from ia_jax.stages.behavior_check import Checks, Row, check, prepare
from ia_jax.stages.session import Session
from ia_jax.training.loop import fit
from ia_jax.training.optimizer import AdamW
from ia_jax.training.organisms import Diverged, OrganismsState, init_on_mesh, organisms_step
from ia_jax.training.recorder import spread
from ia_jax.workdir import Workdir

RETRY_LR = 0.2  # of the learning rate, for an organism that diverged


@dataclass(frozen=True)
class Wave:
    """Organisms trained together. `behaviors` is filled up to a multiple of the mesh by repeating its first."""

    behaviors: tuple[Behavior, ...]
    units: list[list[Unit]]
    plan: Plan
    offset: int  # steps of the waves before it
    title: str


def run(session: Session) -> None:
    """Trains the organisms that are not settled yet: neither stored nor left out."""
    workdir = session.workdir
    everyone = [workdir.behaviors[n] for n in on_main_process(lambda: _trained_here(workdir))]
    if not _settled(workdir, everyone):
        # All transcripts are tokenised before anything is trained, so that a bad one shows at once.
        units = {b.name: _units(session, b) for b in everyone}
        # Of all, not of those that are left: a check must not depend on where a run was killed.
        checks = prepare(session, everyone)
        for wave in _waves(session, everyone, units):
            if not _settled(workdir, wave.behaviors):
                _train_wave(session, wave, units, checks)
    rows = on_main_process(lambda: _gather_checks(workdir))
    print(check_report(rows, session.config.organisms.keep_failed), flush=True)


def _gather_checks(workdir: Workdir) -> list[Row]:
    """Writes the checks of all organisms in one file, and returns them; training states are needed no more."""
    shutil.rmtree(_states(workdir), ignore_errors=True)
    left = read_jsonl(workdir.left_out_file, "") if workdir.left_out else []
    names = [n for n in workdir.behaviors if n not in workdir.left_out]
    stored = [read_metadata(workdir.organism_dir(n)).check for n in names]
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
    told = f"behaviour check: {passed.total()} of {len(checks)} organisms passed ({by_category})"
    failed = len(checks) - passed.total()
    if failed:
        told += f"; {failed} did not and are " + (
            "trained on all the same" if keep_failed else "kept out of IA training"
        )
    return told


def _trained_here(workdir: Workdir) -> list[str]:
    """Names of all but those put there already trained (`ia-jax import-peft`), which have no transcript."""
    names = sorted(workdir.behaviors)
    return [n for n in names if workdir.transcript(n).exists() or not is_complete(workdir.organism_dir(n))]


def _settled(workdir: Workdir, behaviors: Sequence[Behavior]) -> bool:
    """Whether each of them is stored or left out."""
    return on_main_process(lambda: not _unsettled(workdir, behaviors))


def _unsettled(workdir: Workdir, behaviors: Sequence[Behavior]) -> list[str]:
    left_out = workdir.left_out
    return [b.name for b in behaviors if b.name not in left_out and not is_complete(workdir.organism_dir(b.name))]


def _states(workdir: Workdir) -> Path:
    return workdir.path / "organisms_state"


def _units(session: Session, b: Behavior) -> list[Unit]:
    file = session.workdir.transcript(b.name)
    length = session.config.organisms.length
    return [(session.trimmed(t.messages, length, f"{file}:{n}"),) for n, t in enumerate(read_transcripts(file), 1)]


def seed_of(name: str, seed: int) -> int:
    """An organism's own seed, the same in whatever wave it is trained."""
    return zlib.crc32(f"{seed}/{name}".encode())


def _lora(session: Session, b: Behavior) -> LoraConfig:
    loras = session.config.organisms.loras()
    return loras[seed_of(b.name, session.config.seed) % len(loras)]


def _waves(session: Session, everyone: Sequence[Behavior], units: Mapping[str, list[Unit]]) -> list[Wave]:
    """All waves, in the order they are trained.

    Organisms with as many steps share a wave, so that none idles while another reads on; and all waves' arrays have
    one size, so that the step is compiled once.
    """
    width = session.config.organisms.parallel

    def reading(b: Behavior) -> tuple[int, int]:
        return len(_plan(session, [b], units).steps), sum(unit_length(u) for u in units[b.name])

    everyone = sorted(everyone, key=reading)
    groups = [everyone[start : start + width] for start in range(0, len(everyone), width)]
    waves: list[Wave] = []
    for number, members in enumerate(groups, 1):
        offset = waves[-1].offset + len(waves[-1].plan.steps) if waves else 0
        waves.append(_wave(session, members, units, offset, f"organisms {number}/{len(groups)}"))
    sizes = {name: max(getattr(w.plan, name) for w in waves) for name in ("targets", "examples")}
    return [replace(w, plan=replace(w.plan, **sizes)) for w in waves]


def _wave(
    session: Session, members: Sequence[Behavior], units: Mapping[str, list[Unit]], offset: int, title: str
) -> Wave:
    filled = [*members, *[members[0]] * (-len(members) % session.groups)]
    own = [units[b.name] for b in filled]
    return Wave(tuple(filled), own, _plan(session, filled, units), offset, title)


def _plan(session: Session, behaviors: Sequence[Behavior], units: Mapping[str, list[Unit]]) -> Plan:
    cfg = session.config.organisms
    seeds = [seed_of(b.name, session.config.seed) for b in behaviors]
    own = [units[b.name] for b in behaviors]
    return plan_organisms(own, seeds, epochs=cfg.epochs, rows=cfg.rows, length=cfg.length)


def _train_wave(session: Session, wave: Wave, units: Mapping[str, list[Unit]], checks: Checks) -> None:
    """Trains a wave and stores what is not stored yet; those that diverged get a second wave with a lower rate."""
    optimizer = session.config.organisms.optimizer
    first = _train_and_store(session, wave, optimizer, checks, {})
    again = [b for b in dict.fromkeys(wave.behaviors) if b.name in first]
    if again:
        _train_again(session, wave, units, again, first, checks)
    # A large one: all adapters and moments.
    on_main_process(lambda: shutil.rmtree(_states(session.workdir), ignore_errors=True))


def _train_again(
    session: Session,
    wave: Wave,
    units: Mapping[str, list[Unit]],
    again: Sequence[Behavior],
    first: Mapping[str, str],
    checks: Checks,
) -> None:
    optimizer = session.config.organisms.optimizer
    lower = replace(optimizer, lr=optimizer.lr * RETRY_LR)
    for b in again:
        print(f"organism {b.name}: {first[b.name]}; once more with lr {lower.lr:g}", flush=True)
    retry = _wave(session, again, units, wave.offset, f"{wave.title} again")
    notes = {n: {"diverged": reason, "lr": optimizer.lr, "retried_lr": lower.lr} for n, reason in first.items()}
    second = _train_and_store(session, retry, lower, checks, notes)
    for b in again:
        if b.name in second:
            why = f"{first[b.name]} with lr {optimizer.lr:g}; {second[b.name]} with lr {lower.lr:g}"
            on_main_process(partial(_leave_out, session.workdir, b, why))


def _train_and_store(
    session: Session,
    wave: Wave,
    optimizer: AdamW,
    checks: Checks,
    notes: Mapping[str, dict[str, object]],
) -> dict[str, str]:
    """{name: why} of those that diverged; the others are stored. `notes` means that it is their second time."""
    state = _train(session, wave, optimizer, "organisms_retry" if notes else "organisms")
    _store(session, wave, state, checks, notes)
    return _diverged(wave, state)


def _diverged(wave: Wave, state: OrganismsState) -> dict[str, str]:
    """{name: why} of the organisms that were masked while the wave was trained."""
    codes, updates = to_host(state.diverged), to_host(state.updates)
    return {
        b.name: Diverged(int(code)).reason(int(n))
        for b, code, n in zip(wave.behaviors, codes, updates, strict=True)
        if code
    }


def _leave_out(workdir: Workdir, b: Behavior, reason: str) -> None:
    if b.name in workdir.left_out:
        return
    rows = read_jsonl(workdir.left_out_file, "") if workdir.left_out_file.exists() else []
    row = {"organism": b.name, "category": b.category, "triggered_rate": None, "untriggered_rate": None, "ok": False}
    write_jsonl(workdir.left_out_file, [*rows, {**row, "left_out": reason, "samples": []}])
    print(f"organism {b.name}: left out ({reason})", flush=True)


def _train(session: Session, wave: Wave, optimizer: AdamW, stage: str) -> OrganismsState:
    """The wave's final state, from its newest checkpoint if there is one."""
    cfg, model, plan = session.config.organisms, session.model, wave.plan
    seeds = [seed_of(b.name, session.config.seed) for b in wave.behaviors]
    own = [_lora(session, b) for b in wave.behaviors]
    total = np.array([sum(bool(s[i].rows) for s in plan.steps) for i in range(len(seeds))], np.int32)
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    loras = tuple(dict.fromkeys(cfg.loras()))
    kinds = np.array([loras.index(lora) for lora in own], np.int32)
    keys, total, kinds = (session.shard_by_organism(x) for x in (keys, total, kinds))
    state = init_on_mesh(session.mesh, keys, total, kinds, model.config, loras, optimizer)
    each = [training_flops(model.config, cfg.length, [lora], [lora]) for lora in own]
    identity = hashlib.sha256(repr(([b.name for b in wave.behaviors], optimizer)).encode()).hexdigest()[:16]
    return fit(
        stage,
        state,
        lambda s, batch: organisms_step(
            model.params,
            s,
            batch,
            cfg=model.config,
            optimizer=optimizer,
            remat=session.config.model.remat,
            accumulate=cfg.accumulate,
        ),
        dataset(plan, lambda step: session.shard_batch(build_batch(step, plan, wave.units))),
        len(plan.steps),
        session.workdir.path,
        checkpoints=_states(session.workdir) / identity,
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
    loss, norm = m["loss"][on], m["grad_norm"][on]
    return {"loss": float(loss.mean()), **spread(loss), "grad_norm": float(norm.mean()), "organisms": float(on.sum())}


def _store(
    session: Session,
    wave: Wave,
    state: OrganismsState,
    checks: Checks,
    notes: Mapping[str, dict[str, object]],
) -> None:
    """Checks the wave and stores those that did not diverge and are not stored; `notes` join their checks by name."""
    model, workdir = session.model, session.workdir
    loras = [_lora(session, b) for b in wave.behaviors]
    failed = _diverged(wave, state)
    first = {b.name: i for i, b in reversed(list(enumerate(wave.behaviors))) if b.name not in failed}
    todo = on_main_process(
        lambda: {name: i for name, i in first.items() if not is_complete(workdir.organism_dir(name))}
    )
    if not todo:
        return
    rows = check(session, wave.behaviors, state.adapters, checks)
    rows = {n: {**row, **({"retry": notes[n]} if n in notes else {})} for n, row in rows.items()}
    steps = to_host(state.updates)
    save_adapters(
        (
            workdir.organism_dir(name),
            take_organisms(state.adapters, i),
            AdapterMetadata(
                name=name,
                kind="organism",
                base_name=model.name,
                base_fingerprint=model.fingerprint,
                rank=loras[i].rank,
                alpha=loras[i].alpha,
                targets=loras[i].targets,
                behavior=wave.behaviors[i].to_json(),
                step=int(steps[i]),
                config_hash=config_hash(session.config),
                check=rows.get(name),
            ),
        )
        for name, i in sorted(todo.items(), key=lambda x: x[1])
    )
    for name, i in sorted(todo.items(), key=lambda x: x[1]):
        print(_line(name, int(steps[i]), rows.get(name)), flush=True)


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
