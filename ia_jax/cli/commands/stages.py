"""`ia-jax run` and the stages one by one."""

import argparse
import importlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ia_jax.cli.arguments import Argument, Command, recipe, workdir
from ia_jax.cli.terminal import duration, peak_memory
from ia_jax.cli.workdirs import opened, session
from ia_jax.stages.order import STAGES, check_inputs, is_done

if TYPE_CHECKING:
    from ia_jax.workdir import Workdir


def _run(args: argparse.Namespace) -> None:
    from ia_jax.parallel.distributed import on_main_process, stop_if_preempted

    everything = args.command == "run"
    chosen = STAGES if everything else [s for s in STAGES if s.name == args.command]
    began = time.monotonic()
    with opened(args) as run, session(run) as opened_session:
        if getattr(args, "estimate", False):
            from ia_jax.stages.transcripts import estimate

            print(estimate(opened_session))
            return
        for number, stage in enumerate(chosen, 1):
            label = f"[{number}/{len(chosen)}] {stage.name}" if everything else stage.name
            if is_done(run, stage.name) and (everything or stage.name != "report"):
                print(f"{label}: already done", flush=True)
                continue
            stop_if_preempted(stage.name)
            on_main_process(partial(check_inputs, run, stage.name))
            start = time.monotonic()
            if stage.name == "report":
                on_main_process(lambda: _report(run))
            else:
                getattr(importlib.import_module(stage.module), stage.function)(opened_session)
            took = duration(time.monotonic() - start)
            print(f"{label}: done in {took}, peak memory so far {peak_memory():.1f} GiB", flush=True)
    if everything:
        print(f"all done in {duration(time.monotonic() - began)}")
        print(headline(run.metrics))
    if chosen[-1].name == "report":
        print(f"report: {run.path / 'report.html'}", flush=True)


def _report(run: "Workdir") -> None:
    from ia_jax.analysis.report import write_report

    write_report(run.path)


def headline(metrics: dict[str, Any]) -> str:
    """The result in one line: how often held-out organisms report their behaviour, against the controls."""
    stage, values = list(metrics["stages"].items())[-1]

    def cell(c: dict[str, Any]) -> str:
        return "-" if c["rate"] is None else f"{100 * c['rate']:.0f} %"

    held = values["heldout"]
    low, high = held["organism+ia"]["ci95"]
    interval = "" if low is None else f" (95 % interval {100 * low:.0f}-{100 * high:.0f})"
    return (
        f"held-out organisms report their behaviour in {cell(held['organism+ia'])}{interval} of answers with the IA "
        f"after {stage.upper()}, in {cell(held['organism'])} without it; base + IA {cell(held['base+ia'])}, base "
        f"{cell(held['base'])}"
    )


def _command(name: str, summary: str, writes: str, minutes: str) -> Command:
    estimate = Argument.of("--estimate", action="store_true", help="only print what the Claude teacher would cost")
    return Command(
        name=name,
        run=_run,
        summary=summary,
        writes=writes,
        time=f"{minutes} for the demo on two cores",
        examples=(f"ia-jax {name} --config=configs/smollm2_demo.py --workdir=runs/demo",),
        arguments=(
            *recipe(required=False, more="; may be left out where the workdir has a config.json"),
            workdir("the run's directory, local; created by `run` and `transcripts`"),
            *([estimate] if name == "transcripts" else []),
        ),
        overrides=True,
        processes=True,
    )


COMMANDS = (
    _command(
        "run", "all stages in order; skips what is finished", "all of the workdir, report.html last", "about 20 minutes"
    ),
    *(_command(s.name, s.summary, s.writes, s.minutes) for s in STAGES),
)
