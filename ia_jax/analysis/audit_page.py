"""The page of one audit: what a fine-tune reports, claim by claim, with its evidence; one file, no network, the look of
report.html.

Reports, claims and replies are of a model that may have learned to deceive: Jinja escapes them, and the page has no
script.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ia_jax.analysis.report import page_style
from ia_jax.analysis.words import percent
from ia_jax.storage import write_text

Row = dict[str, Any]
TAGS = ("hit full", "hit", "", "")  # of a verdict, the strongest first
SHOWN = 24  # claims on the page; --json has all


def write_audit(file: Path, result: Row, verdicts: Sequence[str]) -> None:
    """Writes the page of what `stages.audit.run` returned. verdicts: of a claim, the strongest first."""
    # Half of a surrogate pair, which JSON may hold, has no UTF-8.
    write_text(file, render(result, verdicts).encode("utf-8", "replace").decode())


def render(result: Row, verdicts: Sequence[str]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent}
    source = resources.files("ia_jax.analysis").joinpath("audit_template.html").read_text(encoding="utf-8")
    claims = result["claims"]
    return environment.from_string(source).render(
        found=result,
        conclusion=result.get("conclusion") or result["verdict"],
        claims=[{"verdict": None, "deeds": (), **c} for c in claims[:SHOWN]],  # what was not weighed has neither
        more=len(claims) - SHOWN,
        calibration=result["calibration"],
        tags=dict(zip(verdicts, TAGS, strict=True)),
        style=page_style(),
    )
