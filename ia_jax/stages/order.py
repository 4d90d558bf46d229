"""The stages: their order, where each one's function is, what it needs and writes, and when it is finished.

Nothing heavy is imported here, so that `ia-jax --help` is instant.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ia_jax.errors import ConfigError

if TYPE_CHECKING:
    from ia_jax.workdir import Workdir


@dataclass(frozen=True)
class Stage:
    """A stage: where its function is, what it needs and writes, and about how long the demo takes on two cores."""

    name: str
    module: str
    function: str
    summary: str
    writes: str
    minutes: str


STAGES = (
    Stage(
        "transcripts",
        "ia_jax.stages.transcripts",
        "run",
        "choose behaviours, split them, write every organism's demonstrations",
        "behaviors.jsonl, transcripts/<organism>.jsonl",
        "about 1 minute",
    ),
    Stage(
        "organisms",
        "ia_jax.stages.organisms",
        "run",
        "train the organisms, many at once, and check that each shows its behaviour",
        "organisms/<organism>/ (Orbax), behavior_checks.jsonl",
        "about 10 minutes; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "sft",
        "ia_jax.stages.introspection",
        "run_sft",
        "train the introspection adapter (IA) jointly over the train organisms",
        "ia_sft/adapter (Orbax), ia_sft/peft, ia_sft/state (checkpoints)",
        "about 4 minutes; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "preferences",
        "ia_jax.stages.preferences",
        "run",
        "sample reports on the dpo organisms, judge them, pair them",
        "preferences.jsonl",
        "about 1 minute",
    ),
    Stage(
        "dpo",
        "ia_jax.stages.introspection",
        "run_dpo",
        "refine the IA on the preference pairs",
        "ia_dpo/adapter (Orbax), ia_dpo/peft, ia_dpo/state (checkpoints)",
        "about 1 minute; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "eval",
        "ia_jax.stages.evaluation",
        "run",
        "what held-out organisms report, under the four conditions, after SFT and after DPO",
        "eval/reports.jsonl, eval/metrics.json",
        "about 1 minute",
    ),
    Stage("report", "", "", "write the report that a person opens", "report.html (self-contained)", "seconds"),
)

_NEEDS = {
    "organisms": ("transcripts",),
    "sft": ("transcripts", "organisms"),
    "preferences": ("transcripts", "organisms", "sft"),
    "dpo": ("transcripts", "organisms", "sft", "preferences"),
    "eval": ("transcripts", "organisms", "sft"),
}


def is_done(workdir: "Workdir", stage: str) -> bool:
    """Whether a stage has written everything that it writes. Of several processes the first looks, for all."""
    from ia_jax.parallel.distributed import on_main_process

    return on_main_process(lambda: _is_done(workdir, stage))


def _is_done(workdir: "Workdir", stage: str) -> bool:
    from ia_jax.adapters.store import is_complete

    if stage == "transcripts":
        return workdir.behaviors_file.exists()
    if stage == "organisms":
        return workdir.checks_file.exists() and all(
            is_complete(workdir.organism_dir(n)) for n in workdir.behaviors.keys() - workdir.left_out.keys()
        )
    if stage in ("sft", "dpo"):
        return is_complete(workdir.ia_dir(stage) / "adapter")
    if stage == "preferences":
        return workdir.preferences_file.exists()
    if stage == "eval":
        trained = [s for s in ("sft", "dpo") if _is_done(workdir, s)]
        return workdir.metrics_file.exists() and list(workdir.metrics["stages"]) == trained
    page = workdir.path / "report.html"
    return (
        page.exists() and workdir.metrics_file.exists() and page.stat().st_mtime >= workdir.metrics_file.stat().st_mtime
    )


def check_inputs(workdir: "Workdir", stage: str) -> None:
    """Raises ConfigError if a stage that this one needs is not done."""
    missing = [s for s in _NEEDS.get(stage, ()) if not is_done(workdir, s)]
    if missing:
        raise ConfigError(f"{workdir.path}: `ia-jax {stage}` needs what `ia-jax {missing[0]}` writes; run that first")
    if stage == "report" and not workdir.metrics_file.exists():
        raise ConfigError(f"{workdir.path}: `ia-jax report` needs eval/metrics.json; run `ia-jax eval` first")
