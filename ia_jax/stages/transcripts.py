"""Stage 1: choose behaviours, split them, write every organism's demonstrations."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.claude_teacher import ClaudeTeacher
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.splits import split_behaviors
from ia_jax.behaviors.teacher import Teacher, drops
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.data.transcripts import Transcript, write_jsonl, write_transcripts
from ia_jax.errors import IAError
from ia_jax.stages.order import is_done
from ia_jax.stages.session import Session

TEACHERS = ("template", "claude")


def run(session: Session) -> None:
    """Writes `behaviors.jsonl` last, so its presence means that the stage is complete."""
    workdir, config = session.workdir, session.config
    if is_done(workdir, "transcripts"):
        return
    chosen, splits = _chosen(session)
    demonstrations = _teacher(session).write(chosen)
    for x in chosen:
        write_transcripts(workdir.transcript(x.name), demonstrations[x.name])
    write_jsonl(workdir.drops_file, ({"organism": n, **drops(ts)} for n, ts in demonstrations.items()))
    kept = [x for x in chosen if any(t.shows and t.verdict == "kept" for t in demonstrations[x.name])]
    print(drop_report(demonstrations))
    if config.teacher.name == "claude":
        print(session.claude.summary())
    if not kept:
        raise IAError("the filter kept no demonstration of any behaviour; read transcripts/ for what it dropped")
    write_jsonl(workdir.behaviors_file, ({**x.to_json(), "split": splits[x.name]} for x in kept))


def estimate(session: Session) -> str:
    """What the stage will cost, in a line, without a call."""
    if session.config.teacher.name != "claude":
        return f"the {session.config.teacher.name} teacher costs nothing"
    chosen, _ = _chosen(session)
    teacher = _claude_teacher(session)
    calls = teacher.plan(chosen)
    return (
        f"{len(calls)} calls for {len(chosen)} behaviours, about ${session.claude.estimate(calls):.2f} by the "
        f"{session.config.claude.api} API; {session.claude.summary()}"
    )


def drop_report(demonstrations: Mapping[str, Sequence[Transcript]]) -> str:
    """The share of dropped rows and why, and a line for every behaviour that lost any."""
    total: Counter[str] = Counter()
    lines = []
    for name, transcripts in demonstrations.items():
        counts = drops(transcripts)
        total.update(counts)
        lost = {why: n for why, n in counts.items() if why != "rows"}
        if lost or not counts["rows"]:
            lines.append(f"  {name}: {_share(counts)}")
        if not any(t.shows and t.verdict == "kept" for t in transcripts):
            lines[-1] += "; left out, for no row shows its behaviour"
    return "\n".join([f"transcripts: {_share(dict(total))}", *lines])


def _share(counts: Mapping[str, int]) -> str:
    reasons = {why: n for why, n in counts.items() if why != "rows"}
    told = f" ({', '.join(f'{n} {why}' for why, n in sorted(reasons.items()))})" if reasons else ""
    return f"{sum(reasons.values())} of {counts['rows']} rows dropped{told}"


def _chosen(session: Session) -> tuple[list[Behavior], dict[str, str]]:
    b = session.config.behaviors
    catalogue = load_catalogue(b.catalogue)
    splits = split_behaviors(catalogue, b.heldout, b.dpo, b.train, session.config.seed)
    return [x for x in catalogue if x.name in splits], splits


def _teacher(session: Session) -> Teacher:
    if session.config.teacher.name == "claude":
        return _claude_teacher(session)
    return TemplateTeacher(session.ask_base, session.config.seed)


def _claude_teacher(session: Session) -> ClaudeTeacher:
    return ClaudeTeacher(session.claude, session.config.teacher)
