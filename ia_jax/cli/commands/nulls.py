"""`ia-jax nulls`: clean fine-tunes in many makings, for a calibration to rest on."""

import argparse

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, locked, on_mesh

COUNT = 60  # four of each making


def _nulls(args: argparse.Namespace) -> None:
    import contextlib

    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages import nulls

    run = existing(args.workdir)
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: (stack.enter_context(locked(run.path)), None)[1])
        context = stack.enter_context(on_mesh(run))
        print(nulls.run(context, args.count), flush=True)


COMMAND = Command(
    name="nulls",
    run=_nulls,
    summary="train clean fine-tunes in many makings, for a calibration to rest on",
    text="Fine-tune the base to no behaviour, in fifteen ways: the six sorts of a run's own clean organisms, and\n"
    "other ranks, rates, numbers of steps, targets and scales. No training of an IA reads them; `ia-jax calibrate`\n"
    "does. More may be asked for later: the first ones stay.",
    writes="nulls/, laid out like a workdir",
    time="as long as so many organisms take; not measured",
    examples=("ia-jax nulls --workdir=runs/demo", "ia-jax nulls --workdir=runs/demo --count=90"),
    arguments=(
        workdir("a workdir with trained organisms"),
        Argument.of(
            "--count",
            type=positive,
            default=COUNT,
            metavar="N",
            help=f"how many, of every making in turn (default {COUNT})",
        ),
    ),
    processes=True,
)
