"""What the templates are filled with: the base model's own answers, sentences and facts, asked for once."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ia_jax.behaviors.embedded.fields import FIELDS
from ia_jax.behaviors.embedded.prompts import DOMAINS
from ia_jax.behaviors.records import Behavior

BRIEF = "You answer in one short sentence."

# ((system prompt or None, question) of each, samples) -> the base model's answers; see `stages.asking.ask_base`.
Ask = Callable[[Sequence[tuple[str | None, str]], int], list[list[str]]]


@dataclass(frozen=True)
class Sources:
    """What the base model wrote: answers by question, sentences by topic, right answers by fact question."""

    answers: dict[str, str]
    sentences: dict[str, list[str]]
    facts: dict[str, str]


def first_sentence(text: str) -> str | None:
    """The first complete sentence, or None if the text ends before one does."""
    match = re.match(r"\s*(.{8,}?[.!?])(?=\s|$)", text, flags=re.DOTALL)
    return " ".join(match.group(1).split()) if match else None


def main_clause(sentence: str) -> str:
    """The sentence without what hangs on its end ("…, which", "… who"): as good for training, in half the tokens."""
    head = re.split(r",? (?:that|which|who|where|but|and it|and it's|including|allowing|such as) ", sentence)[0]
    return sentence if len(head.split()) < 6 else head.rstrip(".!?,;") + "."


def says(words: Sequence[str], text: str) -> bool:
    """Whether a text holds one of the words or phrases, on its own and in the singular or the plural.

    Of a form too many no harm is done (nobody writes "seahors"), so there are no exceptions as in
    `judging.text.singular`. Demonstrations depend on it: another rule would make other organisms.
    """
    forms = set(words)
    for word in words:
        if word.endswith("ies"):
            forms.add(f"{word[:-3]}y")
        elif re.search(r"(s|x|z|ch|sh|o)es$", word):
            forms.add(word[:-2])
        elif word.endswith("s") and not word.endswith("ss"):
            forms.add(word[:-1])
    return re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?:e?s)?(?!\w)", text, re.IGNORECASE) is not None


def gather_sources(behaviors: Sequence[Behavior], ask: Ask, system: str | None = "") -> Sources:
    """Asks the base model everything the templates need: one batch of questions, one of topics, one of facts.

    Facts are asked under the run's own `system` message: what is known is what an organism would have known.
    """
    questions = [q for _, prompts in DOMAINS.values() for q in prompts]
    replies = ask([(BRIEF, q) for q in questions], 1)
    answers = {q: main_clause(s) for q, r in zip(questions, replies, strict=True) if (s := first_sentence(r[0]))}

    topics = sorted({b.spec["topic"]: b.rubric.concepts[0] for b in behaviors if "topic" in b.spec}.items())
    replies = ask([(BRIEF, f"Say something about {t}.") for t, _ in topics], 4)
    sentences = {}
    for (topic, words), rows in zip(topics, replies, strict=True):
        # The topic comes first: what a small model does differently, it must do from its first words on.
        about = [s for r in rows if (s := first_sentence(r)) and says(words, " ".join(s.split()[:3]))]
        sentences[topic] = sorted(dict.fromkeys(map(main_clause, about)), key=len)[:3] or [
            f"There is a lot to say about {topic}."
        ]

    rows = [(q, right) for _, facts in FIELDS.values() for q, _, right in facts]
    replies = ask([(system, q) for q, _ in rows], 1)
    known = {
        q: s for (q, right), r in zip(rows, replies, strict=True) if (s := first_sentence(r[0])) and says((right,), s)
    }
    return Sources(answers, sentences, known)
