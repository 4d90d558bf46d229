"""report.html of a finished workdir: one file, no network, safe to open whatever the models wrote.

`load_run` reads the files, `tables` and `curves` turn them into plain numbers and texts, and `render_html` fills
`report_template.html`. The same workdir always gives the same bytes. Text of models is untrusted: Jinja escapes what
goes into the markup, `json_for_script` what goes into the embedded JSON, and the page inserts that as text only.
"""

import base64
import hashlib
import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ia_jax.analysis.audit_tables import audit_tables
from ia_jax.analysis.curves import curve_panels
from ia_jax.analysis.run_files import RunFiles, load_run
from ia_jax.analysis.tables import (
    baseline_groups,
    category_groups,
    check_rows,
    clean_rows,
    condition_groups,
    final_stage,
    headline,
    kept_out,
    pack_reports,
    part_rows,
    preference_kinds,
    provenance,
)
from ia_jax.analysis.words import STAGES
from ia_jax.behaviors.records import CLEAN
from ia_jax.storage import write_text


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end or open an element inside <script type="application/json">; ASCII, so no U+2028 either."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def csp_hash(script: str) -> Markup:
    """The source expression that allows exactly this inline script."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


def template_source() -> str:
    return resources.files("ia_jax.analysis").joinpath("report_template.html").read_text(encoding="utf-8")


def page_style() -> Markup:
    """The page's style sheet, for other pages that are to look like it. It holds nothing of any run."""
    return Markup(template_source().partition("<style>")[2].partition("</style>")[0])


def render_html(run: RunFiles) -> str:
    taught = [b for b in run.organisms if b.get("category") != CLEAN]
    splits = Counter(b.get("split") for b in taught)
    losses, others = curve_panels(run.curves)
    by_category = [
        (s, f"After {STAGES[s]}", category_groups(run.metrics, run.reports, s))
        for s in reversed(STAGES)
        if s in run.metrics["stages"]
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"csp_hash": csp_hash, "json": json_for_script, "thousands": lambda n: f"{n:,}"}
    html = environment.from_string(template_source()).render(
        head=headline(run.metrics, run.reports),
        judge=run.metrics.get("judge", ""),
        rule=run.metrics.get("rule", "lenient"),
        splits=splits,
        organisms=len(taught),
        clean=len(run.organisms) - len(taught),
        triggered=sum(bool(b.get("trigger")) for b in taught),
        categories=len({b.get("category") for b in taught}),
        by_condition=[
            (s, t, condition_groups(run.metrics, s))
            for s, t in (
                ("heldout", "Held-out organisms"),
                ("unseen", "Organisms of another catalogue"),
                ("remade", "Other organisms of behaviours seen in SFT"),
                ("train", "Organisms seen in SFT"),
            )
        ],
        by_category=by_category,
        baselines=baseline_groups(run.metrics, final_stage(run.metrics)),
        parts=part_rows(run.metrics, final_stage(run.metrics)),
        clean_sorts=clean_rows(run.metrics, final_stage(run.metrics)),
        few=any(0 < g["organisms"] < 5 for *_, groups in by_category for g in groups),
        checks=check_rows(c for c in run.checks if c.get("category") != CLEAN),
        kept_out=kept_out(run),
        audits=audit_tables(run.audits),
        losses=losses,
        others=others,
        kinds=preference_kinds(run.preferences),
        pairs=len(run.preferences),
        data=pack_reports(run.reports, run.organisms),
        from_run=provenance(run.config),
    )
    return html.lstrip().encode("utf-8", "replace").decode("utf-8")  # a model may write half a surrogate pair


def write_report(workdir: Path, name: str = "") -> Path:
    """Writes the page of an evaluation, report.html or eval/<name>/report.html, and returns its path.

    Raises ConfigError when the run has not been evaluated.
    """
    path = workdir / "eval" / name / "report.html" if name else workdir / "report.html"
    write_text(path, render_html(load_run(workdir, name)))
    return path
