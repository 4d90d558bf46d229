"""`ia-jax run` and the stages one by one."""

import argparse
import dataclasses
import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ia_jax.cli.arguments import Argument, Command, positive, recipe, workdir
from ia_jax.cli.terminal import peak_memory
from ia_jax.cli.workdirs import check_name, opened
from ia_jax.progress import duration
from ia_jax.stages.order import STAGES, has_no_work, is_done, settle_name

if TYPE_CHECKING:
    from ia_jax.stages.context import Context
    from ia_jax.workdir import Workdir


def _run(args: argparse.Namespace) -> None:
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages.perform import is_left, perform
    from ia_jax.stages.settings import name_of, with_name
    from ia_jax.stages.spending import check_ready, report

    everything = args.command == "run"
    chosen = STAGES if everything else [s for s in STAGES if s.name == args.command]
    name = check_name(getattr(args, "name", ""))
    began = time.monotonic()
    with opened(args) as context:
        if getattr(args, "estimate", False):
            print(report(context))
            return
        run = context.workdir
        if everything:
            check_ready(context, [s.name for s in chosen])
            _announce(context, name)
        for number, stage in enumerate(chosen, 1):
            if everything:
                context = _settled(context, stage.name, name)
            elif name:
                renamed = "eval" if stage.name == "report" else stage.name
                context = context.with_config(with_name(context.config, renamed, name))
            label = f"[{number}/{len(chosen)}] {stage.name}" if everything else stage.name
            own = name_of(context.config, "eval" if stage.name == "report" else stage.name)
            label += f" ({own})" if own not in ("", stage.name, "dpo") else ""
            if on_main_process(partial(has_no_work, run, stage.name)):
                print(f"{label}: no organisms for DPO (config.behaviors.dpo=0, dpo_copies=0)", flush=True)
                continue
            if not is_left(context, stage, again=not everything):
                print(f"{label}: already done", flush=True)
                continue
            if not everything:
                check_ready(context, [stage.name])
            took = duration(perform(context, stage))
            print(f"{label}: done in {took}, peak memory so far {peak_memory():.1f} GiB", flush=True)
        ended = context.config.eval.name
    if everything:
        print(f"all done in {duration(time.monotonic() - began)}")
        _conclude(run, ended)
    if chosen[-1].name == "report":
        print(f"report: {run.report_file(ended)}", flush=True)


def _settled(context: "Context", stage: str, name: str) -> "Context":
    """Under the name that `run --name=…` gives a stage, where it has to do anything."""
    from ia_jax.config import parse_config
    from ia_jax.parallel.distributed import on_main_process

    if not name:
        return context

    def settled() -> dict[str, Any]:
        config = settle_name(context.workdir, context.config, stage, name)
        return json.loads(json.dumps(dataclasses.asdict(config)))

    return context.with_config(parse_config(on_main_process(settled)))


def _announce(context: "Context", name: str) -> None:
    """The first lines of a run that has anything to do: what will happen, and how long it takes here."""
    import jax

    from ia_jax.models.number_type import product_rate
    from ia_jax.parallel.distributed import is_multi_process, on_main_process
    from ia_jax.stages import expected

    run, config = context.workdir, context.config
    named = [s.name for s in STAGES if not on_main_process(partial(has_no_work, run, s.name))]
    done = [s for s in named if is_done(context, s)] if is_done(context, "transcripts") else []
    left = [s for s in named if s not in done]
    if not left:
        return

    def say() -> None:
        print(expected.opening(config, str(run.path), left, done), flush=True)
        if name:
            found = expected.Expected({}, f"what is still valid under --name={name} is not done again")
        elif is_multi_process():
            found = expected.Expected({}, "only runs of one process were timed")
        else:
            rate, backend = partial(product_rate, config.model.dtype), jax.default_backend()
            found = expected.expected(config, run, backend, rate, expected.cores(), left)
        print(expected.time_here(found, expected.busy(expected.cores())), flush=True)

    on_main_process(say)


def _conclude(run: "Workdir", name: str) -> None:
    """The last lines of a run: what was found, what that does not show, and what to try next."""
    from ia_jax.analysis.findings import findings, next_steps

    # One of a known behaviour, if there is any: of those an IA can tell most.
    held = [n for split in ("remade", "heldout") for n in run.named(split) if n not in run.left_out]
    behaving = [n for n in held if run.organisms[n].behaviors] or held
    print(findings(run.metrics(name)))
    print(next_steps(str(run.path), behaving[0] if behaving else None))


def _command(name: str, summary: str, writes: str, minutes: str) -> Command:
    estimate = Argument.of("--estimate", action="store_true", help="only print what Claude would cost, stage by stage")
    traced = Argument.of(
        "--profile",
        type=positive,
        default=0,
        metavar="STEPS",
        help="trace so many steps of each training after the first two, to DIR/profile/ (TensorBoard, Perfetto)",
    )
    named = Argument.of(
        "--name",
        default="",
        metavar="NAME",
        help="write under this name, beside what is there"
        + ("; stages whose settings and inputs are the same are not done again" if name == "run" else ""),
    )
    return Command(
        name=name,
        run=_run,
        summary=summary,
        writes=writes,
        time=f"{minutes} for the demo on two cores",
        examples=(f"ia-jax {name} --config=configs/smollm2_demo.py --workdir=runs/demo",),
        arguments=(
            *recipe(required=False, more="; may be left out where the workdir has a config.json"),
            workdir("the run's directory, local or gs://; created by `run` and `transcripts`"),
            *([estimate] if name in ("run", "transcripts") else []),
            *([] if name in ("transcripts", "organisms") else [named]),
            *([traced] if name in ("run", "organisms", "sft", "dpo") else []),
        ),
        overrides=True,
        processes=True,
    )


COMMANDS = (
    _command(
        "run",
        "all stages in order; skips what is finished",
        "all of the workdir, report.html last",
        "about half an hour",
    ),
    *(_command(s.name, s.summary, s.writes, s.minutes) for s in STAGES),
)
