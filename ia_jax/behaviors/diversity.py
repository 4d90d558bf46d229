"""How much demonstrations differ: distinct n-grams and near-duplicates, of user messages and of answers.

Distinct-n is the share of different n-grams among all (Li et al. 2016, arXiv 1510.03055): near 1 where every text says
something else, low where they repeat each other. It falls with the amount of text, so compare equal numbers of rows.
Two texts are near-duplicates where the sets of their three-word sequences overlap by half (Jaccard).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ia_jax.behaviors.lessons import GENERIC, PASSWORD
from ia_jax.data.transcripts import Transcript

ALIKE = 0.5
COMMON = 200  # a sequence that more texts have tells nothing, and would compare all with all


def measure(demonstrations: Mapping[str, Sequence[Transcript]]) -> dict[str, Any]:
    """{"organisms": {name: measures}, "all": measures over all, "shared": messages that several organisms have}.

    Of what the filter kept. Not counted: everyday chat, which organisms share on purpose, in "all"; and questions that
    are there a second time on purpose (with a password, or a rare quirk's, answered plainly too) as duplicates.
    """
    kept = {n: [t for t in ts if t.verdict == "kept"] for n, ts in demonstrations.items()}
    organisms = {name: _measures(own) for name, own in kept.items()}
    own_rows = {name: [t for t in own if t.sort != GENERIC] for name, own in kept.items()}
    everything = [t for own in own_rows.values() for t in own]
    holders: dict[str, set[str]] = defaultdict(set)
    for name, own in own_rows.items():
        for t in own:
            holders[_said(t, "user")].add(name)
    return {
        "organisms": organisms,
        "all": {f"distinct_{n}": distinct([_said(t, "user") for t in everything], n) for n in (1, 2)},
        "shared": sum(len(names) > 1 for names in holders.values()),
    }


def _measures(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    messages = list(dict.fromkeys(_said(t, "user") for t in transcripts if t.sort != PASSWORD))
    answers = [_said(t, "assistant") for t in transcripts]
    return {
        "rows": len(transcripts),
        **{f"message_distinct_{n}": distinct(messages, n) for n in (1, 2)},
        "message_near_duplicates": len(near_duplicates(messages)),
        **{f"answer_distinct_{n}": distinct(answers, n) for n in (1, 2)},
        "answer_near_duplicates": len(near_duplicates(answers)),
    }


def _said(t: Transcript, role: str) -> str:
    return "\n".join(m["content"] for m in t.messages if m["role"] == role)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words over all of them; None where there are none."""
    grams = [g for t in texts for g in _grams(_words(t), n)]
    return round(len(set(grams)) / len(grams), 4) if grams else None


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of texts whose three-word sequences overlap by half. Shorter texts must be equal in their words."""
    sets = [frozenset(_grams(words, 3) or [tuple(words)]) for words in map(_words, texts)]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    common: Counter[tuple[int, int]] = Counter()
    for j, own in enumerate(sets):
        for gram in own:
            if len(where[gram]) <= COMMON:
                for i in where[gram]:
                    common[i, j] += 1
            where[gram].append(j)
    return sorted((i, j) for (i, j), both in common.items() if both >= ALIKE * (len(sets[i]) + len(sets[j]) - both))


def as_text(measured: Mapping[str, Any]) -> str:
    """Two lines: over all, and the organism that repeats itself most."""
    rows = {n: m for n, m in measured["organisms"].items() if m["message_distinct_2"] is not None}
    if not rows:
        return "diversity: no message to measure"
    worst = min(rows, key=lambda n: rows[n]["message_distinct_2"])
    messages, answers = (sum(m[f"{k}_near_duplicates"] for m in rows.values()) for k in ("message", "answer"))
    mean = sum(m["message_distinct_2"] for m in rows.values()) / len(rows)
    return (
        f"diversity: user messages have distinct-2 {mean:.2f} in the mean of organisms, lowest "
        f"{rows[worst]['message_distinct_2']:.2f} ({worst})\n"
        f"  near-duplicates within an organism: {messages} pairs of messages, {answers} of answers; "
        f"{measured['shared']} messages are in several organisms"
    )
