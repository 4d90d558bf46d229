"""One stage on a workdir, with what goes before it: for `ia-jax run`, the stages' own commands and studies."""

import importlib
import time
from functools import partial

from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.stages.context import Context
from ia_jax.stages.order import Stage, check_inputs, is_done
from ia_jax.stages.settings import check_same, write_stage_record


def is_left(context: Context, stage: Stage, again: bool = False) -> bool:
    """Whether a stage is to be done. again: a report is written though it shows all that there is.

    Raises ConfigError where what it has made was made with other settings, or what it needs is not there.
    """
    run, config = context.workdir, context.config
    left = not is_done(context, stage.name) or (again and stage.name == "report")
    if left:
        on_main_process(partial(check_inputs, run, config, stage.name))
    if stage.name != "report":
        on_main_process(partial(check_same, run, config, stage.name))
    return left


def perform(context: Context, stage: Stage) -> float:
    """Does a stage that is left, and notes first what it is made with; the seconds that it took.

    Raises as the stage does, and where this process is to end before it begins.
    """
    stop_if_preempted(stage.name)
    start = time.monotonic()
    if stage.name == "report":
        on_main_process(partial(_report, context))
    else:
        on_main_process(partial(write_stage_record, context.workdir, context.config, stage.name))
        getattr(importlib.import_module(stage.module), stage.function)(context)
    return time.monotonic() - start


def _report(context: Context) -> None:
    from ia_jax.analysis.report import write_report

    write_report(context.workdir.path, context.config.eval.name)
