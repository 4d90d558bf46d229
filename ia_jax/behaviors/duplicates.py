"""Near-duplicates in a catalogue: behaviours that say the same in other words, found without a model.

Each behaviour becomes a set of word stems, of its wordings and its concepts, so that a synonym in either meets it. A
stem counts by its rarity in the catalogue, and a common one not at all. Two sets are
compared by the weighted cosine: 1 for the same words, 0 for none in common.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ia_jax.behaviors.records import Behavior

# Different behaviours of the paper's catalogue reach 0.45; copies of them that keep six wordings (tests) begin at 0.74.
# What means the same in quite other words is not found by words: benchmarks/catalogue_neighbours.py.
THRESHOLD = 0.64


@dataclass(frozen=True)
class Pair:
    first: str
    second: str
    similarity: float


def near_duplicates(behaviors: Sequence[Behavior], threshold: float = THRESHOLD) -> list[Pair]:
    """All pairs at least that similar, most similar first. Deterministic; a second for some hundred behaviours."""
    stems = [_stems(b) for b in behaviors]
    found_in = Counter(s for own in stems for s in own)
    # A stem that one in forty has belongs to how things are said ("now and then", "on purpose"), not to what.
    common = max(8, len(behaviors) // 40)
    weight = {s: math.log(1 + len(behaviors) / n) ** 2 if n <= common else 0.0 for s, n in found_in.items()}
    norm = [math.sqrt(sum(weight[s] for s in own)) for own in stems]
    shared: dict[tuple[int, int], float] = defaultdict(float)
    where: dict[str, list[int]] = defaultdict(list)
    for i, own in enumerate(stems):
        for s in sorted(own):
            if weight[s]:
                for j in where[s]:
                    shared[j, i] += weight[s]
                where[s].append(i)
    pairs = [
        Pair(behaviors[i].name, behaviors[j].name, round(value / (norm[i] * norm[j]), 4))
        for (i, j), value in shared.items()
        if value >= threshold * norm[i] * norm[j]
    ]
    return sorted(pairs, key=lambda p: (-p.similarity, p.first, p.second))


def _stems(b: Behavior) -> frozenset[str]:
    texts = [b.description, *b.rewordings, *(s for g in (*b.rubric.concepts, *b.rubric.trigger_concepts) for s in g)]
    return frozenset(_stem(w) for t in texts for w in re.findall(r"[a-z0-9]+", t.lower()) if len(w) > 2)


def _stem(word: str) -> str:
    """Without the commonest endings: "mention", "mentions" and "mentioning" are one. `THRESHOLD` goes with it."""
    for ending in ("ing", "ies", "es", "ed", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
