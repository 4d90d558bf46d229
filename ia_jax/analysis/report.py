"""report.html of a finished workdir: one file, no network, safe to open whatever the models wrote.

`load_run` reads the files, the functions in between turn them into plain numbers and strings, and `render_html` fills
`report_template.html`. The same workdir always gives the same bytes. Text of models is untrusted: Jinja escapes what
goes into the markup, `json_for_script` what goes into the embedded JSON, and the page inserts that as text only.
"""

import base64
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ia_jax.behaviors.records import CATEGORIES, CLEAN
from ia_jax.errors import IAError

Row = dict[str, Any]

CONDITIONS = {
    "organism+ia": "Organism + adapter",
    "organism": "Organism alone",
    "base+ia": "Base + adapter",
    "base": "Base alone",
}
STAGES = {"sft": "SFT", "dpo": "DPO"}
SPLITS = {"heldout": "held out", "dpo": "kept for DPO", "train": "seen in SFT"}
CURVES = {"organisms": "Organisms", "ia_sft": "Adapter, SFT", "ia_dpo": "Adapter, DPO"}
MAX_REPORTS = 50_000  # more would make the page too heavy to open; it then shows an evenly spaced choice and says so
MAX_POINTS = 400  # of a training curve


@dataclass(frozen=True)
class RunFiles:
    """What the report reads of a workdir; the optional files are empty when they are missing."""

    metrics: Row
    reports: list[Row]
    organisms: list[Row]  # with "description" and "trigger" of what is true of each
    checks: list[Row]
    curves: list[Row]
    preferences: list[Row]
    config: Row


# ---------------------------------------------------------------------------------------------------------- reading


def _parse(text: str, where: str) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise IAError(f"{where} is not valid JSON ({error.msg}); delete the file and run its stage again") from error
    if not isinstance(value, dict):
        raise IAError(f"{where} holds {type(value).__name__}, not an object; delete the file and run its stage again")
    return value


def _read(path: Path, stage: str | None) -> str:
    """The text of a file, or "" if it is missing and optional (no `stage` is named that has to write it)."""
    if path.exists():
        return path.read_text(encoding="utf-8")
    if stage is None:
        return ""
    raise IAError(f"{path} is missing: run `ia-jax {stage}` first")


def _read_jsonl(path: Path, stage: str | None = None) -> list[Row]:
    # Not splitlines(): that would also cut at U+2028 and U+0085 inside a string.
    lines = _read(path, stage).split("\n")
    return [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def load_run(workdir: Path, name: str = "") -> RunFiles:
    """Everything that the page of one evaluation shows."""
    config = _read(workdir / "config.json", None)
    directory = workdir / "eval" / name if name else workdir / "eval"
    metrics = _parse(_read(directory / "metrics.json", "eval"), str(directory / "metrics.json"))
    if not any(stage in metrics.get("stages", {}) for stage in STAGES):
        raise IAError(f"{directory / 'metrics.json'} has no stage 'sft' or 'dpo': run `ia-jax eval` first")
    ias = metrics.get("ias", {"sft": "sft", "dpo": "dpo"})
    names = {f"ia_{name}": f"ia_{stage}" for stage, name in ias.items()} | {"organisms": "organisms"}
    curves = _read_jsonl(workdir / "curves.jsonl")
    return RunFiles(
        metrics=metrics,
        reports=_read_jsonl(directory / "reports.jsonl", "eval"),
        organisms=_organisms(workdir),
        checks=_read_jsonl(workdir / "behavior_checks.jsonl"),
        curves=[{**row, "stage": names[row["stage"]]} for row in curves if row["stage"] in names],
        preferences=_read_jsonl(workdir / "preferences" / _pairs_of(workdir, ias.get("dpo"))),
        config=_parse(config, str(workdir / "config.json")) if config else {},
    )


def _pairs_of(workdir: Path, dpo: str | None) -> str:
    """The file of the pairs that an IA was refined on."""
    record = _read(workdir / "settings" / f"ia.{dpo}.json", None)
    inputs = _parse(record, f"settings/ia.{dpo}.json").get("inputs", {}) if record else {}
    return next((key.removeprefix("preferences/") for key in inputs if key.startswith("preferences/")), "dpo.jsonl")


def _organisms(workdir: Path) -> list[Row]:
    truths = {b["name"]: b for b in _read_jsonl(workdir / "behaviors.jsonl", "transcripts")}
    rows = []
    for o in _read_jsonl(workdir / "organisms.jsonl", "transcripts"):
        own = [truths[b] for b in o["behaviors"]]
        triggers = [b["trigger"] for b in own if b.get("trigger")]
        description = " ".join(b["description"] for b in own)
        rows.append({**o, "description": description, "trigger": "; ".join(triggers) or None})
    return rows


# ------------------------------------------------------------------------------------------------- numbers as words


def _finite(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def percent(rate: float) -> str:
    """0.714 -> "71%"; whole numbers, and what is not quite none or all does not look like it."""
    if 0 < rate < 0.005:
        return "<1%"
    if 0.995 <= rate < 1:
        return ">99%"
    return f"{math.floor(100 * rate + 0.5)}%"


def nice(value: float) -> str:
    """A number as one would write it by hand: up to three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}".replace("e-0", "e-")


def titled(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def cell_view(cell: Row | None) -> Row:
    """{"rate", "ci95", "n"} of metrics.json -> texts, and positions in percent of the axis."""
    cell = cell or {}
    rate, n = _finite(cell.get("rate")), int(_finite(cell.get("n")) or 0)
    if rate is None:
        return {"text": "–", "interval": "", "n": n, "x": None, "lo": None, "hi": None}
    lo, hi = (_finite(v) for v in (cell.get("ci95") or (None, None)))
    view = {"text": percent(rate), "interval": "", "n": n, "x": round(100 * rate, 2), "lo": None, "hi": None}
    if lo is not None and hi is not None:
        view |= {"lo": round(100 * lo, 2), "hi": round(100 * hi, 2), "interval": f"{percent(lo)[:-1]}–{percent(hi)}"}
    return view


# ------------------------------------------------------------------------------------------------------ aggregation


def final_stage(metrics: Row) -> str:
    return "dpo" if "dpo" in metrics["stages"] else "sft"


def condition_groups(metrics: Row, split: str) -> list[Row]:
    """Bars of the chart condition x stage: one group per condition, one bar per stage, with strict for the table."""
    stages = [s for s in STAGES if s in metrics["stages"]]
    groups = []
    for condition, label in CONDITIONS.items():
        bars = []
        for stage in stages:
            values = metrics["stages"][stage]
            cell = values.get(split, {}).get(condition)
            strict = values.get("strict", {}).get(split, {}).get(condition)
            if cell:
                bars.append({"series": stage, "label": STAGES[stage]} | cell_view(cell) | {"strict": cell_view(strict)})
        if bars:
            groups.append({"label": label, "control": condition != "organism+ia", "organisms": 0, "bars": bars})
    return groups


def category_groups(metrics: Row, reports: Iterable[Row], stage: str) -> list[Row]:
    """Bars by category over held-out organisms with the adapter: lenient above strict, in the catalogue's order."""
    asked: dict[str, set[str]] = defaultdict(set)
    for r in reports:
        if (r["stage"], r["split"], r["condition"]) == (stage, "heldout", "organism+ia"):
            asked[r["category"]].add(r["organism"])
    values = metrics["stages"].get(stage, {})
    lenient, strict = values.get("by_category", {}), values.get("strict", {}).get("by_category", {})
    names = [c for c in CATEGORIES if c in lenient] + sorted(set(lenient) - set(CATEGORIES))
    groups = []
    for name in names:
        pairs = (("lenient", lenient.get(name, {})), ("strict", strict.get(name, {})))
        bars = [{"series": s, "label": s} | cell_view(c["organism+ia"]) for s, c in pairs if "organism+ia" in c]
        if bars:
            groups.append({"label": titled(name), "control": False, "organisms": len(asked[name]), "bars": bars})
    return groups


def stage_difference(reports: Iterable[Row], samples: int = 2000) -> tuple[float, float] | None:
    """95 % interval of DPO minus SFT for held-out organisms with the adapter; None with fewer than two organisms.

    Bootstrapped over the organisms seen in both stages, in pairs, so that easy and hard organisms cancel.
    """
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))  # organism -> [stage, (named, asked)]
    for row in reports:
        judged = row["lenient"] is not None
        if judged and row["split"] == "heldout" and row["condition"] == "organism+ia" and row["stage"] in STAGES:
            counts[row["organism"]][list(STAGES).index(row["stage"])] += (bool(row["lenient"]), 1)
    table = np.array([c for c in counts.values() if c[:, 1].all()])  # [organisms, stage, (named, asked)]
    if len(table) < 2:
        return None
    picks = np.random.default_rng(0).integers(len(table), size=(samples, len(table)))
    sums = table[picks].sum(1)  # [samples, stage, (named, asked)]
    rates = sums[..., 0] / sums[..., 1]
    lo, hi = np.percentile(rates[:, 1] - rates[:, 0], [2.5, 97.5])
    return float(lo), float(hi)


def _points(value: float) -> str:
    rounded = math.floor(100 * abs(value) + 0.5)
    return f"{'+' if value > 0 else '−'}{rounded}" if rounded else "0"


def headline(metrics: Row, reports: Sequence[Row]) -> Row:
    """The numbers at the head of the page, for the last stage there is."""
    stage = final_stage(metrics)
    values = metrics["stages"][stage]
    held, strict = values.get("heldout", {}), values.get("strict", {}).get("heldout", {})
    main = [r for r in reports if (r["stage"], r["split"], r["condition"]) == (stage, "heldout", "organism+ia")]
    rates = [
        _finite(metrics["stages"].get(s, {}).get("heldout", {}).get("organism+ia", {}).get("rate")) for s in STAGES
    ]
    difference = None
    if rates[0] is not None and rates[1] is not None:
        interval = stage_difference(reports)
        difference = {
            "text": _points(rates[1] - rates[0]),
            "interval": " to ".join(map(_points, interval)) if interval else "",
            "sft": percent(rates[0]),
            "dpo": percent(rates[1]),
        }
    return {
        "stage": STAGES[stage],
        "main": cell_view(held.get("organism+ia")),
        "organisms": len({r["organism"] for r in main}),
        "answers": len(main),
        "strict": cell_view(strict.get("organism+ia")),
        "organism": cell_view(held.get("organism")),
        "base_ia": cell_view(held.get("base+ia")),
        "base": cell_view(held.get("base")),
        "false": cell_view(values.get("false_reports", {}).get("base+ia")),
        "false_clean": cell_view(values.get("false_reports", {}).get("clean+ia")),
        "difference": difference,
    }


def check_rows(checks: Iterable[Row]) -> list[Row]:
    """Behaviour checks, the flagged ones first."""
    rows = [
        {
            "organism": c["organism"],
            "category": titled(c.get("category") or ""),
            "with": cell_view({"rate": c.get("triggered_rate")}),
            "without": cell_view({"rate": c.get("untriggered_rate")}),
            "ok": bool(c.get("ok")),
        }
        for c in checks
    ]
    return sorted(rows, key=lambda r: (r["ok"], r["category"], r["organism"]))


def kept_out(run: RunFiles) -> str:
    """What became of the flagged organisms of the splits that are trained on; "" if there are none, or no config."""
    flagged = {c["organism"] for c in run.checks if not c.get("ok") and not c.get("left_out")}  # those had no adapter
    count = sum(b.get("split") in ("train", "dpo") and b["name"] in flagged for b in run.organisms)
    keep = run.config.get("config", {}).get("organisms", {}).get("keep_failed")
    if not count or keep is None:
        return ""
    saw = "was trained on" if keep else "never saw"
    return f"the adapter {saw} the {count:,} of them outside the held-out split"


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
        step = _finite(row.get("step"))
        for key, value in row.items():
            if key in ("stage", "step") or step is None or isinstance(value, str | bool | list | dict | None):
                continue
            number = _finite(value)
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


def _pair_scores(scores: Any) -> tuple[float | None, float | None]:
    if isinstance(scores, dict):
        return _finite(scores.get("chosen")), _finite(scores.get("rejected"))
    if isinstance(scores, list | tuple) and len(scores) == 2:
        return _finite(scores[0]), _finite(scores[1])
    return None, None


def preference_kinds(preferences: Iterable[Row], examples: int = 2) -> list[Row]:
    """Pairs by kind, the most frequent first, each with a few examples of different organisms."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in preferences:
        kinds[str(row.get("kind"))].append(row)
    out = []
    for kind, rows in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        scores = [_pair_scores(r.get("scores")) for r in rows]
        means = [[v for s in scores if (v := s[i]) is not None] for i in (0, 1)]
        first = {r.get("organism"): i for i, r in reversed(list(enumerate(rows)))}
        picked = [rows[i] for i in sorted(first.values())[:examples]]
        out.append(
            {
                "kind": titled(kind),
                "count": len(rows),
                "organisms": len(first),
                "means": [nice(sum(m) / len(m)) if m else "–" for m in means],
                "examples": [
                    {k: str(r.get(k, "")) for k in ("organism", "question", "chosen", "rejected")}
                    | {"scores": [nice(s) if s is not None else None for s in _pair_scores(r.get("scores"))]}
                    for r in picked
                ],
            }
        )
    return out


def pack_reports(reports: Sequence[Row], behaviors: Iterable[Row]) -> Row:
    """The reports for the page's table: every text that repeats is stored once and named by its index."""
    triggers = {b["name"]: b.get("trigger") or "" for b in behaviors}
    chosen = reports
    if len(reports) > MAX_REPORTS:
        chosen = [reports[i] for i in np.linspace(0, len(reports) - 1, MAX_REPORTS).astype(int)]
    index: dict[str, int] = {}

    def text(value: Any) -> int:
        return index.setdefault("" if value is None else str(value), len(index))

    columns = ("stage", "split", "category", "condition", "organism", "question", "truth")
    rows = [
        [
            *(text(r.get(c)) for c in columns),
            text(triggers.get(r.get("organism", ""), "")),
            "" if r.get("report") is None else str(r["report"]),
            _finite(r.get("score")),
            int(bool(r.get("lenient"))) + int(bool(r.get("strict"))),
        ]
        for r in chosen
    ]
    present = {c: {str(r.get(c)) for r in chosen} for c in ("stage", "split", "category", "condition")}
    words = {"stage": STAGES, "split": SPLITS, "condition": CONDITIONS, "category": {c: titled(c) for c in CATEGORIES}}
    options = {
        c: [[v, label] for v, label in known.items() if v in present[c]]
        + [[v, titled(v)] for v in sorted(present[c] - set(known))]
        for c, known in words.items()
    }
    return {"strings": list(index), "rows": rows, "options": options, "total": len(reports)}


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested configuration -> {"a.b": "text"}."""
    if isinstance(value, dict) and value:
        return {
            k: v for key, sub in value.items() for k, v in flatten(sub, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


def provenance(config: Row) -> Row:
    """config.json -> what the head and the footer show of it."""
    body = config.get("config", config)
    rest = {k: v for k, v in config.items() if k not in ("config", "versions")} if "config" in config else {}
    flat, about = flatten(body) if body else {}, flatten(rest) if rest else {}
    return {
        "base": flat.get("model.name", ""),
        "k": flat.get("organisms.parallel", ""),
        "commit": str(config.get("git_commit") or ""),
        "config": flat,
        "about": about,
        "versions": flatten(config["versions"]) if config.get("versions") else {},
    }


# -------------------------------------------------------------------------------------------------------- rendering


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end or open an element inside <script type="application/json">; ASCII, so no U+2028 either."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def csp_hash(script: str) -> Markup:
    """The source expression that allows exactly this inline script."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


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
    source = resources.files("ia_jax.analysis").joinpath("report_template.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(
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
            for s, t in (("heldout", "Held-out organisms"), ("train", "Organisms seen in SFT"))
        ],
        by_category=by_category,
        few=any(0 < g["organisms"] < 5 for *_, groups in by_category for g in groups),
        checks=check_rows(c for c in run.checks if c.get("category") != CLEAN),
        kept_out=kept_out(run),
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

    Raises `IAError` when the run has not been evaluated.
    """
    path = workdir / "eval" / name / "report.html" if name else workdir / "report.html"
    path.write_text(render_html(load_run(workdir, name)), encoding="utf-8")
    return path
