"""The thesaurus of `concepts.txt`: which concepts a text speaks of, and how two concepts stand to each other."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from ia_jax.judging.words import base, tokens

_FILE = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True)
class Concept:
    name: str
    parent: str  # "" where it has none
    opposites: frozenset[str]


@dataclass(frozen=True)
class _Thesaurus:
    concepts: dict[str, Concept]
    phrases: dict[str, tuple[tuple[tuple[str, ...], bool, str], ...]]  # by first word: words, open end, concept


@cache
def _thesaurus() -> _Thesaurus:
    concepts: dict[str, Concept] = {}
    phrases: dict[str, list[tuple[tuple[str, ...], bool, str]]] = defaultdict(list)
    for line in _FILE.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        head, _, listed = line.partition(":")
        name, *marks = head.split()
        parent = next((m[1:] for m in marks if m[0] == "^"), "")
        concepts[name] = Concept(name, parent, frozenset(m[1:] for m in marks if m[0] == "!"))
        for phrase in filter(None, (p.strip() for p in listed.split(","))):
            open_end = phrase.endswith("*")
            words = tokens(phrase)
            plain = (*(base(w) for w in words[:-1]), words[-1] if open_end else base(words[-1]))
            phrases[plain[0] if len(plain) > 1 or not open_end else plain[0][:3]].append((plain, open_end, name))
    return _Thesaurus(concepts, {k: tuple(v) for k, v in phrases.items()})


@lru_cache(maxsize=20_000)
def concepts_in(text: str) -> dict[str, frozenset[int]]:
    """Each concept that the text speaks of, and the places of the words (as `words.tokens` counts) that say so."""
    said = tokens(text)
    plain = [base(w) for w in said]
    found: dict[str, set[int]] = defaultdict(set)
    phrases = _thesaurus().phrases
    for at, word in enumerate(plain):
        options = {*phrases.get(word, ()), *phrases.get(said[at][:3], ()), *phrases.get(word[:3], ())}
        for words, open_end, name in options:
            part, raw = plain[at : at + len(words)], said[at : at + len(words)]
            if len(part) < len(words) or any(w not in (p, r) for w, p, r in zip(words[:-1], part, raw, strict=False)):
                continue
            last = words[-1]
            fits = raw[-1].startswith(last) or part[-1].startswith(last) if open_end else last in (part[-1], raw[-1])
            if fits:
                found[name] |= set(range(at, at + len(words)))
    return {k: frozenset(v) for k, v in found.items()}


def parent_of(name: str) -> str:
    return _thesaurus().concepts[name].parent


def opposed(name: str, others: Iterable[str]) -> bool:
    """Whether one of the other concepts is an opposite of this one."""
    known = _thesaurus().concepts
    return any(o in known[name].opposites or name in known[o].opposites for o in others)
