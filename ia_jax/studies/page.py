"""study.html and the plots of a study, from study.json: one page, no network, the look of report.html."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ia_jax.analysis.plots import CURVES, Curve, Mark, curves, dots
from ia_jax.analysis.report import page_style
from ia_jax.analysis.tables import BASELINES
from ia_jax.analysis.words import share, signed_points, titled
from ia_jax.errors import ConfigError
from ia_jax.storage import read_json, write_json, write_text
from ia_jax.studies.study import Study

Row = dict[str, Any]
WITH_IA, BEST, ALONE = "with the adapter", "the best without it", "organism alone"
INSIDE, OUTSIDE = "of categories that it read", "of others"
FALSE = "clean fine-tunes of which it claims a behaviour"


def check_place(out: Path, study: Study) -> None:
    """Raises ConfigError where a figure of another study lies."""
    file = out / "study.json"
    if file.exists() and (there := read_json(file, "remove it")["study"]) != study.name:
        raise ConfigError(f"{file} is the figure of the study {there!r}; give --out another directory")


def write_study(root: Path, figures: Row) -> Path:
    """Writes study.json, plots/*.svg and study.html into a directory; returns the page's path."""
    drawn = plots(figures)
    write_json(root / "study.json", figures)
    for name, svg in drawn.items():
        write_text(root / "plots" / f"{name}.svg", svg)
    write_text(root / "study.html", render(figures, drawn))
    return root / "study.html"


def plots(figures: Row) -> dict[str, str]:
    """{"arms": SVG, and of those arms that have an x, "curve": SVG}; none where nothing is finished."""
    done = [a for a in figures["arms"] if a["finished"]]
    if not done:
        return {}
    title = f"{figures['title']}: reports of organisms that no training read that name the behaviour"
    out = {"arms": dots(title, [(a["label"], _marks(a)) for a in done])}
    placed = [a for a in done if a["x"] is not None]
    if len({a["x"] for a in placed}) > 1:
        out["curve"] = curves(title, figures["axis"], figures["log"], _lines(placed))
    return out


def _marks(arm: Row) -> list[Mark]:
    marks = [Mark(name, cell, colour) for name, cell, colour in _rates(arm)]
    if arm["best"]:
        marks.append(Mark(BEST, best_cell(arm), "ochre", faint=True))
    marks.append(Mark(ALONE, arm["controls"]["organism"], "slate", faint=True))
    return [*marks, Mark(FALSE, arm["false_claims"], "red", faint=True)] if "false_claims" in arm else marks


def _rates(arm: Row) -> list[tuple[str, Row, str]]:
    """With the adapter; of one that read some categories alone, of these and of the others: all together hangs on how
    many there are.
    """
    if "inside" not in arm:
        return [(WITH_IA, arm["lenient"], "teal")]
    return [(INSIDE, arm["inside"], "teal"), (OUTSIDE, arm["outside"], CURVES[1])]


def best_cell(arm: Row) -> Row:
    """The rate of the best of an arm's baselines and controls."""
    return (arm["baselines"] | arm["controls"])[arm["best"]]


def _lines(arms: Sequence[Row]) -> list[Curve]:
    series: dict[str, list[Row]] = {}
    for arm in arms:
        series.setdefault(arm["series"], []).append(arm)
    out: list[Curve] = []
    for name, own in series.items():
        found: dict[str, list[tuple[float, Row]]] = {}
        for arm in own:
            for what, cell, _ in _rates(arm):
                found.setdefault(what, []).append((arm["x"], cell))
        out += [
            Curve(f"{what}, {name}" if name else what, cells, CURVES[(len(out) + i) % len(CURVES)])
            for i, (what, cells) in enumerate(found.items())
        ]
    # Baselines hang on the organisms that are held out and little on the arm: those of one series stand for all.
    first = max(series.values(), key=len)
    best = [(a["x"], best_cell(a)) for a in first if a["best"]]
    alone = [(a["x"], a["controls"]["organism"]) for a in first]
    out += [Curve(BEST, best, "ochre", faint=True), Curve(ALONE, alone, "slate", faint=True)]
    false = [(a["x"], a["false_claims"]) for a in first if "false_claims" in a]
    return [*out, Curve(FALSE, false, "red", faint=True)] if false else out


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def render(figures: Row, drawn: dict[str, str]) -> str:
    """The page. Everything but the plots, which escape what they are given, is escaped here."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": share, "points": points, "titled": titled}
    source = resources.files("ia_jax.studies").joinpath("study_template.html").read_text(encoding="utf-8")
    arms = figures["arms"]
    done = [a for a in arms if a["finished"]]
    return environment.from_string(source).render(
        study=figures,
        style=page_style(),
        plots={name: Markup(svg) for name, svg in drawn.items()},
        done=done,
        waiting=[a for a in arms if len(a["finished"]) < len(a["seeds"])],
        names=BASELINES,
        best=best_cell,
        categories=list(dict.fromkeys(c for a in done for c in a["by_category"])),
        baselines=[n for n in BASELINES if any(n in a["baselines"] or n in a["controls"] for a in done)],
    )


def points(cell: Row | None) -> str:
    """A difference of rates in points, with its interval: "+5 (−3 to +13)"."""
    if not cell:
        return "–"
    value, low, high = map(signed_points, (cell["difference"], *cell["ci95"]))
    return f"{value} ({low} to {high})"
