"""Training curves to line charts, drawn in units of 0-100 on both axes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from ia_jax.analysis.words import finite, nice, titled
from ia_jax.storage import Row

CURVES = {"organisms": "Organisms", "ia_sft": "Adapter, SFT", "ia_dpo": "Adapter, DPO"}
MAX_POINTS = 400  # of a training curve


def ticks(lo: float, hi: float, count: int = 4) -> list[float]:
    """About `count` round numbers, the outer two at or beyond lo and hi."""
    span = max(hi - lo, 1e-3 * max(abs(hi), abs(lo)), 1e-9)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m * count >= span * 0.999)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _thin(points: list[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most `limit` points: means over equal stretches."""
    if len(points) <= limit:
        return points
    parts = np.array_split(np.array(points), limit)
    return [(float(p[:, 0].mean()), float(p[:, 1].mean())) for p in parts]


def _segments(points: Iterable[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Cut where the step does not grow: the next group of organisms, or a resumed run."""
    out: list[list[tuple[float, float]]] = []
    for point in points:
        if not out or point[0] <= out[-1][-1][0]:
            out.append([])
        out[-1].append(point)
    return out


def curve_panel(title: str, points: list[tuple[float, float]], left_out: int = 0) -> Row:
    """One line chart. Lines are in units of 0-100 on both axes, y downwards."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_ticks, y_ticks = ticks(min(min(xs), 0.0), max(xs)), ticks(min(ys), max(ys))
    x0, x1, y0, y1 = min(min(xs), 0.0), max(max(xs), 1.0), y_ticks[0], y_ticks[-1]

    def line(segment: list[tuple[float, float]]) -> str:
        return " ".join(f"{100 * (x - x0) / (x1 - x0):.2f},{100 - 100 * (y - y0) / (y1 - y0):.2f}" for x, y in segment)

    segments = _segments(points)
    limit = max(2, MAX_POINTS // len(segments))
    smooth = []
    for segment in segments if len(points) >= 30 else ():
        half = max(1, len(segment) // 40)
        values = np.array([y for _, y in segment])
        sums = np.concatenate([[0.0], values.cumsum()])
        at = np.arange(len(values))
        lo, hi = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
        means = (sums[hi] - sums[lo]) / (hi - lo)
        smooth.append([(x, float(m)) for (x, _), m in zip(segment, means, strict=True)])
    return {
        "title": title,
        "raw": [line(_thin(s, limit)) for s in segments],
        "smooth": [line(_thin(s, limit)) for s in smooth],
        "x_ticks": [{"at": 100 * (t - x0) / (x1 - x0), "text": nice(t)} for t in x_ticks if x0 <= t <= x1],
        "y_ticks": [{"at": 100 - 100 * (t - y0) / (y1 - y0), "text": nice(t)} for t in y_ticks],
        "first": nice(ys[0]),
        "last": nice((smooth or segments)[-1][-1][1]),
        "steps": nice(max(xs)),
        "n": len(points),
        "left_out": left_out,
    }


def curve_panels(curves: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """(loss of every stage, every other number logged) as panels; what is not finite is left out and counted."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    left_out: Counter[tuple[str, str]] = Counter()
    for row in curves:
        step = finite(row.get("step"))
        for key, value in row.items():
            if key in ("stage", "step") or step is None or isinstance(value, str | bool | list | dict | None):
                continue
            number = finite(value)
            if number is None:
                left_out[row["stage"], key] += 1
            else:
                points[row["stage"], key].append((step, number))
    order = sorted(points, key=lambda k: (list(CURVES).index(k[0]) if k[0] in CURVES else 9, k))
    panels = [
        (
            key == "loss",
            curve_panel(f"{CURVES.get(stage, stage)}: {titled(key).lower()}", points[stage, key], left_out[stage, key]),
        )
        for stage, key in order
    ]
    return [p for is_loss, p in panels if is_loss], [p for is_loss, p in panels if not is_loss]
