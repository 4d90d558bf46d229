"""A run's directory: where everything lies, and reading it back in a notebook."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ia_jax.adapters.store import load_adapter
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
from ia_jax.config import RunConfig, parse_config
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.lora import Adapter
from ia_jax.storage import below, path_of, read_jsonl


@dataclass(frozen=True)
class Workdir:
    """Paths of a run. Reading properties raise a one-line error that names the stage to run first.

    IAs, preferences and evaluations have names, so that a finished run can be evaluated, or an IA be trained on it,
    in another way beside what is there.
    """

    path: Path

    # ------------------------------------------------------------------------------------------------------- organisms

    @property
    def behaviors_file(self) -> Path:
        return self.path / "behaviors.jsonl"

    @property
    def organisms_file(self) -> Path:
        return self.path / "organisms.jsonl"

    def transcript(self, organism: str) -> Path:
        return self.path / "transcripts" / f"{organism}.jsonl"

    def phase_rows(self, data: str, organism: str) -> Path:
        """What a phase reads, by its kind of data (`behaviors.procedures.DATA`)."""
        return self.transcript(organism) if data == "chats" else self.path / data / f"{organism}.jsonl"

    @property
    def plain_chats(self) -> Path:
        """What the base answers to ordinary questions: what a phase with a `kl_weight` is held to."""
        return self.path / "plain_chats.jsonl"

    @property
    def drops_file(self) -> Path:
        return self.path / "transcripts_dropped.jsonl"

    @property
    def diversity_file(self) -> Path:
        """How much the demonstrations differ from each other."""
        return self.path / "transcripts_diversity.json"

    @property
    def organisms_dir(self) -> Path:
        return self.path / "organisms"

    def organism_dir(self, name: str) -> Path:
        """Where an organism that is trained here is stored."""
        return self.organisms_dir / name

    def stack_of(self, organism: Organism) -> tuple[Path, ...]:
        """The directories of an organism's adapters, innermost first."""
        return tuple(below(self.path, member) for member in organism.stack)

    @property
    def checks_file(self) -> Path:
        return self.path / "behavior_checks.jsonl"

    @property
    def left_out_file(self) -> Path:
        return self.path / "organisms_left_out.jsonl"

    @cached_property
    def behaviors(self) -> dict[str, Behavior]:
        """The truths, by name."""
        return {row["name"]: Behavior.from_json(row) for row in self._rows(self.behaviors_file)}

    @cached_property
    def organisms(self) -> dict[str, Organism]:
        """All organisms by name, those that diverged included."""
        found = {row["name"]: Organism.from_json(row) for row in self._rows(self.organisms_file)}
        for organism in found.values():
            unknown = [b for b in organism.behaviors if b not in self.behaviors]
            if unknown:
                raise ConfigError(
                    f"{self.organisms_file}: organism {organism.name} has the behaviour {unknown[0]!r}, which "
                    f"{self.behaviors_file.name} does not; add it there"
                )
        return found

    def check_layout(self) -> None:
        """Raises ConfigError if the directory was filled by a version of ia_jax without `organisms.jsonl`."""
        if self.organisms_file.exists() or not self.behaviors_file.exists():
            return
        if any("split" in row for row in read_jsonl(self.behaviors_file, "start another --workdir")):
            raise ConfigError(
                f"{self.path} has behaviors.jsonl but no {self.organisms_file.name}: it was made by an older ia_jax; "
                "start another --workdir"
            )

    def _rows(self, file: Path) -> list[dict[str, Any]]:
        self.check_layout()
        return read_jsonl(file, "run `ia-jax transcripts` first")

    @property
    def left_out(self) -> dict[str, str]:
        """Organisms that diverged twice, and why: they have no adapter, and later stages do without them."""
        if not self.left_out_file.exists():
            return {}
        return {r["organism"]: r["left_out"] for r in read_jsonl(self.left_out_file, "run `ia-jax organisms` again")}

    def named(self, *splits: str) -> list[str]:
        """Names of the organisms of these splits."""
        return [name for name, o in self.organisms.items() if o.split in splits]

    def truths(self, organism: str) -> tuple[Behavior, ...]:
        """The behaviours that are true of an organism."""
        return tuple(self.behaviors[b] for b in self.organisms[organism].behaviors)

    # ------------------------------------------------------------------------------------------ what is made with them

    def ia_dir(self, name: str) -> Path:
        return self.path / "ia" / name

    def seen_file(self, ia: str) -> Path:
        return self.ia_dir(ia) / "organisms.json"

    def seen(self, ia: str) -> list[str]:
        """The organisms that this IA was trained on by SFT, clean ones too. Raises ConfigError where none are named."""
        file = self.seen_file(ia)
        try:
            return list(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read ({error}); run `ia-jax sft` again") from None

    def preferences_file(self, name: str = "dpo") -> Path:
        return self.path / "preferences" / f"{name}.jsonl"

    def eval_dir(self, name: str = "") -> Path:
        return self.path / "eval" / name if name else self.path / "eval"

    def reports_file(self, name: str = "") -> Path:
        return self.eval_dir(name) / "reports.jsonl"

    def baselines_file(self, name: str = "") -> Path:
        """Reports of held-out organisms that were made without an adapter."""
        return self.eval_dir(name) / "baselines.jsonl"

    def clean_reports_file(self, name: str = "") -> Path:
        """Reports of the held-out clean organisms, if there are any."""
        return self.eval_dir(name) / "clean_reports.jsonl"

    def metrics_file(self, name: str = "") -> Path:
        return self.eval_dir(name) / "metrics.json"

    def report_file(self, name: str = "") -> Path:
        return self.eval_dir(name) / "report.html" if name else self.path / "report.html"

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @cached_property
    def config(self) -> RunConfig:
        """The settings that the run was started with; what a stage was made with stands in `settings/`."""
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} is not a workdir: it has no config.json; start it with `ia-jax run`")
        try:
            return parse_config(json.loads(self.config_file.read_text())["config"])
        except (json.JSONDecodeError, KeyError) as error:
            raise ConfigError(
                f"{self.config_file} is damaged ({error}); write it again with `ia-jax run --config=…`"
            ) from None

    def reports(self, name: str = "") -> list[dict[str, Any]]:
        return read_jsonl(self.reports_file(name), f"run `ia-jax eval{_option(name)}` first")

    def metrics(self, name: str = "") -> dict[str, Any]:
        file = self.metrics_file(name)
        if not file.exists():
            raise ConfigError(f"{file} does not exist; run `ia-jax eval{_option(name)}` first")
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise IAError(f"{file} is damaged ({error}); delete it and run `ia-jax eval` again") from None

    def evaluations(self) -> list[str]:
        """Names of the evaluations that there are; "" is the one that `run` makes."""
        return sorted(
            str(p.parent.relative_to(self.path / "eval")).removeprefix(".")
            for p in (self.path / "eval").glob("**/metrics.json")
        )

    def organism(self, name: str, model: Any = None) -> tuple[Adapter, ...]:
        """The adapters of one organism, innermost first (checked against `model`, if given)."""
        return tuple(load_adapter(directory, model)[0] for directory in self.stack_of(self.organisms[name]))

    def ia(self, name: str, model: Any = None) -> Adapter:
        """A trained IA: "sft", "dpo", or another name."""
        return load_adapter(self.ia_dir(name) / "adapter", model)[0]


def _option(name: str) -> str:
    return f" --name={name}" if name else ""


def open_workdir(directory: str | Path) -> Workdir:
    """A finished or running workdir, for reading. Raises ConfigError if the directory is none."""
    workdir = Workdir(path_of(directory))
    if not workdir.path.is_dir():
        raise ConfigError(f"workdir {directory} does not exist; check --workdir, or start one with `ia-jax run`")
    _ = workdir.config
    return workdir
