"""lens.html and its plots, from lens.json: one page, no network, the look of report.html.

Words of behaviours and answers of models are untrusted: Jinja escapes them here, and the plots what they are given.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ia_jax.analysis.plots import Curve, Mark, ceiling_of, curves, dots, heat
from ia_jax.analysis.report import page_style
from ia_jax.analysis.words import share, titled
from ia_jax.storage import write_json, write_text

Row = dict[str, Any]
NAMES = {
    "organism+ia": "organism + IA",
    "organism": "organism alone",
    "base+ia": "base + IA",
    "base": "base",
}
COLOURS = {"organism+ia": "teal", "organism": "ochre", "base+ia": "slate", "base": "soft"}
MEMBERS = {"organism": "the organism", "ia": "the IA"}


def write_lens(directory: Path, found: Row) -> Path:
    """Writes lens.json, plots/*.svg and lens.html; returns the page's path."""
    drawn = plots(found)
    write_json(directory / "lens.json", found)
    for name, svg in drawn.items():
        write_text(directory / "plots" / f"{name}.svg", svg)
    write_text(directory / "lens.html", render(found, drawn))
    return directory / "lens.html"


def plots(found: Row) -> dict[str, str]:
    """{"apart", "first", "heat_organism", "heat_organism_ia" and, with patches, "patching": SVG}."""
    figures = found["figures"]["all"]
    first = [
        *[_curve(NAMES[c], figures["first"][c], COLOURS[c]) for c in NAMES],
        _curve("a stranger's words, organism + IA", figures["first_strange"]["organism+ia"], "red", faint=True),
        _curve("a stranger's words, organism alone", figures["first_strange"]["organism"], "ink", faint=True),
    ]
    every = [c for line in first for _, c in line.points]
    out = {
        "apart": curves(
            "Own key words likelier than those of other behaviours", "layers passed", False, apart_lines(figures)
        ),
        "first": curves(
            f"Key words among the {found['first']} likeliest", "layers passed", False, first, ceiling_of(every)
        ),
    }
    for condition, rows in found["figures"]["heat"].items():
        out[f"heat_{condition.replace('+', '_')}"] = heat(
            f"Own key words likelier than others': {NAMES[condition]}",
            "token of the answer",
            "layers passed",
            [str(n + 1) for n in range(len(rows[0]))],
            rows,
        )
    if found["patching"]:
        out["patching"] = dots("Own description likelier than others'", patch_groups(found["patching"]))
    return out


def apart_lines(figures: Row, key: str = "among_behaviors") -> list[Curve]:
    """By layer, how often an organism's own key words beat others'; beside it, strangers' in their place."""

    def line(which: str, condition: str) -> list[Row]:
        return [cells[key] for cells in figures[which][condition]]

    return [
        *[_curve(NAMES[c], line("apart", c), COLOURS[c]) for c in ("organism+ia", "organism")],
        *[
            _curve(f"a stranger's words, {NAMES[c]}", line("apart_strange", c), colour, faint=True)
            for c, colour in (("organism+ia", "red"), ("organism", "ink"))
        ],
    ]


def _curve(what: str, cells: Sequence[Row], colour: str, faint: bool = False) -> Curve:
    return Curve(what, list(enumerate(cells)), colour, faint)


def patch_groups(patching: Row, key: str = "among_behaviors") -> list[tuple[str, list[Mark]]]:
    """A group for each band, and one with both adapters whole."""
    groups = [
        (
            "all layers",
            [
                Mark("both whole", patching["whole"][key], "ink"),
                Mark("no IA", patching["without_ia"][key], "ochre", faint=True),
            ],
        )
    ]
    for band in dict.fromkeys(tuple(r["band"]) for r in patching["rows"]):
        own = [r for r in patching["rows"] if tuple(r["band"]) == band]
        marks = [
            Mark(f"{MEMBERS[r['member']]} {_where(r['where'])}", r[key], _shade(r["member"]), r["where"] == "without")
            for r in sorted(own, key=lambda r: (r["member"], r["where"]))
        ]
        groups.append((f"layers {band[0]}:{band[1]}", marks))
    return groups


def _where(where: str) -> str:
    return "only there" if where == "only" else "everywhere but there"


def _shade(member: str) -> str:
    return "teal" if member == "ia" else "slate"


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def depths(layers: int) -> list[int]:
    """The embeddings, and the states after each quarter of the layers."""
    return sorted({round(layers * n / 4) for n in range(5)})


def render(found: Row, drawn: dict[str, str]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": share, "number": number, "titled": titled}
    source = resources.files("ia_jax.analysis").joinpath("lens_template.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        lens=found,
        figures=found["figures"],
        names=NAMES,
        told=("organism", "organism+ia"),
        depths=depths(found["layers"]),
        style=page_style(),
        plots={name: Markup(svg) for name, svg in drawn.items()},
        headings=HEADINGS,
    )


HEADINGS = {
    "apart": "Is it there, and from which layer on?",
    "first": "Is it on the tip of the tongue?",
    "heat_organism": "By layer and token: the organism alone",
    "heat_organism_ia": "By layer and token: organism + IA",
    "patching": "Through which layers do reports go?",
}


def number(cell: Row) -> str:
    """A mean with its interval: "3.1 (2.9 to 3.3)"."""
    if cell["mean"] is None:
        return "–"
    low, high = cell["ci95"]
    return f"{cell['mean']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
