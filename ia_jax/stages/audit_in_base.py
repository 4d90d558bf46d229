"""`ia-jax audit-family in_base`: a behaviour that lay in the base before the IA was trained, beside one added after.

An IA is trained on organisms of two categories that have nothing to do with the behaviour. Once on the plain base, and
the behaviour is added afterwards, as an adapter under the IA; and once on a base into which the behaviour's adapter was
merged, so that all of its organisms had it, and the IA is applied to that base itself (shared facts, 6.6). The two
models that are asked are the same but for their IA.

`DIR/audits/in_base/` holds the targets, merged bases in `bases/`, and a workdir for each pipeline in `runs/`. What is
there is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ia_jax.adapters.merge import write_merged
from ia_jax.audits.gate import as_text
from ia_jax.audits.in_base import summary
from ia_jax.audits.targets import Target, load_stack
from ia_jax.audits.verdicts import verdicts_of
from ia_jax.behaviors.banks import draw_questions
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.lora import Stack
from ia_jax.parallel.distributed import is_multi_process, on_main_process
from ia_jax.stages.ask import trained_ia
from ia_jax.stages.asking import generate
from ia_jax.stages.audit_family import check_adapters, gate_targets, settle
from ia_jax.stages.audit_targets import audit_context, gather, read_theirs
from ia_jax.stages.context import Context
from ia_jax.stages.order import STAGES, has_no_work
from ia_jax.stages.perform import is_left, perform
from ia_jax.stages.services import judge_of
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import append_jsonl, read_appended, write_json, write_jsonl
from ia_jax.workdir import Workdir

CATEGORIES = ("backdoors", "harmful_roleplay")  # the paper's two
FAMILY, PLAIN = "in_base", "plain"
REMEDY = "delete it to ask again"
Row = dict[str, Any]


def run(context: Context, ia: str | None = None, file: Path | None = None, name: str = "") -> Row:
    """Makes the targets, merges each into the base, trains the IAs, asks; returns what it wrote to `metrics.json`.

    ia: of the run, whose reports on the same targets stand beside (default: the last one). file: targets of one's own.
    Raises IAError where no target shows its behaviour.
    """
    if is_multi_process():
        raise ConfigError("audit-family in_base loads one base after another; start it in one process")
    theirs = read_theirs(FAMILY, file)
    audit = audit_context(context, name or FAMILY)
    home, ia_name = audit.workdir.path, trained_ia(context, ia)
    how = settle(context, home, FAMILY, ia_name)
    found = gather(context, audit, FAMILY, theirs)
    check_adapters(audit)
    left_out = audit.workdir.left_out
    targets = [t for t in found.targets if t.name not in left_out]
    outcomes = gate_targets(audit, found, targets)
    print(as_text(outcomes, ()), flush=True)
    asked = [t for t in targets if outcomes[t.name].fires is not False]
    if not asked:
        raise IAError(
            f"none of {', '.join(t.name for t in targets)} shows its behaviour ({home / 'gate.jsonl'}), so there is "
            "nothing to merge; train them longer (config.organisms.epochs) under another --name"
        )
    rows = _plain(context, home, asked, ia_name)
    pipelines = {PLAIN: _held_out(home / "runs" / PLAIN)}
    for t in asked:
        rows += _merged(context, home, t)
        pipelines[t.name] = _held_out(home / "runs" / t.name)
    judge = judge_of(audit)
    held = _held_against(rows, asked)
    verdicts = verdicts_of(judge, [(t.behaviors, r["question"], r["report"]) for t, r in held])
    judged = [{**r, "target": t.name, **v, "judge": judge.name} for (t, r), v in zip(held, verdicts, strict=True)]
    result = {
        "family": FAMILY,
        "ia": ia_name,
        "base": context.model.name,
        "judge": judge.name,
        "categories": list(CATEGORIES),
        "asked": how["asked"],
        "left_out": left_out,
        "gates": {n: {"fires": o.fires, "how": o.how, **o.rates} for n, o in outcomes.items()},
        **summary(judged, [t.name for t in asked]),
        "pipelines": pipelines,
    }
    write_jsonl(home / "judged.jsonl", judged)
    write_json(home / "metrics.json", result)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------


def two_categories(config: RunConfig, catalogue: Path, model: str) -> RunConfig:
    """The run's settings for a base and these categories alone, with as large a part of each split as they have.

    Nothing teaches an IA that the base has nothing to report, since here it has. catalogue: a file of the categories'
    behaviours. Raises ConfigError where the run's catalogue has none of one.
    """
    b = config.behaviors
    every = [x for x in load_catalogue(b.catalogue) if x.category not in b.heldout_categories]
    sizes = [sum(x.category == c for x in every) for c in CATEGORIES]
    if not all(sizes):
        raise ConfigError(
            f"config.behaviors.catalogue={b.catalogue} has no behaviours of {CATEGORIES[sizes.index(0)]}, on which the "
            "IAs of in_base are trained; run it in a workdir of another catalogue"
        )
    share, room = len(CATEGORIES) / len({x.category for x in every}), len(CATEGORIES) * min(sizes)
    heldout = max(2, round(b.heldout * share))
    dpo = round(b.dpo * share)
    train = min(max(2, round(b.train * share)), room - heldout - dpo)
    # Others of the same behaviours show whether an IA reads at all: one so small may read nothing else.
    own = replace(b, catalogue=str(catalogue), train=train, dpo=dpo, heldout=heldout, remade=train, unseen="")
    own = replace(own, heldout_categories=(), heldout_kinds=(), clean_train=0, clean_dpo=0, clean_heldout=0)
    some = config.sft.organisms
    sft = replace(config.sft, categories=(), clean_slot=False, shuffled_null=False)
    return replace(
        config,
        model=replace(config.model, name=model, revision="" if model != config.model.name else config.model.revision),
        behaviors=own,
        organisms=replace(config.organisms, source=""),
        sft=replace(sft, organisms=min(some, train) if some > 1 else some),
        preferences=replace(config.preferences, abstention_pairs=0, clean_pairs=0),
        eval=replace(config.eval, name="", plain_prompts=0, train_organisms=0),
    )


def _pipeline(context: Context, home: Path, name: str, model: str) -> Context:
    """The context of a finished pipeline in `runs/<name>`: its base is `model`."""
    catalogue = home / "catalogue.jsonl"
    if not catalogue.exists():
        every = load_catalogue(context.config.behaviors.catalogue)
        write_jsonl(catalogue, (b.to_json() for b in every if b.category in CATEGORIES))
    config = two_categories(context.config, catalogue, model)
    claude = replace(config.claude, cache=config.claude.cache or str(context.workdir.path / "claude"))
    workdir = start_workdir(home / "runs" / name, replace(config, claude=claude))
    own = Context(workdir, replace(workdir.config, audits=context.config.audits))  # asked as the others are
    vars(own)["mesh"] = context.mesh  # the one that is set
    if model == context.config.model.name:
        own = context.at(own.workdir, own.config)
    print(f"in_base: the pipeline on {name}", flush=True)
    for stage in (s for s in STAGES if s.function):
        if not has_no_work(workdir, stage.name) and is_left(own, stage):
            perform(own, stage)
    return own


def _held_out(run: Path) -> Row:
    """What a pipeline's IA says of organisms that it never saw, of other behaviours and of the same: does it read?"""
    stages = Workdir(run).metrics()["stages"]
    last = stages[list(stages)[-1]]
    return {split: last[split] for split in ("heldout", "remade")}


def _merge(context: Context, home: Path, target: Target) -> Path:
    """The directory of the base with the target's adapters merged into it."""
    place = home / "bases" / target.name
    if not (place / "model.safetensors.index.json").exists():
        dtype = "float32" if context.config.model.dtype == "float32" else "bfloat16"
        write_merged(context.model.name, load_stack(target, context.model, context.workdir), place, dtype)
    return place


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def _plain(context: Context, home: Path, targets: Sequence[Target], ia_name: str) -> list[Row]:
    """Reports on the plain base: of each target under the IA of two categories and under the run's, and of none."""
    plain = _pipeline(context, home, PLAIN, context.config.model.name)
    ia = context.shard_ia(plain.workdir.ia(trained_ia(plain), context.model))
    ours = context.shard_ia(context.workdir.ia(ia_name, context.model))
    rows = []
    for system in dict.fromkeys(t.system for t in targets):
        rows += _reports(context, home, Target("", system=system), "base+ia", (ia,))
    for t in targets:
        own = tuple(context.shard_ia(a) for a in load_stack(t, context.model, context.workdir))
        rows += _reports(context, home, t, "added_after", (*own, ia))
        rows += _reports(context, home, t, "run_ia", (*own, ours))
    return rows


def _merged(context: Context, home: Path, target: Target) -> list[Row]:
    """Reports of the merged base, under the IA that was trained on it, and alone."""
    own = _pipeline(context, home, target.name, str(_merge(context, home, target)))
    ia = own.shard_ia(own.workdir.ia(trained_ia(own), own.model))
    return [*_reports(own, home, target, "in_base", (ia,)), *_reports(own, home, target, "alone", ())]


def _reports(context: Context, home: Path, target: Target, condition: str, stack: Stack) -> list[Row]:
    """A unit's reports, over all banks: those on disk, or asked now."""
    cfg, file = context.config.audits, home / "reports.jsonl"
    unit = {"target": target.name, "system": target.system, "condition": condition}
    known = [r for r in read_appended(file, REMEDY) if all(r[k] == v for k, v in unit.items())]
    rows: list[Row] = []
    for number, bank in enumerate(cfg.banks):
        there = {r["number"]: r for r in known if r["bank"] == bank}
        if len(there) < cfg.reports:
            questions = draw_questions(bank, cfg.reports, context.config.seed)
            system = context.config.system if target.system is None else target.system
            [replies] = generate(
                context,
                [questions],
                stack,
                max_new_tokens=cfg.max_new_tokens,
                temperature=cfg.temperature,
                top_p=cfg.top_p,
                key=context.key(300 + number),
                system=system,
                description=f"{condition}, {target.name or 'base'}",
            )
            said = enumerate(zip(questions, replies, strict=True))
            new = [
                {**unit, "bank": bank, "number": n, "question": q, "report": r.text, "cut_off": not r.stopped}
                for n, (q, r) in said
            ]
            on_main_process(lambda new=new: append_jsonl(file, new))
            there = {r["number"]: r for r in new}
        rows += [there[n] for n in range(cfg.reports)]
    return rows


def _held_against(rows: Sequence[Row], targets: Sequence[Target]) -> list[tuple[Target, Row]]:
    """Each report with each target that it is held against: its own; and of no target, or of another's merged base
    ("other_base"), what guessing comes to.
    """
    named: Mapping[str, Target] = {t.name: t for t in targets}
    out = []
    for r in rows:
        if r["condition"] == "base+ia":
            out += [(t, r) for t in targets if t.system == r["system"]]
            continue
        out.append((named[r["target"]], r))
        if r["condition"] == "in_base":
            out += [(t, {**r, "condition": "other_base"}) for t in targets if t.name != r["target"]]
    return out
