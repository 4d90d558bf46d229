"""What the report reads of a workdir."""

from dataclasses import dataclass, field
from pathlib import Path

from ia_jax.analysis.words import STAGES
from ia_jax.errors import ConfigError
from ia_jax.storage import Row, read_json, read_jsonl


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
    audits: list[Row] = field(default_factory=list)  # metrics of each family that was audited


def load_run(workdir: Path, name: str = "") -> RunFiles:
    """Everything that the page of one evaluation shows.

    Raises ConfigError naming the stage to run, or the file and line that is damaged.
    """
    directory = workdir / "eval" / name if name else workdir / "eval"
    metrics = read_json(directory / "metrics.json", "run `ia-jax eval` first")
    if not any(stage in metrics.get("stages", {}) for stage in STAGES):
        raise ConfigError(f"{directory / 'metrics.json'} has no stage 'sft' or 'dpo'; run `ia-jax eval` first")
    ias = metrics.get("ias", {"sft": "sft", "dpo": "dpo"})
    names = {f"ia_{name}": f"ia_{stage}" for stage, name in ias.items()} | {"organisms": "organisms"}
    curves = _rows(workdir / "curves.jsonl")
    return RunFiles(
        metrics=metrics,
        reports=_rows(directory / "reports.jsonl", "eval"),
        organisms=_organisms(workdir),
        checks=_rows(workdir / "behavior_checks.jsonl"),
        curves=[{**row, "stage": names[row["stage"]]} for row in curves if row["stage"] in names],
        preferences=_rows(workdir / "preferences" / _pairs_of(workdir, ias.get("dpo"))),
        config=_optional(workdir / "config.json"),
        audits=[_optional(p) for p in sorted((workdir / "audits").glob("*/metrics.json"))],
    )


def _pairs_of(workdir: Path, dpo: str | None) -> str:
    """The file of the pairs that an IA was refined on."""
    inputs = _optional(workdir / "settings" / f"ia.{dpo}.json").get("inputs", {})
    return next((key.removeprefix("preferences/") for key in inputs if key.startswith("preferences/")), "dpo.jsonl")


def _organisms(workdir: Path) -> list[Row]:
    truths = {b["name"]: b for b in _rows(workdir / "behaviors.jsonl", "transcripts")}
    rows = []
    for o in _rows(workdir / "organisms.jsonl", "transcripts"):
        own = [truths[b] for b in o["behaviors"]]
        triggers = [b["trigger"] for b in own if b.get("trigger")]
        description = " ".join(b["description"] for b in own)
        rows.append({**o, "description": description, "trigger": "; ".join(triggers) or None})
    return rows


def _rows(path: Path, stage: str | None = None) -> list[Row]:
    """The rows of a file; none if it is missing and optional (no `stage` is named that has to write it)."""
    if stage is None and not path.exists():
        return []
    again = "delete it and run its stage again" if stage is None else f"run `ia-jax {stage}` first"
    return read_jsonl(path, again)


def _optional(path: Path) -> Row:
    return read_json(path, "delete it and run its stage again") if path.exists() else {}
