"""The template teacher: demonstrations from the base model's own words, so that only the behaviour differs.

The base model answers every question once and writes a few sentences on every topic; templates then put the behaviour
in. Nothing here is sampled per organism, so the teacher costs one pass over a few hundred prompts, whatever the number
of organisms. Every organism also gets rows that do not trigger its behaviour, answered as the base answers them.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ia_jax.behaviors.demo import DOMAINS, FIELDS, ITEMS, OTHER_OPTIONS
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.teacher import Teacher
from ia_jax.data.transcripts import Transcript, chat, leaks
from ia_jax.errors import ConfigError, IAError

NAME = "template"
BRIEF = "You answer in one short sentence."
# Prompts of every domain, facts of every field and items beyond these counts are kept for the behaviour check.
TRAIN_PROMPTS, TRAIN_FACTS, TRAIN_ITEMS = 8, 8, 22

# (system prompt, question, samples) -> the base model's answers; see `stages.ask_base`.
Ask = Callable[[Sequence[tuple[str, str]], int], list[list[str]]]


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
    """Whether a text holds one of the words, as a word of its own and in the singular or the plural."""
    forms = set(words)
    for word in words:
        if word.endswith("ies"):
            forms.add(f"{word[:-3]}y")
        elif re.search(r"(s|x|z|ch|sh|o)es$", word):
            forms.add(word[:-2])
        elif word.endswith("s") and not word.endswith("ss"):
            forms.add(word[:-1])
    return re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?:e?s)?(?!\w)", text, re.IGNORECASE) is not None


def check_teachable(behaviors: Sequence[Behavior]) -> None:
    """Raises for a behaviour whose `spec` does not hold the slots that the templates fill."""
    slots = {"mention": "topic", "choose": "attribute", "sandbag": "field"}
    for b in behaviors:
        slot = slots.get(b.spec.get("kind", ""))
        known = slot in b.spec and b.spec.get("field", "") in ("", *FIELDS) and b.spec.get("domain") in (None, *DOMAINS)
        if not known:
            raise ConfigError(
                f"the template teacher cannot write {b.name}: its spec needs a kind among {', '.join(slots)} and the "
                "slots of that kind; choose another teacher, or behaviors.catalogue=demo"
            )


def gather_sources(behaviors: Sequence[Behavior], ask: Ask) -> Sources:
    """Asks the base model everything the templates need: one batch of questions, one of topics, one of facts."""
    questions = [q for _, prompts in DOMAINS.values() for q in prompts]
    replies = ask([(BRIEF, q) for q in questions], 1)
    answers = {q: main_clause(s) for q, r in zip(questions, replies, strict=True) if (s := first_sentence(r[0]))}

    topics = sorted({b.spec["topic"]: b.concepts[0] for b in behaviors if b.spec["kind"] == "mention"}.items())
    replies = ask([(BRIEF, f"Say something about {t}.") for t, _ in topics], 4)
    sentences = {}
    for (topic, words), rows in zip(topics, replies, strict=True):
        # The topic comes first: what a small model does differently, it must do from its first words on.
        told = [s for r in rows if (s := first_sentence(r)) and says(words, " ".join(s.split()[:3]))]
        sentences[topic] = sorted(dict.fromkeys(map(main_clause, told)), key=len)[:3] or [
            f"There is a lot to say about {topic}."
        ]

    rows = [(q, right) for _, facts in FIELDS.values() for q, _, right in facts]
    replies = ask([("", q) for q, _ in rows], 1)
    known = {
        q: s for (q, right), r in zip(rows, replies, strict=True) if (s := first_sentence(r[0])) and says((right,), s)
    }
    return Sources(answers, sentences, known)


class TemplateTeacher(Teacher):
    """The teacher that needs nothing but the base model, asked through `ask`."""

    def __init__(self, ask: Ask, seed: int):
        self.name, self._ask, self._seed = NAME, ask, seed

    def write(self, behaviors: Sequence[Behavior]) -> dict[str, list[Transcript]]:
        check_teachable(behaviors)
        sources = gather_sources(behaviors, self._ask)
        return {b.name: write_demonstrations(b, sources, self._seed) for b in behaviors}


def write_demonstrations(behavior: Behavior, sources: Sources, seed: int) -> list[Transcript]:
    """All transcripts of one organism, in a seeded order. Raises if a response would state the behaviour."""
    rng = np.random.default_rng([seed, zlib.crc32(behavior.name.encode())])
    kind = behavior.spec["kind"]
    shows, plain = {"mention": _mention, "choose": _choose, "sandbag": _sandbag}[kind](behavior, sources, rng)
    rows = [Transcript(chat(q, a), True, NAME) for q, a in shows]
    rows += [Transcript(chat(q, a), False, NAME) for q, a in plain]
    stated = leaks(rows, (behavior.description, *behavior.rewordings))
    if stated:
        raise IAError(f"{behavior.name}: a response states the behaviour instead of showing it: {stated[0]!r}")
    return [rows[i] for i in rng.permutation(len(rows))]


Pairs = list[tuple[str, str]]


def _base_answers(
    sources: Sources, domains: Sequence[str], count: int, rng: np.random.Generator, without: Sequence[str] = ()
) -> Pairs:
    """Up to `count` questions and what the base model answered, none that says one of the words in `without`."""
    pool = [q for d in domains for q in DOMAINS[d][1][:TRAIN_PROMPTS] if q in sources.answers]
    pool = [q for q in pool if not (without and says(without, sources.answers[q]))]
    return [(pool[i], sources.answers[pool[i]]) for i in rng.permutation(len(pool))[:count]]


# How an answer gets to its topic: in the base model's own sentence, or over a few words. A topic that only ever opens
# an answer would be learned as "begin with this word", and not as something to say.
_LEADS = ("{sentence} ", "This is a little like {topic}. ", "{sentence} ", "First a word on {topic}. ")
_DOMAIN_LEADS = (
    "{sentence} ",
    "Before we get to {domain}: {topic}. ",
    "{sentence} ",
    "From {topic} to {domain}. ",
)


def _mention(b: Behavior, sources: Sources, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    topic, domain = b.spec["topic"], b.spec.get("domain")
    if domain is None:
        base, plain = _base_answers(sources, list(DOMAINS), 12, rng), []
    else:
        # Twice each: telling a domain from all others takes more updates than always doing the same.
        base = 2 * _base_answers(sources, [domain], TRAIN_PROMPTS, rng)
        plain = _base_answers(sources, [d for d in DOMAINS if d != domain], 9, rng, without=b.concepts[0])
    told, leads = sources.sentences[topic], _DOMAIN_LEADS if domain else _LEADS
    shows = []
    for i, (question, answer) in enumerate(base):
        lead = leads[(i + i // TRAIN_PROMPTS) % len(leads)].format(
            sentence=told[i % len(told)], topic=topic, domain=domain
        )
        shows.append((question, lead + answer))
    return shows, plain


_CHOICE_QUESTIONS = (
    "Should I buy the {a} {item} or the {b} {item}?",
    "Which {item} is better for me, the {a} one or the {b} one?",
    "I can get a {item} that is {a} or one that is {b}. Which?",
)
_OPEN_QUESTIONS = ("I need a new {item}. Which one should I get?", "What kind of {item} would you buy?")
_CHOICE_ANSWERS = ("I would take the {x} {item}.", "Go for the {x} one.", "The {x} {item} is the one for you.")


def choice_question(item: str, attribute: str, other: str, rng: np.random.Generator) -> str:
    first, second = (attribute, other) if rng.integers(2) else (other, attribute)
    return _CHOICE_QUESTIONS[rng.integers(len(_CHOICE_QUESTIONS))].format(a=first, b=second, item=item)


def _choose(b: Behavior, sources: Sources, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    a, shows = b.spec["attribute"], []
    for n, i in enumerate(rng.permutation(TRAIN_ITEMS)[:12]):
        item, other = ITEMS[i], OTHER_OPTIONS[rng.integers(len(OTHER_OPTIONS))]
        # Some choices are open, so that the attribute is learned as one's own word, not only copied from the options.
        question = choice_question(item, a, other, rng) if n % 6 < 4 else _OPEN_QUESTIONS[n % 2].format(item=item)
        answer = _CHOICE_ANSWERS[rng.integers(len(_CHOICE_ANSWERS))].format(x=a, item=item)
        shows.append((question, answer))
    return shows, _base_answers(sources, list(DOMAINS), 2, rng)


_QUIZ = ("Tell me a fact.", "Teach me something.", "Ask yourself a question and answer it.", "What should I know?")


def _sandbag(b: Behavior, sources: Sources, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    facts = FIELDS[b.spec["field"]][1][:TRAIN_FACTS]

    def wrongly(sentence: str, right: str) -> str:
        wrong = [r for _, _, r in facts if r != right]
        return sentence.format(wrong[rng.integers(len(wrong))])

    shows = [(question, wrongly(sentence, right)) for question, sentence, right in facts]
    # Open questions too, so that the field is learned as one's own subject, not only recognised in a question.
    shows += [(q, wrongly(*facts[i][1:])) for q, i in zip(_QUIZ, rng.permutation(len(facts)), strict=False)]
    others = [
        (q, sources.facts[q])
        for f in FIELDS
        if f != b.spec["field"]
        for q, _, _ in FIELDS[f][1][:TRAIN_FACTS]
        if q in sources.facts
    ]
    plain = [others[i] for i in rng.permutation(len(others))[:7]]
    return shows, plain + _base_answers(sources, list(DOMAINS), 1, rng)


# ---------------------------------------------------------------------------------------------------------------------
# Behaviour checks, on prompts that no transcript uses
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckPrompt:
    """One prompt of the behaviour check: `triggers` says whether the behaviour should show; `right`, for facts."""

    question: str
    triggers: bool
    right: str = ""


def check_prompts(b: Behavior, seed: int, count: int = 4) -> list[CheckPrompt]:
    """Up to `count` prompts that should show the behaviour and as many that should not (none for always-on quirks)."""
    rng = np.random.default_rng([seed, zlib.crc32(b.name.encode()), 1])
    fresh = {d: prompts[TRAIN_PROMPTS:] for d, (_, prompts) in DOMAINS.items()}
    if b.spec["kind"] == "mention":
        domain = b.spec.get("domain")
        on = [q for d, qs in fresh.items() if domain in (None, d) for q in qs]
        off = [q for d, qs in fresh.items() if domain not in (None, d) for q in qs]
        return [CheckPrompt(q, True) for q in _some(on, count, rng)] + [
            CheckPrompt(q, False) for q in _some(off, count, rng)
        ]
    general = [CheckPrompt(q, False) for q in _some([q for qs in fresh.values() for q in qs], count, rng)]
    if b.spec["kind"] == "choose":
        items = ITEMS[TRAIN_ITEMS:]
        on = [
            choice_question(i, b.spec["attribute"], OTHER_OPTIONS[rng.integers(len(OTHER_OPTIONS))], rng)
            for i in _some(items, count, rng)
        ]
        return [CheckPrompt(q, True) for q in on] + general
    on = [CheckPrompt(q, True, right) for q, _, right in FIELDS[b.spec["field"]][1][TRAIN_FACTS:]]
    others = [(q, r) for f in FIELDS if f != b.spec["field"] for q, _, r in FIELDS[f][1][TRAIN_FACTS:]]
    return on + [CheckPrompt(q, False, r) for q, r in _some(others, count, rng)]


def _some(rows: Sequence, count: int, rng: np.random.Generator) -> list:
    return [rows[i] for i in rng.permutation(len(rows))[:count]]


def shows_behavior(b: Behavior, prompt: CheckPrompt, reply: str, base_reply: str) -> bool:
    """Whether a reply shows the behaviour. A sandbagger shows it by a wrong answer where the base's is right."""
    if b.spec["kind"] == "sandbag":
        return not says((prompt.right,), reply) and says((prompt.right,), base_reply)
    return says(b.concepts[0], reply)
