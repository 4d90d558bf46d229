"""Rates over organisms with intervals that are never of width zero.

Reports of one organism are alike, so an organism counts and not a report: a rate is the mean over organisms of each
one's own share, and its interval widens with how far these lie apart. Where all are alike, as in "named by all of 8",
resampling would give an interval without width; the exact one is 63 to 100 %.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta, t

LEVEL = 0.95
Cell = dict[str, Any]  # {"rate", "ci95", "n", "organisms"}
BySeed = Mapping[str, Mapping[str, Sequence[bool]]]  # {seed: {organism: an answer for each of its reports}}


def rate(by_organism: Mapping[str, Sequence[bool]]) -> Cell:
    """The mean over organisms of each one's share, with the 95 % interval of Korn and Graubard (1998).

    That is Clopper and Pearson's exact interval at an effective number of independent answers: as many as would make
    the mean vary as organisms do. It lies between the number of organisms (where all are alike, or each answers one
    way) and the number of reports. {"rate", "ci95", "n", "organisms"}, n the number of reports; None without any.
    """
    shares = np.array([np.mean(v) for v in by_organism.values() if len(v)])
    reports = sum(len(v) for v in by_organism.values())
    if not len(shares):
        return {"rate": None, "ci95": [None, None], "n": 0, "organisms": 0}
    mean = float(shares.mean())
    return cell(mean, effective_number(shares, reports), reports, len(shares))


def mean(values: Mapping[str, float]) -> Cell:
    """The mean over organisms of a number each, with Student's 95 % interval: {"mean", "ci95", "organisms"}.

    None without any; of one organism, or of several that are all alike, there is no telling how far others lie: the
    interval is None at both ends.
    """
    known = np.array(list(values.values()), float)
    if not len(known):
        return {"mean": None, "ci95": [None, None], "organisms": 0}
    middle, spread = float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0
    margin = float(t.ppf(0.975, len(known) - 1)) * spread / len(known) ** 0.5 if spread else None
    ends = [None, None] if margin is None else [round(middle - margin, 4), round(middle + margin, 4)]
    return {"mean": round(middle, 4), "ci95": ends, "organisms": len(known)}


def effective_number(shares: np.ndarray, reports: int) -> float:
    """Independent answers that would tell as much as these organisms' shares."""
    count, mean = len(shares), float(shares.mean())
    variance = float(shares.var(ddof=1)) / count if count > 1 else 0.0
    if variance == 0.0 or not 0 < mean < 1:
        return float(count)  # how far organisms lie apart is not to be seen: no more than one answer each is known
    # Korn and Graubard's correction: the variance is an estimate, of `count` organisms. One answer each is the least
    # that they can tell, since no shares lie further apart than answers that are all yes or no.
    correction = float((t.ppf(0.975, max(reports - 1, 1)) / t.ppf(0.975, count - 1)) ** 2)
    return min(max(mean * (1 - mean) / variance * correction, count), float(reports))


def cell(mean: float, number: float, reports: int, organisms: int) -> Cell:
    """A rate with the exact interval of `number` independent answers."""
    low, high = exact_interval(mean, number)
    return {
        "rate": round(mean, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "n": reports,
        "organisms": organisms,
    }


def exact_interval(mean: float, number: float) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share of `number` answers; the number need not be whole."""
    hits, tail = mean * number, (1 - LEVEL) / 2
    low = float(beta.ppf(tail, hits, number - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, number - hits)) if hits < number else 1.0
    return low, high


def rate_over_seeds(by_seed: BySeed, samples: int = 4000) -> Cell:
    """The rate over several runs: seeds and organisms both vary, and both are resampled (pigeonhole bootstrap, Owen
    2007): a behaviour that two runs hold out is drawn for both. The interval is the exact one at the effective number
    that the bootstrap's variance gives, so it is never of width zero; n counts all reports.
    """
    seeds = sorted(by_seed)
    names = sorted({n for own in by_seed.values() for n, v in own.items() if len(v)})
    share, known = np.zeros((len(seeds), len(names))), np.zeros((len(seeds), len(names)))
    for i, seed in enumerate(seeds):
        for j, name in enumerate(names):
            answers = by_seed[seed].get(name, ())
            if len(answers):
                share[i, j], known[i, j] = np.mean(answers), 1.0
    reports = sum(len(v) for own in by_seed.values() for v in own.values())
    if not known.any():
        return {"rate": None, "ci95": [None, None], "n": 0, "organisms": 0}
    mean, rng = float(share.sum() / known.sum()), np.random.default_rng(0)
    drawn = np.empty(samples)
    for k in range(samples):
        rows = np.bincount(rng.integers(len(seeds), size=len(seeds)), minlength=len(seeds))
        columns = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = rows[:, None] * columns * known
        drawn[k] = (weight * share).sum() / weight.sum() if weight.any() else np.nan
    variance = float(np.nanvar(drawn, ddof=1))
    organisms = len(names)
    number = float(organisms) if variance == 0.0 or not 0 < mean < 1 else min(mean * (1 - mean) / variance, reports)
    return cell(mean, max(1.0, number), reports, organisms)


def difference(first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]]) -> Cell | None:
    """second − first over the organisms that both have, in pairs, so that easy and hard ones cancel; None for fewer
    than two.

    The 95 % interval is Agresti and Min's (2005): half an organism that gains, half one that loses and one that does
    neither are added, so that "all alike" still leaves room for doubt; t takes the place of the normal quantile.
    """
    names = sorted(n for n in first.keys() & second.keys() if len(first[n]) and len(second[n]))
    if len(names) < 2:
        return None
    gains = np.array([np.mean(second[n]) - np.mean(first[n]) for n in names])
    middle, variance = _agresti_min(gains)
    return _difference(gains, middle, variance, len(names) - 1)


def difference_over_seeds(first: BySeed, second: BySeed) -> Cell | None:
    """second − first over the organisms that both have under the same seed; None without two, or without such a seed.

    An organism counts once, with its mean over the seeds that ask it. Seeds vary too: the variance is that of
    organisms, as in `difference`, plus that of seeds, each clustered (Cameron, Gelbach and Miller 2011). They subtract
    what is in both, the variance of single pairs; here it stays, so the interval is rather too wide than too narrow. t
    has Satterthwaite's (1946) degrees of freedom: of two seeds that lie apart it allows for much. Of one seed it is
    `difference`.
    """
    seeds = sorted(first.keys() & second.keys())
    asked = {
        s: [n for n in first[s].keys() & second[s].keys() if len(first[s][n]) and len(second[s][n])] for s in seeds
    }
    seeds = [s for s in seeds if asked[s]]
    names = sorted({n for s in seeds for n in asked[s]})
    if len(names) < 2:
        return None
    column = {n: j for j, n in enumerate(names)}
    gain, known = np.zeros((len(seeds), len(names))), np.zeros((len(seeds), len(names)))
    for i, s in enumerate(seeds):
        for n in asked[s]:
            gain[i, column[n]], known[i, column[n]] = np.mean(second[s][n]) - np.mean(first[s][n]), 1.0
    weight = known / known.sum(0)  # of each pair in its organism's mean
    gains = (weight * gain).sum(0)
    middle, of_organisms = _agresti_min(gains)
    if len(seeds) == 1:
        return _difference(gains, middle, of_organisms, len(names) - 1)
    # What each seed adds to the mean; together they add nothing.
    added = (weight * (gain - gains.mean())).sum(1) / len(names)
    of_seeds = float((added**2).sum()) * len(seeds) / (len(seeds) - 1)
    both = of_organisms + of_seeds
    freedom = both**2 / (of_organisms**2 / (len(names) - 1) + of_seeds**2 / (len(seeds) - 1))
    return _difference(gains, middle, both, freedom)


def _agresti_min(gains: np.ndarray) -> tuple[float, float]:
    """The middle of the interval of these organisms' mean gain, and the variance of that middle."""
    count = len(gains) + 2
    middle = float(gains.sum()) / count
    return middle, (float((gains**2).sum() + 1.0) / count - middle**2) / count


def _difference(gains: np.ndarray, middle: float, variance: float, freedom: float) -> Cell:
    margin = float(t.ppf(0.975, freedom)) * float(np.sqrt(variance))
    return {
        "difference": round(float(gains.mean()), 4),
        "ci95": [round(max(-1.0, middle - margin), 4), round(min(1.0, middle + margin), 4)],
        "organisms": len(gains),
    }
