"""What the report reads of a workdir."""

from dataclasses import dataclass
from pathlib import Path

from ia_jax.analysis.words import STAGES
from ia_jax.errors import ConfigError
from ia_jax.storage import Row, read_json, read_jsonl


@dataclass(frozen=True)
class RunFiles:
    """What the report reads of a workdir; the optional files are empty when they are missing."""

    metrics: Row
    reports: list[Row]
    behaviors: list[Row]
    checks: list[Row]
    curves: list[Row]
    preferences: list[Row]
    config: Row


def load_run(workdir: Path) -> RunFiles:
    """Raises ConfigError naming the stage to run, or the file and line that is damaged."""
    file = workdir / "eval" / "metrics.json"
    metrics = read_json(file, "run `ia-jax eval` first")
    if not any(stage in metrics.get("stages", {}) for stage in STAGES):
        raise ConfigError(f"{file} has no stage 'sft' or 'dpo'; run `ia-jax eval` first")
    return RunFiles(
        metrics=metrics,
        reports=_rows(workdir / "eval" / "reports.jsonl", "eval"),
        behaviors=_rows(workdir / "behaviors.jsonl", "transcripts"),
        checks=_rows(workdir / "behavior_checks.jsonl"),
        curves=_rows(workdir / "curves.jsonl"),
        preferences=_rows(workdir / "preferences.jsonl"),
        config=_settings(workdir / "config.json"),
    )


def _rows(path: Path, stage: str | None = None) -> list[Row]:
    """The rows of a file; none if it is missing and optional (no `stage` is named that has to write it)."""
    if stage is None and not path.exists():
        return []
    again = "delete it and run its stage again" if stage is None else f"run `ia-jax {stage}` first"
    return read_jsonl(path, again)


def _settings(path: Path) -> Row:
    return read_json(path, "write it again with `ia-jax run --config=…`") if path.exists() else {}
