"""A run's directory: where everything lies, what it was made with, and reading it back in a notebook."""

import dataclasses
import importlib.metadata
import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ia_jax.adapters.store import load_adapter
from ia_jax.behaviors.records import Behavior
from ia_jax.config import RunConfig, config_hash, parse_config
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.lora import Adapter
from ia_jax.storage import read_jsonl

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "ml-collections")


@dataclass(frozen=True)
class Workdir:
    """Paths of a run. Reading properties raise a one-line error that names the stage to run first."""

    path: Path

    @property
    def behaviors_file(self) -> Path:
        return self.path / "behaviors.jsonl"

    def transcript(self, name: str) -> Path:
        return self.path / "transcripts" / f"{name}.jsonl"

    @property
    def drops_file(self) -> Path:
        return self.path / "transcripts_dropped.jsonl"

    @property
    def organisms_dir(self) -> Path:
        return self.path / "organisms"

    def organism_dir(self, name: str) -> Path:
        return self.organisms_dir / name

    @property
    def checks_file(self) -> Path:
        return self.path / "behavior_checks.jsonl"

    @property
    def left_out_file(self) -> Path:
        return self.path / "organisms_left_out.jsonl"

    @property
    def left_out(self) -> dict[str, str]:
        """Organisms that diverged twice, and why: they have no adapter, and later stages do without them."""
        if not self.left_out_file.exists():
            return {}
        return {r["organism"]: r["left_out"] for r in read_jsonl(self.left_out_file, "run `ia-jax organisms` again")}

    @property
    def preferences_file(self) -> Path:
        return self.path / "preferences.jsonl"

    def ia_dir(self, stage: str) -> Path:
        return self.path / f"ia_{stage}"

    @property
    def reports_file(self) -> Path:
        return self.path / "eval" / "reports.jsonl"

    @property
    def clean_reports_file(self) -> Path:
        """Reports of the held-out clean organisms, if there are any."""
        return self.path / "eval" / "clean_reports.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "eval" / "metrics.json"

    @cached_property
    def config(self) -> RunConfig:
        file = self.path / "config.json"
        if not file.exists():
            raise ConfigError(f"{self.path} is not a workdir: it has no config.json; start it with `ia-jax run`")
        try:
            return parse_config(json.loads(file.read_text())["config"])
        except (json.JSONDecodeError, KeyError) as error:
            raise ConfigError(f"{file} is damaged ({error}); write it again with `ia-jax run --config=…`") from None

    @cached_property
    def splits(self) -> dict[str, str]:
        return {row["name"]: row["split"] for row in self._behavior_rows}

    @cached_property
    def behaviors(self) -> dict[str, Behavior]:
        return {row["name"]: Behavior.from_json(row) for row in self._behavior_rows}

    @cached_property
    def _behavior_rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.behaviors_file, "run `ia-jax transcripts` first")

    def named(self, split: str) -> list[str]:
        return [name for name, s in self.splits.items() if s == split]

    @property
    def reports(self) -> list[dict[str, Any]]:
        return read_jsonl(self.reports_file, "run `ia-jax eval` first")

    @property
    def metrics(self) -> dict[str, Any]:
        if not self.metrics_file.exists():
            raise ConfigError(f"{self.metrics_file} does not exist; run `ia-jax eval` first")
        try:
            return json.loads(self.metrics_file.read_text())
        except ValueError as error:
            raise IAError(f"{self.metrics_file} is damaged ({error}); delete it and run `ia-jax eval` again") from None

    def organism(self, name: str, model: Any = None) -> Adapter:
        """The adapter of one organism (checked against `model`, if given)."""
        return load_adapter(self.organism_dir(name), model)[0]

    def ia(self, stage: str, model: Any = None) -> Adapter:
        """The IA after a stage: "sft" or "dpo"."""
        return load_adapter(self.ia_dir(stage) / "adapter", model)[0]


def open_workdir(directory: str | Path) -> Workdir:
    """A finished or running workdir, for reading. Raises ConfigError if the directory is none."""
    workdir = Workdir(Path(directory))
    if not workdir.path.is_dir():
        raise ConfigError(f"workdir {directory} does not exist; check --workdir, or start one with `ia-jax run`")
    _ = workdir.config
    return workdir


def start_workdir(directory: str | Path, config: RunConfig) -> Workdir:
    """Creates the directory or continues in it. Raises if it belongs to a run with other settings.

    The caller sees to it that nobody else works there. Readers need no lock: they find the old config or the new one.
    """
    path = Path(directory)
    file, temporary = path / "config.json", path / "config.partial"
    body = {
        "config": dataclasses.asdict(config),
        "hash": config_hash(config),
        "versions": {p: _version(p) for p in PACKAGES},
        "git_commit": _git_commit(),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        # While nothing was made with a config, a mended one may take its place.
        made = {p.name for p in path.iterdir()} - {file.name, temporary.name, ".lock"}
        stored = Workdir(path).config if made and file.exists() else None
        if stored is not None:
            # How Claude is called (a higher cap, say) may change on the way, the machine, and how its memory is saved.
            model = dataclasses.replace(stored.model, remat=config.model.remat)
            same = dataclasses.replace(stored, claude=config.claude, mesh=config.mesh, model=model)
            changed = _first_difference(dataclasses.asdict(same), dataclasses.asdict(config))
            if changed:
                raise ConfigError(
                    f"{path} belongs to a run with other settings: {changed}; use another --workdir or the old config"
                )
        if stored != config:
            temporary.write_text(json.dumps(body, indent=1))
            temporary.replace(file)
    except OSError as error:
        raise IAError(f"cannot write to the workdir {path}: {error.strerror}; choose another --workdir") from None
    return Workdir(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_difference(old: Any, new: Any, where: str = "config") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            found = _first_difference(old.get(key), new[key], f"{where}.{key}")
            if found:
                return found
        return None
    same = old == new or (isinstance(old, list | tuple) and list(old) == list(new))
    return None if same else f"{where} was {old!r} and is now {new!r}"


def _git_commit() -> str | None:
    try:
        root = Path(__file__).parent
        out = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None
