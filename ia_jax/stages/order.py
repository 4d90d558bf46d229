"""The stages: their order, where each one's function is, what it needs and writes, and when it is finished.

Nothing heavy is imported here, so that `ia-jax --help` is instant.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ia_jax.errors import ConfigError
from ia_jax.storage import modified

if TYPE_CHECKING:
    from ia_jax.config import RunConfig
    from ia_jax.stages.context import Context
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
        "behaviors.jsonl, organisms.jsonl, transcripts/<organism>.jsonl",
        "about 1 minute",
    ),
    Stage(
        "organisms",
        "ia_jax.stages.organisms",
        "run",
        "train the organisms, many at once, and check that each shows its behaviour",
        "organisms/<organism>/ (Orbax), behavior_checks.jsonl",
        "about 15 minutes; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "sft",
        "ia_jax.stages.sft",
        "run",
        "train the introspection adapter (IA) jointly over the train organisms",
        "ia/<name>/: adapter (Orbax), peft, state (checkpoints); name: sft",
        "about 10 minutes; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "preferences",
        "ia_jax.stages.preferences",
        "run",
        "sample reports on the dpo organisms, judge them, pair them",
        "preferences/<name>.jsonl; name: dpo",
        "about 1 minute",
    ),
    Stage(
        "dpo",
        "ia_jax.stages.dpo",
        "run",
        "refine the IA on the preference pairs",
        "ia/<name>/: adapter (Orbax), peft, state (checkpoints); name: dpo",
        "about 1 minute; continues from its last checkpoint, bit for bit",
    ),
    Stage(
        "eval",
        "ia_jax.stages.evaluation",
        "run",
        "what held-out organisms report, under the four conditions, after SFT and after DPO",
        "eval/reports.jsonl and metrics.json, or in eval/<name>/",
        "about 4 minutes",
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


def is_done(context: "Context", stage: str) -> bool:
    """Whether a stage has written everything that it writes. Of several processes the first looks, for all."""
    from ia_jax.parallel.distributed import on_main_process

    return on_main_process(lambda: _is_done(context.workdir, context.config, stage))


def _is_done(workdir: "Workdir", config: "RunConfig", stage: str) -> bool:
    from ia_jax.adapters.store import are_complete, is_complete

    if stage == "transcripts":
        return workdir.organisms_file.exists()
    if stage == "organisms":
        left_out = workdir.left_out
        stored = [d for n, o in workdir.organisms.items() if n not in left_out for d in workdir.stack_of(o)]
        return workdir.checks_file.exists() and all(are_complete(stored))
    if stage in ("sft", "dpo"):
        name = getattr(config, stage).name
        names = [name, config.sft.shuffled_name] if stage == "sft" and config.sft.shuffled_null else [name]
        return all(is_complete(workdir.ia_dir(n) / "adapter") for n in names)
    if stage == "preferences":
        return workdir.preferences_file(config.preferences.name).exists()
    metrics, page = workdir.metrics_file(config.eval.name), workdir.report_file(config.eval.name)
    if stage == "eval":
        return metrics.exists() and workdir.metrics(config.eval.name).get("ias") == evaluated(workdir, config)
    return page.exists() and metrics.exists() and modified(page) >= modified(metrics)


def evaluated(workdir: "Workdir", config: "RunConfig") -> dict[str, str]:
    """{"sft": name, "dpo": name} of the IAs that an evaluation asks: those of the config that are trained."""
    from ia_jax.adapters.store import is_complete

    names = {"sft": config.sft.name, "dpo": config.dpo.name}
    return {stage: name for stage, name in names.items() if is_complete(workdir.ia_dir(name) / "adapter")}


def has_no_work(workdir: "Workdir", stage: str) -> bool:
    """Whether there is nothing to do: preferences and DPO of a run without organisms for them."""
    return stage in ("preferences", "dpo") and workdir.organisms_file.exists() and not workdir.named("dpo")


def check_inputs(workdir: "Workdir", config: "RunConfig", stage: str) -> None:
    """Raises ConfigError if a stage that this one needs is not done."""
    missing = [s for s in _NEEDS.get(stage, ()) if not _is_done(workdir, config, s)]
    if missing:
        name = {"sft": config.sft.name, "preferences": config.preferences.name}.get(missing[0], missing[0])
        option = f" --name={name}" if name != {"preferences": "dpo"}.get(missing[0], missing[0]) else ""
        raise ConfigError(
            f"{workdir.path}: `ia-jax {stage}` needs what `ia-jax {missing[0]}{option}` writes; run that first"
        )
    if stage == "report" and not workdir.metrics_file(config.eval.name).exists():
        file = workdir.metrics_file(config.eval.name).relative_to(workdir.path)
        raise ConfigError(f"{workdir.path}: `ia-jax report` needs {file}; run `ia-jax eval` first")


def settle_name(workdir: "Workdir", config: "RunConfig", stage: str, name: str) -> "RunConfig":
    """The config with the name that a stage of `ia-jax run --name=…` writes under.

    What is there under the config's own name is taken where it was made with these settings and inputs, so that only
    what differs is done again.
    """
    from ia_jax.stages.settings import differences, with_name

    if not name or stage not in ("sft", "preferences", "dpo", "eval"):
        return config
    if _is_done(workdir, config, stage) and differences(workdir, config, stage) is None:
        return config
    return with_name(config, stage, f"{name}_{stage}" if stage in ("sft", "dpo") else name)
