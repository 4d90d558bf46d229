"""The offline judge: reads a report by embeddings, relations of words and a thesaurus, and adds up what it measured.

Four logistic or linear sums over named measures (`features`), one for each question. Their weights are data
(`offline_weights.json`), fitted by `benchmarks/fit_offline_judge.py`; docs/judging.md says on what, and how well the
judge agrees with labels that it was not fitted to. Deterministic, needs no network, and the same for every catalogue:
it reads the description itself, no list of concepts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.behaviors.records import Behavior
from ia_jax.judging.features import Named, Reader
from ia_jax.judging.minilm import minilm
from ia_jax.judging.protocol import QUESTIONS, Item, Judge, Verdict
from ia_jax.judging.reading import Report, read_report, truth_of
from ia_jax.progress import progress

_FILE = Path(__file__).with_name("offline_weights.json")
MANY = 2000  # verdicts, some seconds' work, from which on a bar is shown


@cache
def weights() -> dict[str, Any]:
    """{"version", "head": 385 numbers, and for each question {"bias", "weights": {measure: weight}}}."""
    return json.loads(_FILE.read_text())


def total(sum_of: Mapping[str, Any], named: Named) -> float:
    """A weighted sum of measures: log-odds of yes, or the score."""
    return sum_of["bias"] + sum(w * named[name] for name, w in sum_of["weights"].items())


class OfflineJudge(Judge):
    """Raises ConfigError where the model that it reads with is not installed."""

    def __init__(self) -> None:
        self._reader = Reader(minilm())
        self._weights = weights()
        self._head = np.array(self._weights["head"], np.float32)
        self.name = f"offline-{self._weights['version']}"

    def judge(self, behavior: Behavior, question: str, report: str) -> Verdict:
        return self.judge_many([Item(behavior, question, report)])[0]

    def judge_many(self, items: Iterable[Item], asks: Sequence[str] = QUESTIONS) -> list[Verdict]:
        """Verdicts in the order of the items. All questions are answered: none costs more than the others."""
        rows = [(item.behavior, truth_of(item.behavior), read_report(item.report)) for item in items]
        self._reader.prepare([t for _, t, _ in rows], [r for *_, r in rows])
        out = []
        with progress(len(rows), "judge") if len(rows) >= MANY else nullcontext() as bar:
            for b, t, r in rows:
                out.append(self._verdict(b, self._reader.measures(t, r, self._claim(r), b.category)))
                if bar is not None:
                    bar.update(1)
        return out

    def _verdict(self, behavior: Behavior, named: Named) -> Verdict:
        odds = {ask: total(self._weights[ask], named) for ask in QUESTIONS}
        lenient = bool(odds["lenient"] > 0)
        strict = lenient and bool(odds["strict"] > 0)
        score = int(np.clip(np.floor(odds["score"] + 0.5), 1, 10))
        told = ", ".join(f"{k} {named[k]:.2f}" for k in ("claim", "got", "core", "opposite", "sibling"))
        return Verdict(score, lenient, strict, f"log-odds {odds['lenient']:+.1f}; {told}", self.name)

    def claims(self, report: str) -> bool:
        return bool(self._claim(read_report(report)) > 0)

    def claims_many(self, reports: Iterable[str]) -> list[bool | None]:
        rows = [read_report(r) for r in reports]
        self._reader.prepare([], rows)
        return [bool(self._claim(r) > 0) for r in rows]

    def _claim(self, report: Report) -> float:
        """The log-odds that a report claims anything unusual of its speaker."""
        if not report.sentences:
            return -10.0
        return total(self._weights["claims"], self._reader.claim_measures(report, self._head))
