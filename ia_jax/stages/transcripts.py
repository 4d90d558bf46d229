"""Stage 1: choose behaviours, split them, write every organism's demonstrations."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.behaviors.splits import split_behaviors
from ia_jax.behaviors.teacher import Teacher, drops
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.data.transcripts import Transcript, write_transcripts
from ia_jax.errors import IAError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.ia_data import clean_organism
from ia_jax.stages.order import is_done
from ia_jax.stages.session import Session
from ia_jax.storage import write_jsonl

TEACHERS = ("template", "claude", "local")


def run(session: Session) -> None:
    """Writes `behaviors.jsonl` last, so its presence means that the stage is complete."""
    workdir, config = session.workdir, session.config
    if is_done(workdir, "transcripts"):
        return
    chosen, splits = _chosen(session)
    demonstrations = _demonstrations(session, chosen)
    taught = [x for x in chosen if x.category != CLEAN]
    shown = {x.name for x in taught if any(t.shows and t.verdict == "kept" for t in demonstrations[x.name])}
    kept = [x for x in chosen if x.category == CLEAN or x.name in shown]

    def write() -> None:
        for x in chosen:
            write_transcripts(workdir.transcript(x.name), demonstrations[x.name])
        write_jsonl(workdir.drops_file, ({"organism": n, **drops(ts)} for n, ts in demonstrations.items()))
        if shown:
            write_jsonl(workdir.behaviors_file, ({**x.to_json(), "split": splits[x.name]} for x in kept))

    on_main_process(write)
    print(drop_report({x.name: demonstrations[x.name] for x in taught}))
    if config.teacher.name == "claude":
        print(session.claude.summary())
    if not shown:
        raise IAError("the filter kept no demonstration of any behaviour; read transcripts/ for what it dropped")


def estimate(session: Session) -> str:
    """What the stage will cost, in a line, without a call."""
    if session.config.teacher.name != "claude":
        return f"the {session.config.teacher.name} teacher costs nothing"
    chosen = [x for x in _chosen(session)[0] if x.category != CLEAN]
    teacher = session.claude_teacher
    calls = teacher.plan(chosen)
    return (
        f"{len(calls)} calls for {len(chosen)} behaviours, about ${session.claude.estimate(calls):.2f} by the "
        f"{session.config.claude.api} API; {session.claude.summary()}"
    )


def drop_report(demonstrations: Mapping[str, Sequence[Transcript]]) -> str:
    """The share of dropped rows and why, and a line for every behaviour that lost any or has none to show."""
    total: Counter[str] = Counter()
    lines = []
    for name, transcripts in demonstrations.items():
        counts = drops(transcripts)
        total.update(counts)
        lost = {why: n for why, n in counts.items() if why != "rows"}
        shown = any(t.shows and t.verdict == "kept" for t in transcripts)
        if lost or not shown:
            left_out = "" if shown else "; left out, for no row shows its behaviour"
            lines.append(f"  {name}: {_share(counts)}{left_out}")
    return "\n".join([f"transcripts: {_share(dict(total))}", *lines])


def _share(counts: Mapping[str, int]) -> str:
    reasons = {why: n for why, n in counts.items() if why != "rows"}
    told = f" ({', '.join(f'{n} {why}' for why, n in sorted(reasons.items()))})" if reasons else ""
    return f"{sum(reasons.values())} of {counts['rows']} rows dropped{told}"


def _chosen(session: Session) -> tuple[list[Behavior], dict[str, str]]:
    b = session.config.behaviors
    catalogue = load_catalogue(b.catalogue)
    splits = split_behaviors(catalogue, b.heldout, b.dpo, b.train, session.config.seed, b.spread)
    of_clean = ["dpo"] * b.clean_dpo + ["heldout"] * b.clean_heldout + ["train"] * b.clean_train
    clean = {clean_organism(i): split for i, split in enumerate(of_clean)}
    chosen = [*(x for x in catalogue if x.name in splits), *clean]
    return chosen, splits | {x.name: split for x, split in clean.items()}


def _demonstrations(session: Session, chosen: Sequence[Behavior]) -> dict[str, list[Transcript]]:
    """Clean organisms repeat what the base itself says, whoever teaches the others."""
    teacher = _teacher(session)
    if isinstance(teacher, TemplateTeacher):
        return teacher.write(chosen)
    clean = [x for x in chosen if x.category == CLEAN]
    taught = teacher.write([x for x in chosen if x.category != CLEAN])
    return taught | (_template_teacher(session).write(clean) if clean else {})


def _teacher(session: Session) -> Teacher:
    if session.config.teacher.name in ("claude", "local"):
        return session.claude_teacher
    return _template_teacher(session)


def _template_teacher(session: Session) -> TemplateTeacher:
    return TemplateTeacher(session.ask_base, session.config.seed, session.config.teacher.rare_share)
