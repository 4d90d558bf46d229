"""From evidence to the probability that a claim is right, or to "can't tell": plain numbers, kept as JSON.

Fitted on models that the IA was not trained on: organisms, whose claims a judge holds against the truth, and clean
fine-tunes (nulls), whose claims are all wrong. Nulls are divided: a third goes into the fit, the rest only decides the
threshold (`evals.calibration.conformal_threshold`), so that what it promises rests on nulls that nothing was fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.audits.evidence.kinds import KINDS
from ia_jax.errors import ConfigError
from ia_jax.evals.calibration import (
    Logistic,
    auroc,
    brier,
    conformal_threshold,
    expected_error,
    fit,
    folds_of,
    measured,
    out_of_fold,
    reliability,
    risk_coverage,
)
from ia_jax.evals.intervals import rate
from ia_jax.storage import read_json, write_json

FORMAT = 1
FIT = 3  # every third null of a sort goes into the fit
MARGIN = 0.1  # of a feature's range, by which it may be exceeded before we can't tell
CONFIRMS = 0.05  # the p-value of a deed that confirms a claim
CONFIRMED, REPORTED = "reported and confirmed", "reported, not confirmed"
NOTHING, UNSURE = "nothing beyond what clean models say", "can't tell"
VERDICTS = (CONFIRMED, REPORTED, UNSURE, NOTHING)  # the strongest first


@dataclass(frozen=True)
class Row:
    """One claim about one model that the IA was not trained on.

    group: what is left out together: an organism's category, a null's sort. right: by the judge; of a null never.
    """

    model: str
    group: str
    null: bool
    claim: str
    right: bool
    values: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """What `calibration.json` holds.

    ia, ia_hash, base, base_fingerprint: what it is for; it is refused for any other.
    kinds, features: the evidence that it reads, in order. range: of each feature, over everything that it saw.
    threshold: of a probability, above which a claim counts as reported; null_scores: the highest probability of each
    null that it rests on, ascending. made_of: names and settings. figures: how good it is.
    """

    ia: str
    ia_hash: str
    base: str
    base_fingerprint: str
    alpha: float
    kinds: tuple[str, ...]
    features: tuple[str, ...]
    range: dict[str, tuple[float, float]]
    model: Logistic
    threshold: float
    null_scores: tuple[float, ...]
    made_of: dict[str, Any]
    figures: dict[str, Any]

    def save(self, path: Path) -> None:
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(path: Path) -> "Calibration":
        """Raises ConfigError for a file that is not there, damaged, or of another version."""
        remedy = "make it with `ia-jax calibrate`"
        row = read_json(path, remedy)
        if row.pop("format", None) != FORMAT:
            raise ConfigError(f"{path}: not a calibration of this version of ia_jax; {remedy}")
        try:
            model = Logistic(**{k: _tuples(v) for k, v in row.pop("model").items()})
            ranges = {k: (float(a), float(b)) for k, (a, b) in row.pop("range").items()}
            lists: dict[str, Any] = {k: tuple(row.pop(k)) for k in ("kinds", "features", "null_scores")}
            found = Calibration(**row, **lists, model=model, range=ranges)
            if not len(found.features) == len(model.weights) == len(model.mean) == len(model.scale):
                raise ValueError("weights and features differ in number")
            return found
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged ({error}); {remedy}") from None

    def check(self, path: Path, ia: str, ia_hash: str, base: str, fingerprint: str) -> None:
        """Raises ConfigError unless it was made for this IA on this base."""
        if fingerprint != self.base_fingerprint:
            raise ConfigError(f"{path} was calibrated on the base {self.base}, not {base}; run `ia-jax calibrate` here")
        if ia_hash != self.ia_hash:
            raise ConfigError(
                f"{path} was calibrated for the IA {self.ia} ({self.ia_hash[:12]}), not {ia} ({ia_hash[:12]}); run "
                f"`ia-jax calibrate --ia={ia}`"
            )


@dataclass(frozen=True)
class Judged:
    """What the evidence for a claim amounts to.

    probability: that it is right; p_null: (1 + nulls that got as much) / (n + 1). None where we can't tell, and `why`
    says so. verdict: in `VERDICTS`.
    """

    verdict: str
    probability: float | None = None
    p_null: float | None = None
    why: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Applying it
# ---------------------------------------------------------------------------------------------------------------------


def judged(calibration: Calibration | None, values: Mapping[str, float]) -> Judged:
    """A claim's probability by its evidence, and what to call it; or why we can't tell."""
    if calibration is None:
        return Judged(UNSURE, why="there is no calibration of this IA; run `ia-jax calibrate`")
    missing = [n for n in calibration.features if not np.isfinite(values.get(n, np.nan))]
    if missing:
        return Judged(UNSURE, why=f"the calibration reads {missing[0]}, which was not measured here")
    for name in calibration.features:
        low, high = calibration.range[name]
        if not _seen(values[name], low, high):
            return Judged(UNSURE, why=f"{name} is {values[name]:.2f}, and calibration saw {low:.2f} to {high:.2f} only")
    p = float(calibration.model.probability(_matrix([values], calibration.features))[0])
    nulls = calibration.null_scores
    p_null = (1 + sum(s >= p for s in nulls)) / (len(nulls) + 1)
    if p <= calibration.threshold:
        return Judged(NOTHING, p, p_null)
    confirmed = values.get("deed", 0.0) > 0 and values.get("deed_rank", 1.0) < CONFIRMS
    return Judged(CONFIRMED if confirmed else REPORTED, p, p_null)


def _seen(value: Any, low: Any, high: Any) -> Any:
    """Whether calibration saw numbers like this one: within the range of what it saw, or beyond it by a margin."""
    margin = MARGIN * (high - low) + 1e-9
    return (low - margin <= value) & (value <= high + margin)


def overall(verdicts: Sequence[str]) -> str:
    """Of a target, the strongest of its claims' verdicts; nothing where it made none."""
    return min(verdicts, key=VERDICTS.index, default=NOTHING)


def _matrix(rows: Sequence[Mapping[str, float]], features: Sequence[str]) -> np.ndarray:
    return np.array([[row[n] for n in features] for row in rows], float).reshape(len(rows), len(features))


# ---------------------------------------------------------------------------------------------------------------------
# Making it
# ---------------------------------------------------------------------------------------------------------------------


def calibrate(
    rows: Sequence[Row],
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    *,
    alpha: float,
    identity: Mapping[str, str],
    made_of: Mapping[str, Any],
    kinds: Sequence[str] = tuple(KINDS),
    kind: str = "logistic",
    measure: bool = True,
) -> Calibration:
    """The calibration and, with `measure`, its figures, for which it is fitted many times more.

    models: {organism: its category} of all that were asked, also those that claimed nothing; nulls: {null: its sort}.
    identity: `ia`, `ia_hash`, `base`, `base_fingerprint`. kind: of `evals.calibration.fit`. Kinds of evidence that not
    every row has are left out. Raises ConfigError for too few nulls, or where all claims are right or all wrong.
    """
    kinds = tuple(k for k in kinds if rows and all(n in r.values for r in rows for n in KINDS[k]))
    features = tuple(n for k in kinds for n in KINDS[k])
    if not features:
        raise ConfigError("no kind of evidence was measured for every claim; run `ia-jax calibrate` anew")
    x = _matrix([r.values for r in rows], features)
    found = _Fitted.of(rows, x, nulls, alpha, kind)
    low, high = x.min(0), x.max(0)
    return Calibration(
        **dict(identity),
        alpha=alpha,
        kinds=kinds,
        features=features,
        range={n: (float(a), float(b)) for n, a, b in zip(features, low, high, strict=True)},
        model=found.model,
        threshold=found.threshold,
        null_scores=tuple(sorted(found.scores)),
        made_of={**made_of, "organisms": dict(models), "nulls": dict(nulls), "claims": len(rows)},
        figures=figures(rows, models, nulls, features, alpha, kind) if measure else {},
    )


@dataclass(frozen=True)
class _Fitted:
    model: Logistic
    threshold: float
    scores: list[float]

    @staticmethod
    def of(rows: Sequence[Row], x: np.ndarray, nulls: Mapping[str, str], alpha: float, kind: str) -> "_Fitted":
        resting = threshold_nulls(nulls)
        used = [i for i, r in enumerate(rows) if r.model not in resting]
        model = fit(x[used], [rows[i].right for i in used], [rows[i].model for i in used], kind)
        best = _best(rows, model.probability(x))
        scores = [best.get(n, 0.0) for n in resting]  # a null that claims nothing makes no false report
        return _Fitted(model, conformal_threshold(scores, alpha), scores)


def threshold_nulls(nulls: Mapping[str, str]) -> list[str]:
    """The nulls that the threshold rests on: of each sort, two of three in an order that is drawn."""
    resting = []
    for number, sort in enumerate(sorted(set(nulls.values()))):
        own = sorted(n for n, s in nulls.items() if s == sort)
        order = np.random.default_rng([len(own), number, 16]).permutation(len(own))
        # The third is another one in every sort, so that sorts of one or two nulls do not all go one way.
        resting += [own[i] for place, i in enumerate(order) if (place + number) % FIT]
    return resting


def _best(rows: Sequence[Row], p: np.ndarray, right: bool | None = None) -> dict[str, float]:
    """Of each model the highest probability of its claims, or of its right or its wrong ones."""
    best: dict[str, float] = {}
    for row, own in zip(rows, p, strict=True):
        if right is None or row.right == right:
            best[row.model] = max(best.get(row.model, 0.0), float(own))
    return best


# ---------------------------------------------------------------------------------------------------------------------
# How good it is
# ---------------------------------------------------------------------------------------------------------------------


def figures(
    rows: Sequence[Row],
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    features: Sequence[str],
    alpha: float,
    kind: str,
) -> dict[str, Any]:
    """Two sets of figures, each for models that the fit and the threshold did not see: "in_distribution" (5 folds over
    models) and "left_out" (a category or sort at a time); and "ablation", left_out's AUROC by kinds of evidence.
    """
    x = _matrix([r.values for r in rows], features)
    names, right = [r.model for r in rows], np.array([r.right for r in rows])
    every = {**models, **nulls}
    folds = dict(zip(sorted(every), folds_of(sorted(every), 5), strict=True))
    out: dict[str, Any] = {}
    for name, group in (("in_distribution", folds), ("left_out", every)):
        p = out_of_fold(x, right.tolist(), names, [group[m] for m in names], kind)
        there = np.isfinite(p)
        own = [n for n, ok in zip(names, there, strict=True) if ok]
        out[name] = {**_quality(p[there], right[there], own), **_decided(rows, x, models, nulls, group, alpha, kind)}
    groups = [every[m] for m in names]

    def alone(columns: list[int]) -> Any:
        p = out_of_fold(x[:, columns], right.tolist(), names, groups, kind)
        there = np.isfinite(p)
        own = [n for n, ok in zip(names, there, strict=True) if ok]
        return measured(auroc, p[there], right[there], own) if there.any() else None

    has = [k for k in KINDS if set(KINDS[k]) <= set(features)]
    columns = {k: [features.index(n) for n in KINDS[k]] for k in has}
    out["ablation"] = {
        k: {"alone": alone(columns[k]), "without": alone([c for o in has if o != k for c in columns[o]])}
        for k in has
        if len(has) > 1
    }
    return out


def _quality(p: np.ndarray, right: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    if not len(p):
        return {}
    return {
        "auroc": measured(auroc, p, right, names),
        "brier": measured(brier, p, right, names),
        "expected_calibration_error": measured(expected_error, p, right, names),
        "reliability": reliability(p, right, names),
        "risk_coverage": risk_coverage(p, right, names),
    }


def _decided(
    rows: Sequence[Row],
    x: np.ndarray,
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    group: Mapping[str, str],
    alpha: float,
    kind: str,
) -> dict[str, Any]:
    """{"false_reports": share of nulls with a claim above the threshold, "wrong_reports": of organisms with a wrong
    one, "kept": share of organisms whose right claim is, of those that made one, "found": of all}, by a fit, threshold
    and range without the model's group (what lies outside of the range is not reported); "too_few": groups without
    which too few nulls are left for a threshold.
    """
    out: dict[str, dict[str, list[bool]]] = {f: {} for f in ("false_reports", "wrong_reports", "kept", "found")}
    too_few = []
    for name in sorted(set(group.values())):
        rest = [i for i, r in enumerate(rows) if group[r.model] != name]
        try:
            found = _Fitted.of(
                [rows[i] for i in rest], x[rest], {n: s for n, s in nulls.items() if group[n] != name}, alpha, kind
            )
        except ConfigError:
            too_few.append(name)
            continue
        inside = _seen(x, x[rest].min(0), x[rest].max(0)).all(1)
        p = np.where(inside, found.model.probability(x), 0.0)
        own = [m for m in models if group[m] == name], [n for n in nulls if group[n] == name]
        for figure, answers in _reported(rows, p, found.threshold, *own).items():
            out[figure] |= answers
    return {**{figure: rate(answers) for figure, answers in out.items()}, "too_few": too_few}


def _reported(
    rows: Sequence[Row], p: np.ndarray, threshold: float, models: Sequence[str], nulls: Sequence[str]
) -> dict[str, dict[str, list[bool]]]:
    """By figure, of each model whether a claim of it is above the threshold (`_decided`)."""
    best, right, wrong = (_best(rows, p, which) for which in (None, True, False))

    def above(scores: Mapping[str, float], names: Sequence[str]) -> dict[str, list[bool]]:
        return {n: [scores.get(n, 0.0) > threshold] for n in names}

    return {
        "false_reports": above(best, nulls),
        "wrong_reports": above(wrong, models),
        "kept": above(right, [m for m in models if m in right]),
        "found": above(right, models),
    }


def test_figures(
    calibration: Calibration,
    rows: Sequence[Row],
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    splits: Mapping[str, str],
) -> dict[str, Any]:
    """What a finished calibration comes to on models that it never saw: as `figures` has it, "by_sort" of nulls and
    "kept_by_split" of organisms (splits: of each).

    A claim of which it can't tell is neither reported nor kept; what is of probabilities is over the others. "unsure"
    and "unsure_nulls": the share of organisms and of nulls with such a claim.
    """
    verdicts = [judged(calibration, r.values) for r in rows]
    told = [r for r, v in zip(rows, verdicts, strict=True) if v.probability is not None]
    p = np.array([v.probability or 0.0 for v in verdicts])
    decided = p[[v.probability is not None for v in verdicts]] if len(p) else p
    unsure = {r.model for r, v in zip(rows, verdicts, strict=True) if v.probability is None}
    answers = _reported(rows, p, calibration.threshold, list(models), list(nulls))
    false, kept = answers["false_reports"], answers["kept"]
    return {
        **_quality(decided, np.array([r.right for r in told], bool), [r.model for r in told]),
        **{figure: rate(own) for figure, own in answers.items()},
        "by_sort": {s: rate({n: false[n] for n in nulls if nulls[n] == s}) for s in sorted(set(nulls.values()))},
        "kept_by_split": {
            s: rate({m: kept[m] for m in kept if splits[m] == s}) for s in sorted({splits[m] for m in kept})
        },
        "unsure": rate({m: [m in unsure] for m in models}),
        "unsure_nulls": rate({n: [n in unsure] for n in nulls}),
        "organisms": dict(models),
        "nulls": dict(nulls),
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
