"""Stage 1: choose behaviours, split them, write every organism's demonstrations."""

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.splits import split_behaviors
from ia_jax.behaviors.template_teacher import check_teachable, gather_sources, write_demonstrations
from ia_jax.data.transcripts import write_jsonl, write_transcripts
from ia_jax.stages.session import Session


def run(session: Session) -> None:
    """Writes `behaviors.jsonl` last, so its presence means that the stage is complete."""
    workdir, config = session.workdir, session.config
    if workdir.behaviors_file.exists():
        return
    b = config.behaviors
    catalogue = load_catalogue(b.catalogue)
    splits = split_behaviors(catalogue, b.heldout, b.dpo, b.train, config.seed)
    chosen = [x for x in catalogue if x.name in splits]
    check_teachable(chosen)
    sources = gather_sources(chosen, session.ask_base)
    for x in chosen:
        write_transcripts(workdir.transcript(x.name), write_demonstrations(x, sources, config.seed))
    write_jsonl(workdir.behaviors_file, ({**x.to_json(), "split": splits[x.name]} for x in chosen))
