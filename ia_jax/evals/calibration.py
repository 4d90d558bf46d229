"""How good probabilities are, each figure with an interval over models; and what makes probabilities out of numbers.

A *row* is one claim about one model: its probability or its features, whether it is right, the model, and the group
(category or sort of clean fine-tune) that the model is of. Claims about one model are alike, so a model counts and not
a claim: intervals come from resampling models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ia_jax.errors import ConfigError
from ia_jax.evals.intervals import Cell, cell, rate

BINS = 10
SAMPLES = 300


# ---------------------------------------------------------------------------------------------------------------------
# A small model, as plain numbers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logistic:
    """p = sigmoid(weights · (x - mean) / scale + intercept), then through `steps` where it is isotonic.

    steps: ([p], [p'], both ascending), between which is interpolated; () for none.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    steps: tuple[tuple[float, ...], tuple[float, ...]] | tuple[()] = ()

    def probability(self, features: np.ndarray) -> np.ndarray:
        """[rows, features] -> [rows]."""
        score = (np.asarray(features, float) - np.array(self.mean)) / np.array(self.scale) @ np.array(self.weights)
        p = 0.5 * (1 + np.tanh((score + self.intercept) / 2))
        return np.interp(p, *self.steps) if self.steps else p


def fit(features: np.ndarray, right: Sequence[bool], models: Sequence[str], kind: str = "logistic") -> Logistic:
    """scikit-learn's logistic regression (L2, C = 1) on standardised features, each model counting once.

    kind "isotonic" puts a monotone function over it, fitted to probabilities that came from other models (5 folds over
    models, Zadrozny and Elkan 2002). Raises ConfigError where all rows are right or all wrong.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if kind not in ("logistic", "isotonic"):
        raise ConfigError(f"calibration by {kind!r} is unknown; choose logistic or isotonic")
    y, x = np.asarray(right, bool), np.asarray(features, float)
    if y.all() or not y.any():
        raise ConfigError(
            f"all {len(y)} claims to calibrate on are {'right' if len(y) and y.all() else 'wrong'}: both right and "
            "wrong ones are needed; give organisms that the IA gets right, and clean fine-tunes"
        )
    count = {m: list(models).count(m) for m in dict.fromkeys(models)}
    weight = np.array([1 / count[m] for m in models])
    scaler = StandardScaler().fit(x)
    found = LogisticRegression(solver="newton-cholesky").fit(scaler.transform(x), y, sample_weight=weight)
    mean, scale, weights, intercept = map(_floats, (scaler.mean_, scaler.scale_, found.coef_[0], found.intercept_))
    plain = Logistic(mean, scale, weights, intercept[0])
    if kind == "logistic":
        return plain
    from sklearn.isotonic import IsotonicRegression

    p = out_of_fold(x, y.tolist(), models, folds_of(models, 5), "logistic")
    steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y, sample_weight=weight)
    return replace(plain, steps=(_floats(steps.X_thresholds_), _floats(steps.y_thresholds_)))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in values)


def folds_of(models: Sequence[str], count: int) -> list[str]:
    """A fold for each row, the same for all rows of a model."""
    names = sorted(set(models))
    order = np.random.default_rng([len(names), 5]).permutation(len(names))
    fold = {names[i]: str(n % count) for n, i in enumerate(order)}
    return [fold[m] for m in models]


def out_of_fold(
    features: np.ndarray, right: Sequence[bool], models: Sequence[str], groups: Sequence[str], kind: str = "logistic"
) -> np.ndarray:
    """[rows]: each row's probability by a model that was fitted without its group. NaN where what is left is all right
    or all wrong.
    """
    x, y, own = np.asarray(features, float), np.asarray(right, bool), np.asarray(groups)
    out = np.full(len(y), np.nan)
    for group in sorted(set(groups)):
        rest = own != group
        if 0 < y[rest].sum() < rest.sum():
            fitted = fit(x[rest], y[rest].tolist(), [m for m, r in zip(models, rest, strict=True) if r], kind)
            out[~rest] = fitted.probability(x[~rest])
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Conformal threshold
# ---------------------------------------------------------------------------------------------------------------------


def needed(alpha: float) -> int:
    """How many nulls a threshold for a false-report rate of alpha rests on at least."""
    return int(np.ceil(1 / alpha - 1e-9)) - 1


def conformal_threshold(null_scores: Sequence[float], alpha: float) -> float:
    """The threshold that a new clean model's highest probability exceeds with probability at most alpha.

    Split conformal prediction (Vovk 2005; Lei 2018): the ceil((n + 1)(1 - alpha))-th smallest of n scores of nulls that
    nothing was fitted on. It holds for nulls that are exchangeable with these, on average over their draw, and says
    nothing of other sorts. Raises ConfigError for fewer nulls than `needed`.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha:g} must lie between 0 and 1")
    count = len(null_scores)
    place = int(np.ceil((count + 1) * (1 - alpha) - 1e-9))
    if place > count:
        raise ConfigError(
            f"{count} nulls are too few for a false-report rate of {alpha:g}: {needed(alpha)} that nothing was fitted "
            f"on are needed; make more clean fine-tunes, or take alpha={1 / (count + 1) + 0.0005:.3f} or more"
        )
    return float(np.sort(np.asarray(null_scores, float))[place - 1])


# ---------------------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------------------


def auroc(p: np.ndarray, right: np.ndarray) -> float:
    """How often a right claim is more probable than a wrong one, ties by half; NaN without both."""
    good, bad = int(right.sum()), int((~right).sum())
    if not good or not bad:
        return float("nan")
    return float((rankdata(p)[right].sum() - good * (good + 1) / 2) / (good * bad))  # Mann and Whitney's U


def brier(p: np.ndarray, right: np.ndarray) -> float:
    """Mean squared error of the probabilities."""
    return float(((p - right) ** 2).mean())


def expected_error(p: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width: mean |share right - mean probability|, by rows."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, right - p)).sum() / len(p))


def measured(
    measure: Callable[[np.ndarray, np.ndarray], float], p: np.ndarray, right: np.ndarray, models: Sequence[str]
) -> Cell:
    """A measure in 0 … 1 with a 95 % interval: models are resampled, and the variance becomes the exact interval of as
    many independent answers as would vary so (`evals.intervals`); at most the rows, and where nothing varies, only the
    models of the rarer kind, so that it never has width zero.
    """
    p, right, names = np.asarray(p, float), np.asarray(right, bool), np.asarray(models)
    value = measure(p, right)
    distinct = np.unique(names)
    rows = [np.flatnonzero(names == m) for m in distinct]
    good = sum(bool(right[r].any()) for r in rows)
    least = max(1, min(good, len(rows) - good) or len(rows))
    if np.isnan(value):
        return {"rate": None, "ci95": [None, None], "n": len(p), "organisms": len(distinct)}
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(SAMPLES):
        index = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        drawn.append(measure(p[index], right[index]))
    variance = float(np.nanvar(drawn, ddof=1)) if np.isfinite(drawn).sum() > 1 else 0.0
    number = least if variance < 1e-12 or not 0 < value < 1 else value * (1 - value) / variance
    return cell(value, float(min(max(number, 1), len(p))), len(p), len(distinct))


def reliability(p: np.ndarray, right: np.ndarray, models: Sequence[str], bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability curve: for each bin that holds rows its mean probability and the share that is right, a cell."""
    which = np.minimum((np.asarray(p) * bins).astype(int), bins - 1)
    out = []
    for b in np.unique(which):
        own: dict[str, list[bool]] = {}
        for i in np.flatnonzero(which == b).tolist():
            own.setdefault(models[i], []).append(bool(right[i]))
        out.append({"from": b / bins, "to": (b + 1) / bins, "mean": float(np.mean(p[which == b])), "right": rate(own)})
    return out


def risk_coverage(p: np.ndarray, right: np.ndarray, models: Sequence[str], points: int = 10) -> dict[str, Any]:
    """What is wrong among the share of claims that are most certain (p furthest from ½), told "right" above ½.

    {"area": mean risk over all coverages (AURC, Geifman 2019), "curve": [{"coverage", "risk": cell}]}. A caller who
    abstains on the rest answers that share, with that risk.
    """
    p, right = np.asarray(p, float), np.asarray(right, bool)
    order = np.argsort(-np.abs(p - 0.5), kind="stable")
    wrong = ((p > 0.5) != right)[order]
    risks = np.cumsum(wrong) / np.arange(1, len(p) + 1)
    curve, own = [], dict[str, list[bool]]()
    for n in range(1, points + 1):
        count = max(1, round(len(p) * n / points))
        own = {}
        for i, w in zip(order[:count].tolist(), wrong[:count].tolist(), strict=True):
            own.setdefault(models[i], []).append(w)
        curve.append({"coverage": round(count / len(p), 4), "risk": rate(own)})
    return {"area": float(risks.mean()), "curve": curve}
