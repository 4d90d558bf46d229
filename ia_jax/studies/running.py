"""What is left of a study's directories, and doing it, stage by stage as `ia-jax run` does."""

from collections.abc import Callable
from dataclasses import dataclass

from ia_jax.errors import ConfigError
from ia_jax.progress import duration
from ia_jax.stages.context import Context
from ia_jax.stages.order import STAGES, is_done
from ia_jax.stages.perform import is_left, perform
from ia_jax.stages.settings import differences, has_begun, place_of
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
        """The stages that are not done, in order; all from the first on, since each reads what those before write.

        Raises ConfigError where what is there was made with other settings.
        """
        workdir, config = Workdir(self.place.path), self.place.begun
        if config is None:
            return list(self.stages)
        context = Context(workdir, config)
        for number, stage in enumerate(self.stages):
            if stage != "report" and has_begun(workdir, config, stage):
                changed = differences(workdir, config, stage)
                if changed is not None:
                    where = place_of(workdir, config, stage)
                    raise ConfigError(
                        f"{self.title}: {where} was made with other settings: {changed}; use another --workdir, or "
                        f"remove {where} to make it again"
                    )
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
    check_ready(context, job.stages)
    for stage in STAGES:
        if stage.name in job.stages and is_left(context, stage):
            say(f"{job.title}: {stage.name} done in {duration(perform(context, stage))}")
