"""From evidence to the probability that a claim is right, or to "can't tell": plain numbers, kept as JSON.

`calibrating` makes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.evals.calibration import Logistic
from ia_jax.storage import read_json, write_json

FORMAT = 1
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
        if not in_range(values[name], low, high):
            return Judged(UNSURE, why=f"{name} is {values[name]:.2f}, and calibration saw {low:.2f} to {high:.2f} only")
    p = float(calibration.model.probability(matrix([values], calibration.features))[0])
    nulls = calibration.null_scores
    p_null = (1 + sum(s >= p for s in nulls)) / (len(nulls) + 1)
    if p <= calibration.threshold:
        return Judged(NOTHING, p, p_null)
    confirmed = values.get("deed", 0.0) > 0 and values.get("deed_rank", 1.0) < CONFIRMS
    return Judged(CONFIRMED if confirmed else REPORTED, p, p_null)


def in_range(value: Any, low: Any, high: Any) -> Any:
    """Whether calibration saw numbers like this one: within the range of what it saw, or beyond it by a margin."""
    margin = MARGIN * (high - low) + 1e-9
    return (low - margin <= value) & (value <= high + margin)


def overall(verdicts: Sequence[str]) -> str:
    """Of a target, the strongest of its claims' verdicts; nothing where it made none."""
    return min(verdicts, key=VERDICTS.index, default=NOTHING)


def matrix(rows: Sequence[Mapping[str, float]], features: Sequence[str]) -> np.ndarray:
    return np.array([[row[n] for n in features] for row in rows], float).reshape(len(rows), len(features))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
