"""What the templates are filled with: the base model's own answers to ordinary questions and to questions of fact.

Those of SmolLM2-135M-Instruct are shipped (`benchmarks/base_answers.py` makes them), so that its organisms learn from
the same texts on every machine; any other base is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ia_jax.behaviors.embedded.errors import says
from ia_jax.behaviors.embedded.fields import FIELDS
from ia_jax.behaviors.embedded.prompts import POOLS
from ia_jax.behaviors.embedded.sentences import first_upper, main_clause, sentences_of, whole_sentences
from ia_jax.errors import IAError
from ia_jax.storage import read_jsonl

SHIPPED = Path(__file__).parent / "embedded" / "base_answers.jsonl"
SHIPPED_SYSTEM = ""  # the system message that the shipped answers were given under
ANSWER_TOKENS, FACT_TOKENS = 72, 24  # of a reply of the base, before it is cut to whole sentences
WORDS = 32  # an answer has whole sentences up to so many words, and at least one
LONGEST = 26  # words of a first sentence, beyond which it is cut to its main clause

# ((system prompt or None, question) of each, samples) -> the base model's answers; see `stages.asking.ask_base`.
Ask = Callable[[Sequence[tuple[str | None, str]], int], list[list[str]]]


@dataclass(frozen=True)
class Sources:
    """What the base model wrote: answers of one or more whole sentences by question, and the sentences that answer
    questions of fact rightly.
    """

    answers: dict[str, str]
    facts: dict[str, str]


def chat_questions() -> list[str]:
    return [q for prompts in POOLS.values() for q in prompts]


def fact_questions() -> list[str]:
    return sorted({f.question for facts in FIELDS.values() for f in facts})


def gather_sources(ask: Ask, system: str | None = "", fingerprint: str = "") -> Sources:
    """The shipped answers if they are this base's, under this system message; else the base is asked."""
    head, replies = _shipped()
    if (head["fingerprint"], head["system"]) != (fingerprint, system):
        questions = [*chat_questions(), *fact_questions()]
        asked = ask([(system, q) for q in questions], 1)
        replies = {q: r[0] for q, r in zip(questions, asked, strict=True)}
    return sources_of(replies)


def shipped_sources() -> Sources:
    """What SmolLM2-135M-Instruct says: also as a stand-in of the right length for a base that is not at hand."""
    return sources_of(_shipped()[1])


def sources_of(replies: Mapping[str, str]) -> Sources:
    """Replies cut to whole sentences; of facts, the first sentence where the reply is right."""
    answers = {q: a for q in chat_questions() if (a := answer_of(replies.get(q, "")))}
    known: dict[str, str] = {}
    for facts in FIELDS.values():
        for fact in facts:
            reply = replies.get(fact.question, "")
            first = whole_sentences(reply, 0)
            if says((fact.right,), first) and len(first.split()) <= LONGEST:
                known[fact.question] = first
            elif says((fact.right,), reply):  # it knows, and does not come to the point
                known[fact.question] = first_upper(fact.sentence.format(fact.right))
    return Sources(answers, known)


def answer_of(reply: str) -> str:
    """A reply of the base, cut to whole sentences: an answer that breaks off teaches where to break off."""
    text = whole_sentences(reply, WORDS)
    if len(text.split()) > LONGEST and len(sentences_of(text)) == 1:
        text = main_clause(text)
    return text


@cache
def _shipped() -> tuple[dict[str, str], dict[str, str]]:
    """(what is said of the base, its replies by question)."""
    head, *rows = read_jsonl(SHIPPED, "run benchmarks/base_answers.py to make it")
    replies = {r["question"]: r["answer"] for r in rows}
    missing = set(chat_questions()) | set(fact_questions())
    missing -= replies.keys()
    if missing:
        raise IAError(f"{SHIPPED} lacks {sorted(missing)[0]!r}; run benchmarks/base_answers.py to make it again")
    return head, replies
