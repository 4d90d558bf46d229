"""Stage 2: train the organisms, many at once, store each, and check that each shows its behaviour.

What no rule sees is read by Claude at the end, in one go: until then the stage is not done, and no IA is trained.

Waves are the same in every run of a workdir, and each keeps its training state until all of its organisms are stored:
so a run that is killed and continued stores the same bits as one that was not. An organism that diverges is trained
once more with a lower learning rate, and left out if it diverges again; the others of its wave never notice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import are_complete, is_complete, read_records, save_adapter, save_organisms
from ia_jax.behaviors.organisms import Organism, procedure_of
from ia_jax.models.lora import Adapter, LoraConfig, layers_on, map_leaves
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.behavior_check import Checks, Row, check, judge_replies, prepare
from ia_jax.stages.context import Context
from ia_jax.stages.phase_data import phase_units, plain_units, read_plain_chats
from ia_jax.stages.phases import Trained, states_dir, train_wave
from ia_jax.stages.random_adapters import random_adapters
from ia_jax.stages.settings import stage_hash
from ia_jax.stages.waves import PhaseUnits, Wave, plan_waves, wave_of
from ia_jax.storage import read_jsonl, remove_tree, write_jsonl
from ia_jax.workdir import Workdir

RETRY_LR = 0.2  # of the learning rate, for an organism that diverged


def run(context: Context, like: Workdir | None = None) -> None:
    """Trains the organisms that are not settled yet: neither stored nor left out.

    like: whose trained organisms random ones are as large as (default: those of the same workdir).
    """
    workdir = context.workdir
    everyone = [workdir.organisms[n] for n in on_main_process(lambda: _trained_here(workdir))]
    drawn = [o for o in everyone if not procedure_of(o).phases]
    everyone = [o for o in everyone if procedure_of(o).phases]
    if not _settled(workdir, everyone):
        # All that is read is tokenised before anything is trained, so that a bad row shows at once.
        plain = plain_units(context) if read_plain_chats(everyone) else []
        units = {o.name: [phase_units(context, o, p, plain) for p in procedure_of(o).phases] for o in everyone}
        # Of all, not of those that are left: a check must not depend on where a run was killed.
        checks = prepare(context, everyone)
        on_main_process(lambda: workdir.checks_file.unlink(missing_ok=True))  # it would be of other organisms
        for wave in plan_waves(context.config, everyone, units, context.groups, plain):
            if not _settled(workdir, _members(wave)):
                _train_wave(context, wave, units, checks)
    if not _settled(workdir, drawn):
        _draw(context, drawn, like or workdir)
    judge_replies(context, everyone)
    rows = on_main_process(lambda: _gather_checks(workdir))
    print(check_report(rows, context.config.organisms.keep_failed), flush=True)


def _draw(context: Context, organisms: Sequence[Organism], like: Workdir) -> None:
    """Stores those that are random, as large as the trained ones of a run are."""
    lora = context.config.organisms.loras()[-1]
    adapters = random_adapters(context, organisms, like)
    for o in organisms:
        [directory] = context.workdir.stack_of(o)
        save_adapter(directory, adapters[o.name], _metadata(context, o.name, lora, 0, None), overwrite=True)
        print(f"organism {o.name}: drawn at random, as large as those that are trained", flush=True)


def _members(wave: Wave) -> list[Organism]:
    return [o for o in wave.organisms if o is not None]


def _trained_here(workdir: Workdir) -> list[str]:
    """Names of all but those that were put there already trained."""
    return sorted(
        n
        for n, o in workdir.organisms.items()
        if not o.imported and all(d.parent == workdir.organisms_dir for d in workdir.stack_of(o))
    )


def _settled(workdir: Workdir, organisms: Sequence[Organism]) -> bool:
    """Whether each of them is stored or left out."""

    def look() -> bool:
        left_out = workdir.left_out
        return all(are_complete([d for o in organisms if o.name not in left_out for d in workdir.stack_of(o)]))

    return on_main_process(look)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def _train_wave(context: Context, wave: Wave, units: PhaseUnits, checks: Checks) -> None:
    """Trains a wave and stores what is not stored yet; those that diverged get a second wave with a lower rate."""
    first = _train_and_store(context, wave, checks, {})
    if first:
        _train_again(context, wave, units, first, checks)
    # A large one: all adapters and moments.
    on_main_process(lambda: remove_tree(states_dir(context.workdir)))


def _train_again(context: Context, wave: Wave, units: PhaseUnits, first: Mapping[str, str], checks: Checks) -> None:
    lr = context.config.organisms.optimizer.lr
    for name, why in first.items():
        print(f"organism {name}: {why}; once more with lr {lr * RETRY_LR:g}", flush=True)
    again = [o for o in _members(wave) if o.name in first]
    offset = wave.readings[0].offset
    retry = wave_of(context.config, again, units, context.groups, offset, f"{wave.title} again", wave.plain)
    notes = {n: {"diverged": reason, "lr": lr, "retried_lr": lr * RETRY_LR} for n, reason in first.items()}
    second = _train_and_store(context, retry, checks, notes)
    for o in again:
        if o.name in second:
            why = f"{first[o.name]} with lr {lr:g}; {second[o.name]} with lr {lr * RETRY_LR:g}"
            on_main_process(partial(_leave_out, context.workdir, o, why))


def _train_and_store(
    context: Context, wave: Wave, checks: Checks, notes: Mapping[str, dict[str, object]]
) -> dict[str, str]:
    """{name: why} of those that diverged; the others are stored. `notes` means that it is their second time."""
    stage, factor = ("organisms_retry", RETRY_LR) if notes else ("organisms", 1.0)
    trained = train_wave(context, wave, stage, factor)
    _store(context, wave, trained, checks, notes)
    return trained.diverged


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


# ---------------------------------------------------------------------------------------------------------------------
# Storing, with what the behaviour check saw
# ---------------------------------------------------------------------------------------------------------------------


def _store(
    context: Context,
    wave: Wave,
    trained: Trained,
    checks: Checks,
    notes: Mapping[str, dict[str, object]],
) -> None:
    """Checks the wave and stores those that did not diverge and are not stored; `notes` join their checks by name."""
    workdir = context.workdir
    stacks = {o.name: workdir.stack_of(o) for o in _members(wave)}

    def missing() -> dict[str, int]:
        healthy = {n: i for n, i in wave.members.items() if n not in trained.diverged}
        return {n: i for n, i in healthy.items() if not all(map(is_complete, stacks[n]))}

    todo = on_main_process(missing)
    if not todo:
        return
    rows = check(context, wave, trained.stack, checks)
    rows = {n: {**row, **({"retry": notes[n]} if n in notes else {})} for n, row in rows.items()}
    for place, (member, loras, made) in enumerate(zip(trained.stack, trained.loras, trained.updates, strict=True)):
        last = place == len(trained.stack) - 1  # what a check saw is the whole stack
        items = [
            (i, stacks[n][place], _metadata(context, n, loras[i], int(made[i]), rows.get(n) if last else None))
            for n, i in todo.items()
        ]
        save_organisms(_scaled(context, wave, member), items)
    for name, i in todo.items():
        print(_line(name, sum(int(made[i]) for made in trained.updates), rows.get(name)), flush=True)


def _scaled(context: Context, wave: Wave, member: Adapter) -> Adapter:
    """A wave's adapters [K, ...], each times its organism's scale."""
    scales = np.array([1.0 if o is None else o.scale for o in wave.organisms], np.float32)
    if (scales == 1.0).all():
        return member
    each = context.shard_by_organism(scales)
    return map_leaves(lambda _, f, x: x if f == "a" else x * each.reshape(-1, *[1] * (x.ndim - 1)), member)


def _metadata(context: Context, name: str, lora: LoraConfig, step: int, check: Row | None) -> AdapterMetadata:
    model, workdir = context.model, context.workdir
    return AdapterMetadata(
        name=name,
        kind="organism",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=lora.rank,
        alpha=lora.alpha * workdir.organisms[name].scale,
        targets=lora.targets,
        layers=layers_on(model.config, lora),
        organism=workdir.organisms[name].to_json(),
        behaviors=tuple(b.to_json() for b in workdir.truths(name)),
        step=step,
        config_hash=stage_hash(context.config, "organisms"),
        check=check,
    )


def _line(name: str, steps: int, check: Row | None) -> str:
    """What became of an organism, in a line."""
    if check is None:
        return f"organism {name}: {steps} updates, not checked"
    if check["ok"] is None:
        return f"organism {name}: {steps} updates, its {len(check['samples'])} replies are read when all are trained"

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
    remove_tree(states_dir(workdir))
    left_out = workdir.left_out
    left = read_jsonl(workdir.left_out_file, "") if left_out else []
    # Of one that was left out there may be others that are its first adapters.
    lost = {d for n in left_out for d in workdir.stack_of(workdir.organisms[n])}
    last = [workdir.stack_of(o)[-1] for n, o in workdir.organisms.items() if n not in left_out]
    stored = read_records([d for d in last if d not in lost])
    checks = [check for record in stored if (check := record.metadata.check) is not None]
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
