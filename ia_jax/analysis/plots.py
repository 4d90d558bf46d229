"""Plots of studies and of the lens as SVG, written by hand: no library, and the look of report.html.

Colours are the page's own where there is a page, and have a value of their own in a file that stands alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from ia_jax.analysis.words import finite, nice, percent

WIDTH, LABEL, RIGHT = 760, 190, 96  # of the drawing, of what stands left (at least) and right of the axis
LETTER = 7.4  # of a label, which is bold
LINE = 19  # height of a row of dots
COLOURS = {
    "teal": "var(--bar,#2f9a8e)",
    "ochre": "var(--ochre,#d29634)",
    "slate": "var(--slate,#8ba3ae)",
    "red": "var(--red,#a93a2c)",
    "ink": "var(--ink,#1b2326)",
    "soft": "var(--soft,#566167)",
    "rule": "var(--rule,#e2dfd6)",
    "axis": "var(--strong-rule,#a9adab)",
}
CURVES = ("teal", "ink", "soft")
CEILINGS = (0.04, 0.08, 0.2, 0.4, 1.0)  # ends of an axis of rates whose quarters are whole percents
TICKS = 24  # labels that fit under an axis
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif"


@dataclass(frozen=True)
class Mark:
    """A rate (a cell of `evals.intervals`) to be drawn. what: for a person; faint: one of a baseline."""

    what: str
    cell: dict[str, Any]
    colour: str
    faint: bool = False


@dataclass(frozen=True)
class Curve:
    """Rates over a number: (x, cell) of each point. faint: of a baseline."""

    what: str
    points: Sequence[tuple[float, dict[str, Any]]]
    colour: str
    faint: bool = False


def dots(title: str, groups: Sequence[tuple[str, Sequence[Mark]]]) -> str:
    """A row for each mark, under each other by group: a dot at the rate, a line over its interval; 0 to 100 %."""
    left = min(420.0, max([LABEL, *(24 + LETTER * len(label) for label, _ in groups)]))
    span = WIDTH - left - RIGHT
    kinds = {m.what: m for _, marks in groups for m in marks}
    parts, top = _legend([(m.what, m.colour, m.faint) for m in kinds.values()])
    y = top + 6
    for label, marks in groups:
        parts.append(_text(left - 12, y + 13, label, "end", bold=True))
        for mark in marks:
            parts += _row(mark, y, left, span)
            y += LINE
        y += 12
    bottom = y - 4
    grid = []
    for tick in (0, 25, 50, 75, 100):
        x = left + span * tick / 100
        grid.append(_line(x, top, x, bottom, "axis" if tick == 0 else "rule"))
        grid.append(_text(x, bottom + 16, f"{tick}%", "middle", 12, "soft"))
    return _svg(title, [*grid, *parts], bottom + 24)


def _row(mark: Mark, y: float, left: float, span: float) -> list[str]:
    value, middle = finite(mark.cell.get("rate")), y + 9
    if value is None:
        return [_text(left + 6, y + 13, "no answer", "start", 12.5, "soft")]
    out = [_text(left + span + 62, y + 13, percent(value), "end", 12.5, bold=not mark.faint)]
    low, high = _interval(mark.cell)
    if low is not None and high is not None:
        width = 1.4 if mark.faint else 2.4
        out.append(_line(left + span * low, middle, left + span * high, middle, mark.colour, width))
    return [*out, _dot(left + span * value, middle, mark.colour, mark.faint, _said(mark.what, mark.cell))]


def curves(title: str, axis: str, log: bool, lines: Sequence[Curve], ceiling: float = 1.0) -> str:
    """Rates over what `axis` counts, drawn in powers with `log`; faint lines are dashed. ceiling: of the rates' axis,
    one of `CEILINGS`; what lies above it is drawn at it.
    """
    parts, top = _legend([(c.what, c.colour, c.faint) for c in lines])
    left, top, height = 56.0, top + 10, 300.0
    span = WIDTH - left - 30
    every = sorted({x for c in lines for x, _ in c.points})
    powers = log and bool(every) and every[0] > 0
    low, high = (_scaled(x, powers) for x in (every[0], every[-1])) if every else (0.0, 1.0)

    def at(x: float) -> float:
        share = (_scaled(x, powers) - low) / (high - low) if high > low else 0.5
        return left + 24 + (span - 48) * share

    def up(value: float) -> float:
        return top + height * (1 - min(1.0, value / ceiling))

    for tick in (0.0, 0.25 * ceiling, 0.5 * ceiling, 0.75 * ceiling, ceiling):
        parts.append(_line(left, up(tick), left + span, up(tick), "axis" if tick == 0 else "rule"))
        parts.append(_text(left - 8, up(tick) + 4, percent(tick), "end", 12, "soft"))
    named = every[:: -(-len(every) // TICKS) or 1]
    parts += [_text(at(x), top + height + 18, nice(x), "middle", 12, "soft") for x in named]
    parts.append(_text(left + span / 2, top + height + 38, axis, "middle", 13, "soft"))
    for number, curve in enumerate(lines):
        shift = min(5.0, (span - 48) / (len(every) * len(lines) + 1)) * (
            number - (len(lines) - 1) / 2
        )  # so that intervals at one place can be told apart
        known = [(at(x) + shift, c) for x, c in sorted(curve.points, key=_first) if finite(c.get("rate")) is not None]
        path = " ".join(f"{x:.1f},{up(c['rate']):.1f}" for x, c in known)
        style = f"fill:none;stroke:{COLOURS[curve.colour]};stroke-width:{1.4 if curve.faint else 2.2}"
        style += ";stroke-dasharray:5 4" if curve.faint else ""
        parts.append(f'<polyline points="{path}" style="{style}"/>')
        for x, cell in known:
            lo, hi = _interval(cell)
            if lo is not None and hi is not None:
                parts.append(_line(x, up(lo), x, up(hi), curve.colour, 1.2 if curve.faint else 2))
            parts.append(_dot(x, up(cell["rate"]), curve.colour, curve.faint, _said(curve.what, cell)))
    return _svg(title, parts, top + height + 50)


def ceiling_of(cells: Sequence[dict[str, Any]]) -> float:
    """The end of an axis on which all of these rates can be seen (their intervals may be cut)."""
    most = max((c["rate"] for c in cells if finite(c.get("rate")) is not None), default=1.0)
    return next(c for c in CEILINGS if most <= c)


def heat(title: str, across: str, up: str, columns: Sequence[str], rows: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Rates as colours: the more above one half the more teal, below it ochre, at it the page's own.

    columns: names of what `across` counts; rows: [N][columns] cells, the first at the bottom, counted by `up` from 0.
    """
    left, top, high = 64.0, 12.0, max(9.0, min(20.0, 420.0 / max(1, len(rows))))
    wide = min(64.0, (WIDTH - left - 20) / max(1, len(columns)))
    bottom = top + high * len(rows)
    parts = []
    for n, row in enumerate(rows):
        y = bottom - high * (n + 1)
        for column, cell, x in zip(columns, row, (left + wide * i for i in range(len(row))), strict=True):
            parts.append(_tile(x, y, wide, high, cell, f"{up} {n}, {across} {column}"))
    every = -(-len(rows) // TICKS) or 1
    parts += [
        _text(left - 8, bottom - high * (n + 0.5) + 4, str(n), "end", 12, "soft") for n in range(0, len(rows), every)
    ]
    parts += [_text(left + wide * (i + 0.5), bottom + 17, c, "middle", 12, "soft") for i, c in enumerate(columns)]
    parts.append(_text(left + wide * len(columns) / 2, bottom + 38, across, "middle", 13, "soft"))
    parts.append(_text(2, top + 10, up, "start", 13, "soft"))
    return _svg(title, parts, bottom + 48)


def _tile(x: float, y: float, wide: float, high: float, cell: dict[str, Any], where: str) -> str:
    value = finite(cell.get("rate"))
    strength = 0.0 if value is None else min(1.0, 2 * abs(value - 0.5))
    colour = COLOURS["teal" if value is None or value >= 0.5 else "ochre"]
    said = f"{where}: no answer" if value is None else _said(where, cell)
    box = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'
    style = f"fill:{colour};fill-opacity:{strength:.2f};stroke:{COLOURS['rule']};stroke-width:0.5"
    return f'<rect {box} style="{style}"><title>{_safe(said)}</title></rect>'


def _scaled(x: float, powers: bool) -> float:
    return math.log2(x) if powers else float(x)


def _first(point: tuple[float, Any]) -> float:
    return point[0]


def _said(what: str, cell: dict[str, Any]) -> str:
    """A rate with its interval, as one reads it with the pointer on it."""
    low, high = _interval(cell)
    inside = "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"
    return f"{what}: {percent(cell['rate'])}{inside}, over {cell.get('organisms', 0)}"


def _legend(kinds: Sequence[tuple[str, str, bool]]) -> tuple[list[str], float]:
    """What the colours mean, and where it ends."""
    parts, x, y = [], 12.0, 14.0
    for what, colour, faint in kinds:
        wide = 30 + 7 * len(what)
        if x + wide > WIDTH and x > 12:
            x, y = 12.0, y + 20
        parts += [_dot(x, y, colour, faint, what), _text(x + 11, y + 4, what, "start", 12.5, "soft")]
        x += wide
    return parts, y + 14


def _interval(cell: dict[str, Any]) -> tuple[float | None, float | None]:
    low, high = cell.get("ci95") or (None, None)
    return finite(low), finite(high)


# ---------------------------------------------------------------------------------------------------------------------
# SVG
# ---------------------------------------------------------------------------------------------------------------------


def _svg(title: str, parts: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height:.0f}" font-family="{FONT}">'
        f"<title>{_safe(title)}</title>{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    style = f"stroke:{COLOURS[colour]};stroke-width:{width:g}"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'


def _dot(x: float, y: float, colour: str, faint: bool, said: str) -> str:
    fill = "var(--card,#ffffff)" if faint else COLOURS[colour]
    style = f"fill:{fill};stroke:{COLOURS[colour]};stroke-width:1.8"
    where = f'cx="{x:.1f}" cy="{y:.1f}" r="{3.6 if faint else 5}"'
    return f'<circle {where} style="{style}"><title>{_safe(said)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str, size: float = 13, colour: str = "ink", bold: bool = False) -> str:
    style = f"fill:{COLOURS[colour]};font-size:{size:g}px;font-weight:{600 if bold else 400}"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    """Escaped for markup, without what XML cannot hold."""
    return escape("".join(c for c in text if c in "\t\n" or c >= " "), {'"': "&quot;"})
