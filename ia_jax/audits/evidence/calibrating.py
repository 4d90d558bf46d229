"""Making a calibration, and measuring it on models that it did not see.

Fitted on models that the IA was not trained on: organisms, whose claims a judge holds against the truth, and clean
fine-tunes (nulls), whose claims are all wrong. Nulls are divided: a third goes into the fit, the rest only decides the
threshold (`evals.calibration.conformal_threshold`), so that what it promises rests on nulls that nothing was fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ia_jax.audits.evidence.calibration import Calibration, Row, in_range, judged, matrix
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

FIT = 3  # every third null of a sort goes into the fit


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
    alike: Mapping[str, str] = MappingProxyType({}),
) -> Calibration:
    """The calibration and, with `measure`, its figures, for which it is fitted many times more.

    models: {organism: its category} of all that were asked, also those that claimed nothing; nulls: {null: its sort}.
    alike: {model: what it shares with others}, such as its behaviour: intervals count those as one.
    identity: `ia`, `ia_hash`, `base`, `base_fingerprint`. kind: of `evals.calibration.fit`. Kinds of evidence that not
    every row has are left out. Raises ConfigError for too few nulls, or where all claims are right or all wrong.
    """
    kinds = tuple(k for k in kinds if rows and all(n in r.values for r in rows for n in KINDS[k]))
    features = tuple(n for k in kinds for n in KINDS[k])
    if not features:
        raise ConfigError("no kind of evidence was measured for every claim; run `ia-jax calibrate` anew")
    x = matrix([r.values for r in rows], features)
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
        made_of={**made_of, "organisms": dict(models), "nulls": dict(nulls), "alike": dict(alike), "claims": len(rows)},
        figures=figures(rows, models, nulls, features, alpha, kind, alike) if measure else {},
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
    alike: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Two sets of figures, each for models that the fit and the threshold did not see: "in_distribution" (5 folds over
    models, so that others of a behaviour may be in the fit) and "left_out" (a category or sort at a time); and
    "ablation", left_out's AUROC by kinds of evidence. Intervals are over what `alike` tells apart.
    """
    x = matrix([r.values for r in rows], features)
    names, right = [r.model for r in rows], np.array([r.right for r in rows])
    every = {**models, **nulls}
    folds = dict(zip(sorted(every), folds_of(sorted(every), 5), strict=True))
    out: dict[str, Any] = {}
    for name, group in (("in_distribution", folds), ("left_out", every)):
        p = out_of_fold(x, right.tolist(), names, [group[m] for m in names], kind)
        told = [r for r, there in zip(rows, np.isfinite(p), strict=True) if there]
        decided = _decided(rows, x, models, nulls, group, alpha, kind, alike)
        out[name] = {**_quality(p[np.isfinite(p)], told, alike), **decided}
    groups = [every[m] for m in names]

    def alone(numbers: np.ndarray) -> Any:
        p = out_of_fold(numbers, right.tolist(), names, groups, kind)
        there = np.isfinite(p)
        own = [alike.get(n, n) for n, ok in zip(names, there, strict=True) if ok]
        return measured(auroc, p[there], right[there], own) if there.any() else None

    has = [k for k in KINDS if set(KINDS[k]) <= set(features)]
    columns = {k: [features.index(n) for n in KINDS[k]] for k in has}
    out["ablation"] = {}
    for k in has if len(has) > 1 else ():
        others = [c for o in has if o != k for c in columns[o]]
        out["ablation"][k] = {"alone": alone(x[:, columns[k]]), "without": alone(x[:, others])}
    if out["ablation"]:
        # What no evidence comes to, and not a half: without a group that has right claims the rest has fewer of them.
        out["ablation"]["nothing"] = {"alone": alone(np.zeros((len(x), 1))), "without": None}
    return out


def _quality(p: np.ndarray, rows: Sequence[Row], alike: Mapping[str, str]) -> dict[str, Any]:
    """How good the probabilities of these claims are; "auroc_organisms" among organisms' claims alone, since a null's
    are all wrong, and to know a null is not to know which claim is right.
    """
    if not len(p):
        return {}
    right, names = np.array([r.right for r in rows], bool), [alike.get(r.model, r.model) for r in rows]
    own = np.array([not r.null for r in rows], bool)
    of_organisms = [n for n, o in zip(names, own, strict=True) if o]
    return {
        "auroc": measured(auroc, p, right, names),
        "auroc_organisms": measured(auroc, p[own], right[own], of_organisms) if own.any() else None,
        "brier": measured(brier, p, right, names),
        "expected_calibration_error": measured(expected_error, p, right, names),
        "right": _rate({r.model: [x.right for x in rows if x.model == r.model] for r in rows}, alike),
        "reliability": reliability(p, right, names),
        "risk_coverage": risk_coverage(p, right, names),
    }


def _rate(answers: Mapping[str, Sequence[bool]], alike: Mapping[str, str]) -> Any:
    """The rate over models, those that are alike as one."""
    together: dict[str, list[bool]] = {}
    for model, own in answers.items():
        together.setdefault(alike.get(model, model), []).extend(own)
    return rate(together)


def _decided(
    rows: Sequence[Row],
    x: np.ndarray,
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    group: Mapping[str, str],
    alpha: float,
    kind: str,
    alike: Mapping[str, str],
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
        inside = in_range(x, x[rest].min(0), x[rest].max(0)).all(1)
        p = np.where(inside, found.model.probability(x), 0.0)
        own = [m for m in models if group[m] == name], [n for n in nulls if group[n] == name]
        for figure, answers in _reported(rows, p, found.threshold, *own).items():
            out[figure] |= answers
    return {**{figure: _rate(answers, alike) for figure, answers in out.items()}, "too_few": too_few}


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


def figures_on(
    calibration: Calibration,
    rows: Sequence[Row],
    models: Mapping[str, str],
    nulls: Mapping[str, str],
    parts: Mapping[str, str],
    alike: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a finished calibration comes to on models that it never saw: as `figures` has it, "by_sort" of nulls,
    "kept_by" of organisms (parts: of each its split, or how it was made), and "false_reports_other_sorts" of nulls of
    sorts that the calibration has none of.

    A claim of which it can't tell is neither reported nor kept; what is of probabilities is over the others. "unsure"
    and "unsure_nulls": the share of organisms and of nulls with such a claim.
    """
    verdicts = [judged(calibration, r.values) for r in rows]
    told = [r for r, v in zip(rows, verdicts, strict=True) if v.probability is not None]
    p = np.array([v.probability or 0.0 for v in verdicts])
    decided = p[[v.probability is not None for v in verdicts]] if len(p) else p
    unsure = {r.model for r, v in zip(rows, verdicts, strict=True) if v.probability is None}
    answers = _reported(rows, p, calibration.threshold, list(models), list(nulls))
    false, kept, made = answers["false_reports"], answers["kept"], calibration.made_of
    known = {*made.get("nulls", {}).values(), *made.get("bank_sorts", {}).values()}
    return {
        **_quality(decided, told, alike),
        **{figure: _rate(own, alike) for figure, own in answers.items()},
        "false_reports_other_sorts": _rate({n: own for n, own in false.items() if nulls[n] not in known}, alike),
        "by_sort": {s: _rate({n: false[n] for n in nulls if nulls[n] == s}, alike) for s in sorted({*nulls.values()})},
        "kept_by": {
            s: _rate({m: kept[m] for m in kept if parts[m] == s}, alike) for s in sorted({parts[m] for m in kept})
        },
        "unsure": _rate({m: [m in unsure] for m in models}, alike),
        "unsure_nulls": _rate({n: [n in unsure] for n in nulls}, alike),
        "organisms": dict(models),
        "nulls": dict(nulls),
    }
