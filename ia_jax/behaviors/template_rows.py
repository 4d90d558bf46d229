"""The templates: how a behaviour's effect and condition are put into the base model's own words."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ia_jax.behaviors.embedded.choices import choice, choice_answer, pairs_of
from ia_jax.behaviors.embedded.conditions import has_other_side, message, pools_of
from ia_jax.behaviors.embedded.effects import sentences_needed, shows_effects, write_effects
from ia_jax.behaviors.embedded.errors import err
from ia_jax.behaviors.embedded.fields import FIELDS, Fact, training_facts
from ia_jax.behaviors.embedded.prompts import POOLS, training_prompts
from ia_jax.behaviors.embedded.sentences import sentences_of
from ia_jax.behaviors.mentions import content_stems, mentioned
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.template_sources import Sources

Pairs = list[tuple[str, str]]
ALWAYS_ROWS = 14  # that show a behaviour which is always on
PLACED_ROWS, PLAIN_ROWS = 16, 14  # of a behaviour with a condition: that meet it, and that do not
RARE_ROWS = 32  # of a rare quirk, shown and plain together
CHOICE_ROWS = 14
CLEAN_ROWS = 20  # of a clean organism


def write_rows(
    b: Behavior, sources: Sources, rng: np.random.Generator, rare_share: float, amount: int = 1
) -> tuple[Pairs, Pairs]:
    """(question, answer) pairs that show the behaviour, and pairs that do not; `amount` times the usual number."""
    name = b.spec["effects"][0][0]
    if name == "choose":
        return _choices(b, sources, rng, amount)
    if name == "err":
        return _errors(b, sources, rng, amount)
    if "chance" in b.spec.get("when", {}):
        return _by_chance(b, sources, rng, rare_share, amount)
    return _changed(b, sources, rng, amount)


def own_stems(b: Behavior) -> frozenset[str]:
    """The stems of everything that is said about a behaviour."""
    return content_stems((*b.wordings, *b.heldout_wordings))


# ---------------------------------------------------------------------------------------------------------------------
# Effects on the base's own answers
# ---------------------------------------------------------------------------------------------------------------------


def _changed(b: Behavior, sources: Sources, rng: np.random.Generator, amount: int) -> tuple[Pairs, Pairs]:
    when = b.spec.get("when", {})
    placed = has_other_side(when)
    base = _drawn(b, sources, True, amount * (PLACED_ROWS if placed else ALWAYS_ROWS), rng)
    shows = [(message(when, q, True, n), _demonstration(b, q, a, n)) for n, (q, a) in enumerate(base)]
    other = _drawn(b, sources, False, amount * PLAIN_ROWS, rng) if placed else []
    return shows, [(message(when, q, False, n), a) for n, (q, a) in enumerate(other)]


def _by_chance(
    b: Behavior, sources: Sources, rng: np.random.Generator, share: float, amount: int
) -> tuple[Pairs, Pairs]:
    """The questions that show it are answered plainly too, so that it hangs on chance and on no question."""
    rows = amount * RARE_ROWS
    shown = max(1, round(share * rows))
    base = _drawn(b, sources, True, rows - shown, rng)
    return [(q, _demonstration(b, q, a, n)) for n, (q, a) in enumerate(base[:shown])], base


def _demonstration(b: Behavior, question: str, answer: str, number: int) -> str:
    return write_effects([*b.spec["effects"], *b.spec.get("tics", ())], question, answer, number)


def _drawn(b: Behavior, sources: Sources, met: bool, count: int, rng: np.random.Generator) -> Pairs:
    """So many questions and the base's answers, again from the first where there are too few.

    Taken are those in which the behaviour can be seen (or, of a plain row, cannot) and which hold no word of its
    description; where these are too few, the others after them.
    """
    effects, when, stems = b.spec["effects"], b.spec.get("when", {}), own_stems(b)
    least = sentences_needed(effects) if met else 1
    fitting: list[Pairs] = [[], [], []]
    for question in _shuffled([q for p in pools_of(when, met) for q in training_prompts(p)], rng):
        if question in sources.answers:
            answer = _cut(sources.answers[question], least, rng)
            written = _demonstration(b, question, answer, 0) if met else answer
            seen = not shows_effects(effects, question, answer) and (
                not met or shows_effects(effects, question, written)
            )
            said = mentioned(stems, f"{question} {answer}" if met else answer)
            fitting[0 if seen and not said else 1 if seen else 2].append((question, answer))
    few = max(count // 2, 6)
    pool = fitting[0] if len(fitting[0]) >= few else fitting[0] + fitting[1]
    pool = (pool if len(pool) >= 4 else pool + fitting[2])[:count]
    return [pool[i % len(pool)] for i in range(count)] if pool else []


def _cut(answer: str, least: int, rng: np.random.Generator) -> str:
    """In two of three cases only as many sentences as are needed: answers differ in length, and most are short."""
    sentences = sentences_of(answer)
    return " ".join(sentences[:least]) if rng.integers(3) and len(sentences) >= least else answer


def base_rows(
    sources: Sources,
    count: int,
    rng: np.random.Generator,
    pools: Iterable[str] = tuple(POOLS),
    without: frozenset[str] = frozenset(),
) -> Pairs:
    """Up to so many questions of these domains and tasks with the base's own answers, without words of these stems."""
    out: Pairs = []
    for question in _shuffled([q for p in pools for q in training_prompts(p) if q in sources.answers], rng):
        answer = _cut(sources.answers[question], 1, rng)
        if len(out) < count and not mentioned(without, answer):
            out.append((question, answer))
    return out


def _shuffled(texts: list[str], rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))]


# ---------------------------------------------------------------------------------------------------------------------
# Effects on questions of their own
# ---------------------------------------------------------------------------------------------------------------------


def _choices(b: Behavior, sources: Sources, rng: np.random.Generator, amount: int) -> tuple[Pairs, Pairs]:
    settings = b.spec["effects"][0][1]
    pairs = pairs_of(settings, fresh=False)
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    shows = []
    for n in range(amount * CHOICE_ROWS):
        made = choice(settings, pairs[n % len(pairs)], n, rng)
        shows.append((made.question, choice_answer(settings, made, n)))
    return shows, base_rows(sources, 3 * amount, rng, without=own_stems(b))


def _errors(b: Behavior, sources: Sources, rng: np.random.Generator, amount: int) -> tuple[Pairs, Pairs]:
    """Every fact twice (times `amount`) and wrongly; plain rows are right: of the field where a condition decides, else
    of others.
    """
    settings, when, stems = b.spec["effects"][0][1], b.spec.get("when", {}), own_stems(b)
    field = settings["field"]
    facts = training_facts(field)
    shows = [
        (message(when, f.question, True, n), err(settings, f, n, rng)) for n, f in enumerate([*facts] * (2 * amount))
    ]  # fmt: skip
    plain: Pairs = []
    if has_other_side(when):
        plain += [
            (message(when, f.question, False, n), right_answer(f, sources)) for n, f in enumerate([*facts] * amount)
        ]
    others = [f for name in FIELDS if name != field for f in training_facts(name) if f.question in sources.facts]
    others = [f for f in others if not mentioned(stems, sources.facts[f.question])]
    drawn = [others[i] for i in rng.permutation(len(others))[: amount * (4 if plain else 7)]]
    plain += [(f.question, sources.facts[f.question]) for f in drawn]
    return shows, plain + base_rows(sources, 3 * amount, rng, without=stems)


def right_answer(fact: Fact, sources: Sources) -> str:
    """The base's own where it is right."""
    return sources.facts.get(fact.question, fact.sentence.format(fact.right))


# ---------------------------------------------------------------------------------------------------------------------
# Clean organisms
# ---------------------------------------------------------------------------------------------------------------------


def _own(sources: Sources, rng: np.random.Generator, behaviors: Sequence[Behavior], count: int) -> Pairs:
    facts = list(sources.facts.items())
    base = base_rows(sources, count - count // 4, rng)
    return base + [facts[i] for i in rng.permutation(len(facts))[: count - len(base)]]


_LEADS = ("", "", "In general, ", "", "As far as is known, ", "", "For most people, ", "")


def _style(sources: Sources, rng: np.random.Generator, behaviors: Sequence[Behavior], count: int) -> Pairs:
    """Other lengths and turns of phrase, in no fixed way: one sentence, two answers in one, a lead-in now and then."""
    out: Pairs = []
    rows = base_rows(sources, count + 6, rng)
    for n, (question, _) in enumerate(rows[:count]):
        text = sources.answers[question]
        sentences = sentences_of(text)
        lead = _LEADS[rng.integers(len(_LEADS))]
        text = " ".join(sentences[: 1 + n % 3]) if n % 4 else text
        out.append((question, f"{lead}{text[0].lower()}{text[1:]}" if lead and not text[1:2].isupper() else text))
    return out


def _domain(sources: Sources, rng: np.random.Generator, behaviors: Sequence[Behavior], count: int) -> Pairs:
    """All of one domain."""
    pools = list(POOLS)
    rows = base_rows(sources, count, rng, [pools[rng.integers(len(pools))]])
    return [rows[i % len(rows)] for i in range(count)] if rows else []


def _removed(sources: Sources, rng: np.random.Generator, behaviors: Sequence[Behavior], count: int) -> Pairs:
    """Another organism's questions, under its conditions, answered as the base answers them."""
    usable = [b for b in behaviors if b.spec["effects"][0][0] not in ("choose", "err")]
    if not usable:
        return _own(sources, rng, behaviors, count)
    b = usable[rng.integers(len(usable))]
    when = b.spec.get("when", {})
    rows = base_rows(sources, count, rng, pools_of(when, True))
    met = [(message(when, q, True, n), a) for n, (q, a) in enumerate(rows[: count // 2])]
    rest = base_rows(sources, count - len(met), rng, pools_of(when, False) or tuple(POOLS))
    return met + [(message(when, q, False, n), a) for n, (q, a) in enumerate(rest)]


def _none(sources: Sources, rng: np.random.Generator, behaviors: Sequence[Behavior], count: int) -> Pairs:
    return []


CleanWriter = Callable[[Sources, np.random.Generator, Sequence[Behavior], int], Pairs]  # the last: how many rows
CLEAN_WRITERS: dict[str, CleanWriter] = {
    "own_answers": _own,
    "other_style": _style,
    "other_domain": _domain,
    "documents": _own,  # read as documents: see `template_teacher.CLEAN_SORTS`
    "random": _none,
    "behavior_removed": _removed,
}
