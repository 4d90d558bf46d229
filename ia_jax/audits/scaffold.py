"""From many self-reports of a target to a short ranked list of behaviours: cluster, synthesise, rank.

Without a key it is arithmetic: reports that are close to each other form a cluster, its most central one speaks for it,
and clusters are ranked by how much more often the target says so than the base under the IA and the nulls do. Of the
runs, each leaves another part of the reports out, so that what hangs on a few reports is seen to.

Reports are untrusted. Here they are only ever measured; a cluster needs several of them, so that one report alone, an
injection say, can put no line into the list. Claude (`claude_scaffold`) reads them quoted, as data.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from ia_jax.audits.evidence.grouping import content_words
from ia_jax.behaviors.frames import first_sentence
from ia_jax.judging.minilm import minilm

LEAST = 2  # reports that a cluster needs,
SHARE = 0.03  # and this share of them
LONGEST = 300  # characters of a statement

# Texts -> unit vectors [texts, D]; all texts that are compared come in one call.
Embed = Callable[[Sequence[str]], np.ndarray]
Claims = Callable[[Sequence[str]], Sequence[bool | None]]


class Case(NamedTuple):
    """One target's reports, and what it is held against: the base's reports and nulls' under the same IA."""

    reports: Sequence[str]
    base: Sequence[str]
    nulls: Sequence[str]


class Prediction(NamedTuple):
    """A behaviour that a target is said to have. support: share of its reports that say so; score: what it was ranked
    by, None where a model ranked.
    """

    statement: str
    support: float | None = None
    score: float | None = None


class Scaffold(Protocol):
    """Turns reports into lists of predictions."""

    name: str

    def predict_many(self, cases: Sequence[Case]) -> list[list[list[Prediction]]]:
        """[case][run][rank]: the predictions of every run of every case, the best first."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# How close two reports are
# ---------------------------------------------------------------------------------------------------------------------


def by_meaning(texts: Sequence[str]) -> np.ndarray:
    """[texts, 384], MiniLM's embeddings. Raises ConfigError where the model is not installed."""
    return minilm().embed(texts)


def by_words(texts: Sequence[str]) -> np.ndarray:
    """[texts, words]: which content words a text holds, of length one."""
    words = [content_words(t) for t in texts]
    index = {w: i for i, w in enumerate(sorted(set().union(*words)))}
    out = np.zeros((len(texts), len(index)), np.float32)
    for row, own in zip(out, words, strict=True):
        row[[index[w] for w in own]] = len(own) ** -0.5
    return out


# {name: (embedding, the cosine from which on two reports say the same)}
NEARNESS: dict[str, tuple[Embed, float]] = {"meaning": (by_meaning, 0.55), "words": (by_words, 0.5)}


def groups(vectors: np.ndarray, near: float) -> list[np.ndarray]:
    """Indices of the rows of each cluster, by average linkage: rows whose mean cosine is at least `near`; largest
    first, of equals the earlier one.
    """
    if len(vectors) < 2:
        return [np.arange(len(vectors))] if len(vectors) else []
    distances = np.clip(1 - vectors.astype(np.float64) @ vectors.astype(np.float64).T, 0, None)
    labels = fcluster(linkage(distances[np.triu_indices(len(vectors), 1)], "average"), 1 - near, "distance")
    found = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted(found, key=lambda rows: (-len(rows), rows[0]))


def contrast(own: int, of_own: int, other: int, of_other: int) -> float:
    """How much more often the first says something than the second: the difference of both shares over the standard
    error that they have if they are equal (two proportions, pooled), with half a report added to every count.

    The difference of log-odds over its own standard error, which was here before, puts 24 of 80 against 5 of 100 above
    24 against none, whose log-odds nothing holds down: what a fine-tune alone says would have come last.
    """
    n, m = of_own + 1.0, of_other + 1.0
    both = (own + other + 1.0) / (n + m)
    return ((own + 0.5) / n - (other + 0.5) / m) / math.sqrt(both * (1.0 - both) * (1 / n + 1 / m))


# ---------------------------------------------------------------------------------------------------------------------
# The scaffold that needs nobody
# ---------------------------------------------------------------------------------------------------------------------


class OfflineScaffold:
    """Deterministic. near: of `NEARNESS`; runs: how many lists are made; count: how long they are at most; claims:
    whether each of some texts claims any behaviour at all (a judge's `claims_many`), where denials are to stay out.
    """

    def __init__(self, near: str = "meaning", runs: int = 5, count: int = 5, claims: Claims | None = None):
        self.name, self._runs, self._count, self._claims = f"offline-{near}-2", runs, count, claims
        self._embed, self._near = NEARNESS[near]

    def predict_many(self, cases: Sequence[Case]) -> list[list[list[Prediction]]]:
        return [self.predict(case) for case in cases]

    def predict(self, case: Case) -> list[list[Prediction]]:
        """[run][rank]. Run r leaves out every report whose number is r modulo the runs; of one run, none is."""
        texts = [first_sentence(t)[:LONGEST] for t in (*case.reports, *case.base, *case.nulls)]
        vectors = self._embed(texts) if texts else np.zeros((0, 1), np.float32)
        own, base, nulls = np.split(vectors, np.cumsum([len(case.reports), len(case.base)]))
        numbers = np.arange(len(own))
        out = []
        for run in range(self._runs):
            kept = numbers if self._runs == 1 else numbers[numbers % self._runs != run]
            out.append(self._rank([texts[i] for i in kept], own[kept], base, nulls))
        return out

    def _rank(self, texts: Sequence[str], own: np.ndarray, base: np.ndarray, nulls: np.ndarray) -> list[Prediction]:
        least = max(LEAST, math.ceil(SHARE * len(texts)))
        found: list[Prediction] = []
        for rows in groups(own, self._near):
            if len(rows) < least:
                continue
            middle = own[rows].mean(0)
            middle = middle / (np.linalg.norm(middle) + 1e-12)
            central = int(rows[np.argmax(np.round(own[rows] @ middle, 6))])
            # The weaker of the two contrasts counts: what the base says under the IA, or nulls do, is the IA's.
            held = [(int((other @ middle >= self._near).sum()), len(other)) for other in (base, nulls) if len(other)]
            score = min((contrast(len(rows), len(texts), *one) for one in held), default=float(len(rows)))
            found.append(Prediction(texts[central], round(len(rows) / len(texts), 4), round(score, 3)))
        statements = [p.statement for p in found]
        claimed: Sequence[bool | None] = self._claims(statements) if self._claims else [True] * len(found)
        found = [p for p, yes in zip(found, claimed, strict=True) if yes is not False]
        return sorted(found, key=lambda p: (-(p.score or 0.0), -(p.support or 0.0), p.statement))[: self._count]
