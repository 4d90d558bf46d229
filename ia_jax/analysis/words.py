"""Numbers and names as the report writes them."""

import math
from typing import Any

from ia_jax.storage import Row

STAGES = {"sft": "SFT", "dpo": "DPO"}


def finite(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def percent(rate: float) -> str:
    """0.714 -> "71%"; whole numbers, and what is not quite none or all does not look like it."""
    if 0 < rate < 0.005:
        return "<1%"
    if 0.995 <= rate < 1:
        return ">99%"
    return f"{math.floor(100 * rate + 0.5)}%"


def signed_points(value: float) -> str:
    """A difference of rates in points: 0.051 -> "+5"."""
    rounded = math.floor(100 * abs(value) + 0.5)
    return f"{'+' if value > 0 else '−'}{rounded}" if rounded else "0"


def nice(value: float) -> str:
    """A number as one would write it by hand: up to three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}".replace("e-0", "e-")


def titled(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def cell_view(cell: Row | None) -> Row:
    """{"rate", "ci95", "n"} of metrics.json -> texts, and positions in percent of the axis."""
    cell = cell or {}
    rate, n = finite(cell.get("rate")), int(finite(cell.get("n")) or 0)
    if rate is None:
        return {"text": "–", "interval": "", "n": n, "x": None, "lo": None, "hi": None}
    lo, hi = (finite(v) for v in (cell.get("ci95") or (None, None)))
    view = {"text": percent(rate), "interval": "", "n": n, "x": round(100 * rate, 2), "lo": None, "hi": None}
    if lo is not None and hi is not None:
        view |= {"lo": round(100 * lo, 2), "hi": round(100 * hi, 2), "interval": f"{percent(lo)[:-1]}–{percent(hi)}"}
    return view


def share(cell: Row | None) -> str:
    """A rate with its interval: "57% (32–82%)"."""
    view = cell_view(cell)
    return f"{view['text']} ({view['interval']})" if view["interval"] else view["text"]
