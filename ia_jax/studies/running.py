"""What is left of a study's directories, and doing it, stage by stage as `ia-jax run` does."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ia_jax.analysis.report import write_report
from ia_jax.config import with_dtype
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.progress import duration
from ia_jax.stages.context import Context
from ia_jax.stages.order import STAGES, check_inputs, is_done
from ia_jax.stages.settings import check_same, write_stage_record
from ia_jax.stages.spending import check_ready
from ia_jax.studies.layout import Place, Run
from ia_jax.workdir import Workdir

ORGANISMS = ("transcripts", "organisms")


@dataclass(frozen=True)
class Job:
    """A directory with the stages that it is to go through. title: for a person."""

    title: str
    place: Place
    stages: tuple[str, ...]

    @property
    def left(self) -> list[str]:
        """The stages that are not done, in order; all from the first on, since each reads what those before write."""
        workdir = Workdir(self.place.path)
        if not workdir.config_file.exists():
            return list(self.stages)
        # In the number type that the workdir was begun in, where the recipe leaves that to the machine.
        context = Context(workdir, with_dtype(self.place.config, workdir.config.model.dtype))
        for number, stage in enumerate(self.stages):
            if not is_done(context, stage):
                return list(self.stages[number:])
        return []


def jobs_of(run: Run) -> list[Job]:
    """What an arm needs under one seed: the organisms that it shares, then its own stages."""
    after_sft = ("preferences", "dpo") if run.arm.section.dpo else ()
    own = Job(f"arm {run.arm.name}, seed {run.seed}", run.place, (*ORGANISMS, "sft", *after_sft, "eval", "report"))
    if run.organisms is None:
        return [own]
    return [Job(f"organisms {run.organisms.path.name}", run.organisms, ORGANISMS), own]


def do(job: Job, context: Context, say: Callable[[str], None]) -> None:
    """Does what is left of a job, on its workdir as `context` has it. Killed at any time, the next call goes on.

    Raises as the stages do; ConfigError where what is there was made with other settings.
    """
    run, config = context.workdir, context.config
    check_ready(context, job.stages)
    for stage in STAGES:
        if stage.name not in job.stages:
            continue
        if stage.name != "report":
            on_main_process(partial(check_same, run, config, stage.name))
        if is_done(context, stage.name):
            continue
        on_main_process(partial(check_inputs, run, config, stage.name))
        stop_if_preempted(stage.name)
        start = time.monotonic()
        if stage.name == "report":
            on_main_process(partial(_report, run, config.eval.name))
        else:
            on_main_process(partial(write_stage_record, run, config, stage.name))
            getattr(importlib.import_module(stage.module), stage.function)(context)
        say(f"{job.title}: {stage.name} done in {duration(time.monotonic() - start)}")


def _report(run: Workdir, name: str) -> None:
    write_report(run.path, name)
