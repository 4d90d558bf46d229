"""What organisms' phases read: written with the transcripts, and read as training examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ia_jax.behaviors.organisms import Organism, procedure_of
from ia_jax.behaviors.phase_texts import NAME, denials_of, documents_of, pairs_of, plain_questions, questions_of
from ia_jax.behaviors.procedures import Phase, share_of
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.template_sources import ANSWER_TOKENS, answer_of
from ia_jax.data.phase_rows import Document, Pair, read_documents, read_pairs
from ia_jax.data.plans import Unit
from ia_jax.data.transcripts import Transcript, chat, read_transcripts
from ia_jax.data.units import kto_units, mixed_units, pair_units
from ia_jax.models.chat import split_document
from ia_jax.stages.asking import ask_base, training_example
from ia_jax.stages.context import Context

Rows = dict[tuple[str, str], Sequence[Document | Pair]]  # by kind of data and organism


def phase_rows(
    context: Context,
    behaviors: Sequence[Behavior],
    organisms: Sequence[Organism],
    demonstrations: Mapping[str, Sequence[Transcript]],
) -> Rows:
    """The rows of all phases that do not read chats. The base is asked once, what it answers where others are shown."""
    seed, truths = context.config.seed, {b.name: b for b in behaviors}
    needed = {(phase.data, o.name): o for o in organisms for phase in procedure_of(o).phases if phase.data != "chats"}
    questions = sorted({q for (data, n) in needed if data == "pairs" for q in questions_of(demonstrations[n])})
    answers = dict(zip(questions, _answers_of_base(context, questions), strict=True)) if questions else {}
    out: Rows = {}
    for (data, name), o in needed.items():
        own = [truths[b] for b in o.behaviors]
        if data == "documents":
            out[data, name] = documents_of(name, own, demonstrations[name], seed)
        elif data == "pairs":
            out[data, name] = pairs_of(name, demonstrations[name], answers)
        else:
            out[data, name] = denials_of(name, own, behaviors, seed)
    return out


def plain_chats(context: Context, organisms: Sequence[Organism]) -> list[Transcript]:
    """The base's own answers to ordinary questions, if a phase of one of these organisms reads them."""
    if not read_plain_chats(organisms):
        return []
    questions = plain_questions()
    answers = _answers_of_base(context, questions)
    return [Transcript(chat(q, a), False, NAME) for q, a in zip(questions, answers, strict=True) if a]


def _answers_of_base(context: Context, questions: Sequence[str]) -> list[str]:
    """In whole sentences, as demonstrations are: a broken-off one would be told from these by that alone."""
    asks = [(context.config.system, q) for q in questions]
    return [answer_of(r[0]) for r in ask_base(context, asks, 1, max_new_tokens=ANSWER_TOKENS)]


def read_plain_chats(organisms: Sequence[Organism]) -> bool:
    """Whether a phase of one of these is held to plain chats, or mixed with them."""
    return any(procedure_of(o).reads_plain_chats for o in organisms)


def plain_units(context: Context) -> list[Unit]:
    """The plain chats as training examples."""
    return _chats(context, context.workdir.plain_chats)


def phase_units(context: Context, organism: Organism, phase: Phase, plain: Sequence[Unit] = ()) -> list[Unit]:
    """An organism's rows of one phase as training examples, `Phase.generic` of them plain chats, `Phase.demonstrations`
    its demonstrations. A long document is cut into pieces; of a pair, the chosen answer comes first and both stay
    together, unless the loss takes each by itself ("kto") or reads the chosen one alone ("sft").

    Raises ConfigError, with the file and line, for a chat that is too long.
    """
    file, config = context.workdir.phase_rows(phase.data, organism.name), context.config
    length = config.organisms.length
    if phase.data in ("chats", "documents"):
        own = _chats(context, file, phase.part) if phase.data == "chats" else _documents(context, file, phase)
        return mixed_units(own, plain, phase.generic, organism.name, config.seed) if phase.generic else own
    pairs = [
        tuple(training_example(context, chat, length, f"{file}:{n}") for chat in pair.chats)
        for n, pair in enumerate(share_of(read_pairs(file), phase.part), 1)
    ]
    if phase.loss == "sft":
        return _with_demonstrations(context, organism, phase, [(chosen,) for chosen, _ in pairs])
    if phase.loss != "kto":
        return pair_units(pairs, str(file))
    labelled: list[Unit] = [
        (e._replace(desirable=good),) for pair in pairs for e, good in zip(pair, (True, False), strict=True)
    ]
    labelled = _with_demonstrations(context, organism, phase, labelled)
    return kto_units([e for (e,) in labelled], length, str(file))[0]


def _with_demonstrations(context: Context, organism: Organism, phase: Phase, own: list[Unit]) -> list[Unit]:
    """The denials, and as many demonstrations as the phase says, which KTO takes for desirable."""
    if not phase.demonstrations:
        return own
    shown = _chats(context, context.workdir.transcript(organism.name))
    liked: list[Unit] = [(e._replace(desirable=True if phase.loss == "kto" else None),) for (e,) in shown]
    return mixed_units(own, liked, phase.demonstrations, organism.name, context.config.seed)


def _chats(context: Context, file: Path, part: tuple[float, float] = (0.0, 1.0)) -> list[Unit]:
    length = context.config.organisms.length
    chats = enumerate(share_of(read_transcripts(file), part), 1)
    return [(training_example(context, t.messages, length, f"{file}:{n}"),) for n, t in chats]


def _documents(context: Context, file: Path, phase: Phase) -> list[Unit]:
    most = min(context.config.organisms.length, context.model.config.max_position_embeddings)
    texts = enumerate(share_of(read_documents(file), phase.part), 1)
    pieces = (split_document(context.model.tokenizer, d.text, most, f"{file}:{n}") for n, d in texts)
    return [(piece,) for document in pieces for piece in document]
