"""`ia-jax study`: a recipe in several ways on the same organisms, and one figure of all of them."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ia_jax.cli.arguments import Argument, Command
from ia_jax.cli.workdirs import local, on_mesh
from ia_jax.storage import locked

if TYPE_CHECKING:
    from ia_jax.stages.context import Context
    from ia_jax.studies.layout import Place, Run
    from ia_jax.studies.study import Study


def _study(args: argparse.Namespace) -> None:
    from ia_jax.recipes import load_study
    from ia_jax.studies.layout import runs_of
    from ia_jax.studies.page import check_place

    study, root = load_study(args.config), local(args.workdir)
    if args.arm:
        study.arm(args.arm)
    runs = runs_of(study, root)
    mine = [r for r in runs if args.arm in (None, r.arm.name)]
    if args.dry_run:
        print(_costs(study, mine))
        return
    out = local(args.out or args.workdir)
    check_place(out, study)
    for run in mine:
        _do(run)
    _write(study, runs, out)


def _do(run: "Run") -> None:
    """Everything that an arm needs under one seed and does not have yet."""
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.studies.running import do, jobs_of

    for job in jobs_of(run):
        if not on_main_process(lambda job=job: job.left):
            print(f"{job.title}: already done", flush=True)
            continue
        with _opened(job.place) as context:
            do(job, context, _say)


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _opened(place: "Place") -> "Iterator[Context]":
    """The workdir of a place, locked: continued, or started with its config and marked with what it is for."""
    from ia_jax.config import parse_config, with_dtype
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages.settings import start_workdir
    from ia_jax.workdir import open_workdir

    def start(stack: contextlib.ExitStack) -> Any:
        stack.enter_context(locked(place.path))
        place.mark()
        workdir = start_workdir(place.path, place.config)
        config = with_dtype(place.config, workdir.config.model.dtype)
        return json.loads(json.dumps(dataclasses.asdict(config)))

    with contextlib.ExitStack() as stack:
        settings = on_main_process(partial(start, stack))
        with on_mesh(open_workdir(place.path), parse_config(settings)) as context:
            yield context


def _costs(study: "Study", runs: "Sequence[Run]") -> str:
    """What would be run, and how long it takes."""
    import jax

    from ia_jax.models.number_type import AUTO, choose_here, product_rate
    from ia_jax.stages.expected import cores
    from ia_jax.studies.cost import Machine, as_text, costs

    def rate(dtype: str) -> float:
        return product_rate(choose_here().dtype if dtype == AUTO else dtype)

    return as_text(study, runs, costs(runs, study, Machine(jax.default_backend(), rate, cores())))


def _write(study: "Study", runs: "Sequence[Run]", out: Path) -> None:
    """study.json and study.html of all arms that are finished, whoever ran them."""
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.studies.figures import figures
    from ia_jax.studies.page import write_study

    print(f"study: {on_main_process(lambda: str(write_study(out, figures(study, runs, out))))}", flush=True)


COMMAND = Command(
    name="study",
    run=_study,
    summary="run a recipe in several ways (arms) on the same organisms, and draw one figure of them",
    text="Train the organisms of a study once, run every arm that is not finished on them, and write the figure of\n"
    "all arms beside their baselines. Arms and their workdirs: docs/studies.md. Killed by whatever means, the same\n"
    "command goes on; an arm that is added later trains only what nobody has trained yet.",
    writes="organisms/<name>/ and runs/<name>/ (ordinary workdirs), study.json, study.html, plots/*.svg",
    time="what --dry-run says",
    examples=(
        "ia-jax study --config=configs/studies/dpo.py --workdir=runs/dpo --dry-run",
        "ia-jax study --config=configs/studies/dpo.py --workdir=runs/dpo",
        "ia-jax study --config=configs/studies/rank_layers.py --workdir=runs/dpo --out=runs/rank    on dpo's organisms",
        "ia-jax study --config=configs/studies/rank_layers.py --workdir=runs/rank --arm=rank_4    one arm alone",
    ),
    arguments=(
        Argument.of("--config", metavar="FILE.py", required=True, help="study, a Python file with get_config()"),
        Argument.of(
            "--workdir", metavar="DIR", required=True, help="the study's directory, local; made where it is not"
        ),
        Argument.of(
            "--out",
            metavar="DIR",
            help="where the figure goes (default: the workdir); several studies may share a workdir and what is in it",
        ),
        Argument.of("--arm", metavar="NAME", help="run this arm alone (and the organisms that it needs)"),
        Argument.of(
            "--dry-run",
            action="store_true",
            help="only print what would run, with minutes on this machine or chip-hours of the study's slice",
        ),
    ),
    processes=True,
)
