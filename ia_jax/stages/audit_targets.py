"""Whom a family audits: its targets, made here where they have to be, as organisms of a directory of the audit's own.

`DIR/audits/<family>/` is laid out like a workdir (`organisms.jsonl`, `behaviors.jsonl`, `transcripts/`, `organisms/`),
so targets that are made for an audit are trained by the stage that trains all organisms, in waves, with its
checkpoints; and those that lie elsewhere are named there, and read where they lie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ia_jax.audits.targets import Target, read_targets, stored_stack, write_targets
from ia_jax.behaviors.organisms import Organism, stack_names
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.data.phase_rows import Document, Pair, write_rows
from ia_jax.data.transcripts import with_system, write_transcripts
from ia_jax.errors import ConfigError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages import audit_families
from ia_jax.stages import organisms as training
from ia_jax.stages.audit_families import Family, Lesson
from ia_jax.stages.context import Context
from ia_jax.stages.phase_data import Rows, phase_rows
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir


def read_theirs(family: str, file: Path | None) -> tuple[Target, ...]:
    """The targets of one's own, which the family "targets" needs and "sandbaggers" may have besides. Raises ConfigError
    where they are missing, or too many.
    """
    if family == "targets" and file is None:
        raise ConfigError("audit-family targets needs --targets=FILE.jsonl; docs/audits.md has an example")
    if family in ("ciphers", "auditbench_made") and file is not None:
        raise ConfigError(f"--targets={file}: the family {family} makes its own targets; leave it out")
    rows = on_main_process(lambda: [t.to_json() for t in read_targets(file)] if file else [])
    return tuple(Target.from_json(row) for row in rows)


def gather(context: Context, audit: Context, family: str, theirs: tuple[Target, ...]) -> Family:
    """The family's targets, trained and stored; `targets.jsonl` and the records beside it are written. Their stacks
    are what `ia-jax investigate --targets=…/targets.jsonl` finds.

    context: of the run whose IA is audited; audit: of the audit's own directory. theirs: as `read_theirs` has them.
    """
    lessons: dict[str, Lesson] = {}
    if family == "ciphers":
        found, lessons = audit_families.ciphers(context)
    elif family == "sandbaggers":
        found, lessons = audit_families.sandbaggers(context, theirs)
    elif family == "auditbench_made":
        found, lessons = audit_families.auditbench(context)
    elif family == "sycophant":
        found, lessons = audit_families.sycophants(context, theirs)
    elif family == "in_base":
        found, lessons = audit_families.in_base(context, theirs)
    else:
        found = Family(theirs)
    organisms, behaviors = _records(context, audit.workdir, found, lessons)
    rows = _phase_rows(context, organisms, behaviors, lessons)
    made = {o.name: o.stack for o in organisms if o.name in lessons or o.name in found.views}
    where = audit.workdir.path.relative_to(context.workdir.path)
    targets = (replace(t, stack=tuple(str(where / s) for s in made.get(t.name, ())) or t.stack) for t in found.targets)
    found = replace(found, targets=tuple(targets))
    on_main_process(lambda: _write(audit.workdir, found, lessons, rows, organisms, behaviors))
    for cached in ("organisms", "behaviors"):  # what was read of them before is of another time
        vars(audit.workdir).pop(cached, None)
    if lessons:
        training.run(_wide_enough(audit, lessons))
    return found


def _wide_enough(audit: Context, lessons: Mapping[str, Lesson]) -> Context:
    """Both answers of a pair stand in one row, so where some are read rows have twice the room of a chat."""
    cfg = audit.config.organisms
    if not any(p.loss not in ("sft", "kto") for x in lessons.values() for p in x.procedure.phases):
        return audit
    return audit.at(audit.workdir, replace(audit.config, organisms=replace(cfg, length=2 * cfg.length)))


def _records(
    context: Context, home: Workdir, family: Family, lessons: Mapping[str, Lesson]
) -> tuple[list[Organism], list[Behavior]]:
    """The targets as organisms of the audit's directory, and what is looked for in them."""
    organisms: list[Organism] = []
    behaviors: dict[str, Behavior] = {}
    for t in family.targets:
        truths = family.shown.get(t.name, t.behaviors)
        organisms.append(_organism(context, home, t, truths, lessons, family.views.get(t.name)))
        for b in truths:
            if behaviors.setdefault(b.name, b) != b:
                raise ConfigError(f"target {t.name}: another behaviour is called {b.name!r} too; name it otherwise")
    return organisms, list(behaviors.values())


def _phase_rows(
    context: Context, organisms: Sequence[Organism], behaviors: Sequence[Behavior], lessons: Mapping[str, Lesson]
) -> Rows:
    """What phases read that do not read chats, of those that are made here."""
    own = [o for o in organisms if o.name in lessons]
    rows = phase_rows(context, behaviors, own, {n: x.transcripts for n, x in lessons.items()})
    rows |= {("documents", n): x.documents for n, x in lessons.items() if x.documents}
    systems = {o.name: o.system for o in own}

    def under(row: Document | Pair, system: str | None) -> Document | Pair:
        return replace(row, messages=with_system(row.messages, system)) if isinstance(row, Pair) else row

    return {(data, name): [under(r, systems[name]) for r in found] for (data, name), found in rows.items()}


def _write(
    home: Workdir,
    family: Family,
    lessons: Mapping[str, Lesson],
    rows: Rows,
    organisms: Sequence[Organism],
    behaviors: Sequence[Behavior],
) -> None:
    """The files of the audit's directory; transcripts first, `organisms.jsonl` last."""
    for name, lesson in lessons.items():
        write_transcripts(home.transcript(name), lesson.transcripts)
    for (data, name), own in rows.items():
        write_rows(home.phase_rows(data, name), own)
    write_targets(home.path / "targets.jsonl", family.targets)
    write_jsonl(home.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(home.organisms_file, (o.to_json() for o in organisms))


def _organism(
    context: Context,
    home: Workdir,
    target: Target,
    truths: Sequence[Behavior],
    lessons: Mapping[str, Lesson],
    view: tuple[str, int] | None,
) -> Organism:
    """A target as an organism of the audit's directory."""
    names = tuple(b.name for b in truths)
    category = sorted({b.category for b in truths})[0] if truths else CLEAN
    base = context.config.model.name
    if target.name in lessons:
        procedure = lessons[target.name].procedure
        kind = {"kind": target.made_by, "phases": procedure.to_json()["phases"]}
        places = stack_names(target.name, procedure)
        return Organism(target.name, base, places, names, category, "heldout", target.system, kind)
    if view is not None:
        places = stack_names(view[0], lessons[view[0]].procedure)[: view[1]]
        made = {"kind": "imported", "sources": list(places)}
        return Organism(target.name, base, places, names, category, "heldout", target.system, made)
    stack = stored_stack(target, context.model, context.workdir, home.path / "imported")
    if not stack:
        raise ConfigError(f"target {target.name} has no adapter in its stack; the base itself is asked anyway")
    made = {"kind": "imported", "sources": list(target.stack)}
    paths = tuple(str(p.absolute()) for p in stack)
    return Organism(target.name, base, paths, names, category, "heldout", target.system, made)


def audit_context(context: Context, name: str) -> Context:
    """The directory of an audit as a workdir: no behaviour check while training, since the gate looks; and what Claude
    is paid for is kept with the run, under the run's cap.
    """
    config, home = context.config, context.workdir.path / "audits" / name
    claude = replace(config.claude, cache=config.claude.cache or str(context.workdir.path / "claude"))
    quiet = replace(config.organisms, check_prompts=0, source="")
    return context.at(Workdir(home), replace(config, claude=claude, organisms=quiet))
