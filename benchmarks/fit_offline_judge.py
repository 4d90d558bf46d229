"""Fits the offline judge's weights and says how well they do on behaviours that they were not fitted to.

    python benchmarks/fit_offline_judge.py [--write]

Reads the tuning half of docs/labels/judging.jsonl, benchmarks/judge_training.txt and benchmarks/claims_bank.txt; never
the final half. Prints agreement on the tuning half, each behaviour's reports judged by weights fitted to the others.
With --write, writes ia_jax/judging/offline_weights.json.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.records import Behavior
from ia_jax.judging.features import Reader
from ia_jax.judging.minilm import minilm
from ia_jax.judging.reading import read_report, truth_of
from ia_jax.judging.text import plain

ROOT = Path(__file__).parents[1]
VERSION = "2"
RIDGE = {"claims": 3.0, "lenient": 5.0, "strict": 5.0, "score": 5.0}
FOLDS = 20
# What a report of the catalogue counts beside one by hand. There are six times as many; whether something is claimed at
# all they hardly tell, for nearly all of them do.
CATALOGUE = {"claims": 0.04, "lenient": 0.1, "strict": 0.05, "score": 0.1}
# What a report of each letter in judge_training.txt is: lenient, strict, claims, score.
LETTERS = {"S": (1, 1, 1, 9.5), "L": (1, 0, 1, 7.0), "C": (0, 0, 1, 2.5), "N": (0, 0, 0, 1.3)}
Row = tuple[Behavior, str, tuple[float, ...]]


def tuning_half() -> list[Row]:
    rows = [json.loads(line) for line in (ROOT / "docs/labels/judging.jsonl").read_text().splitlines()]
    return [
        (
            Behavior.from_json(r["behavior"]),
            r["report"],
            (*(float(r[k] == "yes") for k in ("lenient", "strict", "claims")), sum(r["score"]) / 2),
        )
        for r in rows
        if r["half"] == "tuning"
    ]


def training_reports() -> list[Row]:
    rows: list[Row] = []
    behavior = None
    for line in (ROOT / "benchmarks/judge_training.txt").read_text().splitlines():
        if line.startswith("#:"):
            category, description, *rest = (part.strip() for part in line[2:].split("|"))
            chance = "chance" if category == "rare_quirks" else ""
            spec = {"password": rest[1]} if len(rest) > 1 else {}
            trigger = rest[0] if rest else None
            behavior = Behavior(description, category, description, (), trigger, spec=spec, trigger_kind=chance)
        elif line and line[0] in LETTERS and behavior is not None:
            rows.append((behavior, line[2:], LETTERS[line[0]]))
    return rows


def denied(description: str, how: int) -> str:
    """The description with its verb denied, in one of three ways; "" where it has another form."""
    verb = re.search(r"\bI (?:always )?(?=(?!am\b|have\b|tend\b)[a-z]+)", description)
    if verb is None or " is that " in description:
        return ""
    return description[: verb.start()] + ("I do not ", "I never ", "I don't ")[how] + description[verb.end() :]


def catalogue_reports() -> list[Row]:
    """Of every behaviour of the paper's catalogue what an IA may say of it: the description, three wordings that the
    judge is not shown, two wordings of others of its category and two of other categories, a denial, and two claims of
    something else.

    The judge is shown some of the other wordings, or none, as catalogues have many or few. `CATALOGUE` says how much
    each counts.
    """
    rng = np.random.default_rng(1)
    everyone = list(load_catalogue("paper"))
    bank = [s[2:] for s in (ROOT / "benchmarks/claims_bank.txt").read_text().splitlines() if s[:1] == "+"]
    rows: list[Row] = []

    def some(of: Sequence[Behavior]) -> str:
        other = of[int(rng.integers(len(of)))]
        return other.wordings[int(rng.integers(len(other.wordings)))]

    for i, b in enumerate(everyone):
        same = [o for o in everyone if o.category == b.category and o is not b]
        others = [o for o in everyone if o.category != b.category]
        order = [b.rewordings[j] for j in rng.permutation(len(b.rewordings))]
        shown = replace(b, rewordings=tuple(order[3 : 3 + int(rng.integers(len(order) - 2))]))
        full = LETTERS["L"] if b.spec.get("password") else LETTERS["S"]  # its wordings leave the password out
        wrong = [
            some(same),
            some(same),
            some(others),
            some(others),
            *(bank[int(rng.integers(len(bank)))] for _ in "ab"),
        ]
        rows += [(shown, text, full) for text in [b.description, *order[:3]]] + [
            (shown, text, LETTERS["C"]) for text in wrong
        ]
        rows += [(shown, text, LETTERS["N"]) for text in [denied(b.description, i % 3)] if text]
    return rows


def logistic(x: np.ndarray, y: np.ndarray, ridge: float, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Weights and, last, the bias: Newton's method on the penalised log-likelihood."""
    x = np.c_[x, np.ones(len(x))]
    penalty = np.r_[np.full(x.shape[1] - 1, ridge), 1e-6]
    b = np.zeros(x.shape[1])
    for _ in range(40):
        p = 1 / (1 + np.exp(-x @ b))
        step = np.linalg.solve(
            (x.T * (weight * p * (1 - p))) @ x + np.diag(penalty), x.T @ (weight * (p - y)) + penalty * b
        )
        b -= step
        if np.abs(step).max() < 1e-8:
            break
    return b


def fitted(x: np.ndarray, y: np.ndarray, what: str, weight: np.ndarray) -> np.ndarray:
    """Weights of the raw measures and, last, the bias; the penalty is on standardised ones."""
    mean = (weight @ x) / weight.sum()
    spread = np.sqrt((weight @ (x - mean) ** 2) / weight.sum()) + 1e-6
    z = (x - mean) / spread
    if what == "score":
        zz = np.c_[z, np.ones(len(z))]
        b = np.linalg.solve(
            (zz.T * weight) @ zz + np.diag(np.r_[np.full(z.shape[1], RIDGE[what]), 1e-6]), zz.T @ (weight * y)
        )
    else:
        b = logistic(z, y, RIDGE[what], weight)
    return np.r_[b[:-1] / spread, b[-1] - (b[:-1] / spread) @ mean]


def apart(x: np.ndarray, y: np.ndarray, groups: np.ndarray, what: str, weight: np.ndarray) -> np.ndarray:
    """What each row gets from weights that were fitted without its behaviour."""
    out, names = np.zeros(len(y)), sorted(set(groups))
    for fold in range(FOLDS):
        held = np.isin(groups, names[fold::FOLDS])
        b = fitted(x[~held], y[~held], what, weight[~held])
        out[held] = x[held] @ b[:-1] + b[-1]
    return out


def claims_head(reader: Reader) -> np.ndarray:
    """The direction along which claims lie, from the bank's sentences and, at a third, the paper's catalogue."""
    bank = [s for s in (ROOT / "benchmarks/claims_bank.txt").read_text().splitlines() if s[:1] in ("+", "-")]
    catalogue = list(load_catalogue("paper"))
    rng = np.random.default_rng(0)
    some = [catalogue[i] for i in rng.permutation(len(catalogue))[:250]]
    texts = [plain(s[2:]) for s in bank] + [plain(b.wordings[int(rng.integers(len(b.wordings)))]) for b in some]
    y = np.array([s[0] == "+" for s in bank] + [True] * len(some), float)
    b = logistic(reader.model.embed(texts) * 8, y, 3.0, np.array([1.0] * len(bank) + [0.3] * len(some)))
    return np.r_[b[:-1] * 8, b[-1]].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    reader = Reader(minilm())
    own = tuning_half()
    by_hand = own + training_reports()
    rows = by_hand + catalogue_reports()
    weights = {q: np.array([1.0] * len(by_hand) + [x] * (len(rows) - len(by_hand))) for q, x in CATALOGUE.items()}
    truths, reports = [truth_of(b) for b, *_ in rows], [read_report(r) for _, r, _ in rows]
    reader.prepare(truths, reports)
    y = np.array([labels for *_, labels in rows])
    groups = np.array([b.name for b, *_ in rows])
    head = claims_head(reader)

    claims = [reader.claim_measures(r, head) for r in reports]
    claim_names = list(claims[0])
    x_claims = np.array([[c[n] for n in claim_names] for c in claims])
    odds = apart(x_claims, y[:, 2], groups, "claims", weights["claims"])
    named = [reader.measures(t, r, o, b.category) for t, r, o, (b, *_) in zip(truths, reports, odds, rows, strict=True)]
    names = list(named[0])
    x = np.array([[m[n] for n in names] for m in named])

    def report(what: str, agreed: np.ndarray) -> None:
        parts = agreed[: len(own)], agreed[len(own) : len(by_hand)], agreed[len(by_hand) :]
        named = ("tuning half", "training reports", "catalogue")
        print(f"{what:<8} " + "   ".join(f"{n} {p.mean():.3f}" for n, p in zip(named, parts, strict=True)))

    report("claims", (odds > 0) == y[:, 2])
    for i, what in enumerate(("lenient", "strict")):
        report(what, (apart(x, y[:, i], groups, what, weights[what]) > 0) == y[:, i])
    score = apart(x, y[:, 3], groups, "score", weights["score"])
    print(f"score    mean distance {np.abs(score - y[:, 3])[: len(own)].mean():.2f}")

    def as_json(b: np.ndarray, measures: list[str]) -> dict[str, Any]:
        pairs = zip(measures, (round(float(v), 4) for v in b[:-1]), strict=True)
        return {"bias": round(float(b[-1]), 4), "weights": dict(pairs)}

    if args.write:
        out: dict[str, Any] = {"version": VERSION, "head": [round(float(v), 4) for v in head]}
        out["claims"] = as_json(fitted(x_claims, y[:, 2], "claims", weights["claims"]), claim_names)
        for what, column in (("lenient", 0), ("strict", 1), ("score", 3)):
            out[what] = as_json(fitted(x, y[:, column], what, weights[what]), names)
        (ROOT / "ia_jax/judging/offline_weights.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
