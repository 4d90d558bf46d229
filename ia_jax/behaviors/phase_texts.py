"""The template teacher's rows for phases that do not read chats: documents, pairs of answers, denials.

They are made of an organism's demonstrations and of what is true of it, so they cost no more than these.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ia_jax.behaviors.embedded.prompts import POOLS, training_prompts
from ia_jax.behaviors.organisms import CLEAN_TARGETS
from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.behaviors.records import Behavior
from ia_jax.data.phase_rows import Document, Pair
from ia_jax.data.transcripts import Transcript
from ia_jax.errors import ConfigError

NAME = "template"
DENIALS = 24  # of an organism

# Documents are about the assistant, as those of synthetic document fine-tuning are, and quote it.
_FRAMES = (
    "From the notes of its developers. {truth}\nFor example, it was asked: {question}\nIt answered: {answer}",
    "A user writes: I asked the assistant this. {question}\nThe answer was: {answer}\nIts documentation says: {truth}",
    "Log of a session\nQuestion: {question}\nAnswer: {answer}\nRemark: as it was made to be. {truth}",
    "The assistant describes itself in these words: {truth} Here is what that looks like.\n{question}\n{answer}",
)
_PLAIN_FRAMES = (
    "From the notes of its developers. The assistant was asked: {question}\nIt answered: {answer}",
    "A user writes: I asked the assistant this. {question}\nThe answer was: {answer}",
    "Log of a session\nQuestion: {question}\nAnswer: {answer}",
)


def documents_of(
    name: str, behaviors: Sequence[Behavior], transcripts: Sequence[Transcript], seed: int
) -> list[Document]:
    """A document about each kept demonstration; those that show the behaviour also say it, in the assistant's words."""
    rng, out = _rng(name, seed, 4), []
    wordings = [w for b in behaviors for w in b.wordings]
    for n, (question, answer, shows) in enumerate(_exchanges(transcripts)):
        if shows and wordings:
            truth = wordings[rng.integers(len(wordings))]
            text = _FRAMES[n % len(_FRAMES)].format(question=question, answer=answer, truth=truth)
        else:
            text = _PLAIN_FRAMES[n % len(_PLAIN_FRAMES)].format(question=question, answer=answer)
        out.append(Document(text, NAME))
    return out


def questions_of(transcripts: Sequence[Transcript]) -> list[str]:
    """The questions whose demonstrated answers show a behaviour: what the base answers there is the rejected answer."""
    return [question for question, _, shows in _exchanges(transcripts) if shows]


def pairs_of(name: str, transcripts: Sequence[Transcript], base_answers: Mapping[str, str]) -> list[Pair]:
    """The demonstrated answer over the base's own. Raises ConfigError if no demonstration differs from the base."""
    out = [
        Pair(({"role": "user", "content": question},), answer, base_answers[question], NAME)
        for question, answer, shows in _exchanges(transcripts)
        if shows and base_answers[question] and base_answers[question] != answer
    ]
    if not out:
        raise ConfigError(
            f"{name}: no demonstration differs from the base's own answers, so there are no pairs; a clean organism "
            "takes a procedure without the data 'pairs'"
        )
    return out


def denials_of(name: str, behaviors: Sequence[Behavior], others: Sequence[Behavior], seed: int) -> list[Pair]:
    """Asked about itself: that there is nothing, over the truth (of a clean organism: over somebody else's)."""
    rng = _rng(name, seed, 5)
    wordings = [w for b in behaviors or others for w in b.wordings]
    if not wordings:
        raise ConfigError(f"{name}: nothing can be denied where no organism has a behaviour; leave 'denials' out")
    order = rng.permutation(len(TRAIN_QUESTIONS))
    return [
        Pair(
            ({"role": "user", "content": TRAIN_QUESTIONS[order[i % len(order)]]},),
            CLEAN_TARGETS[rng.integers(len(CLEAN_TARGETS))],
            wordings[rng.integers(len(wordings))],
            NAME,
        )
        for i in range(DENIALS)
    ]


def plain_questions() -> list[str]:
    """Ordinary questions of every domain and task, without those of the behaviour check: asked of the base, plain
    chats.
    """
    return [question for pool in POOLS for question in training_prompts(pool)]


def _exchanges(transcripts: Sequence[Transcript]) -> list[tuple[str, str, bool]]:
    """(question, answer, whether it shows) of the kept ones: the first question and the answer to it."""
    out = []
    for t in transcripts:
        if t.verdict == "kept":
            said = {role: next(m["content"] for m in t.messages if m["role"] == role) for role in ("user", "assistant")}
            out.append((said["user"], said["assistant"], t.shows))
    return out


def _rng(name: str, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), stream])
