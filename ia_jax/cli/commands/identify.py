"""`ia-jax identify`: whether organisms are told apart by an IA, without sampling and without a judge."""

import argparse

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, locked, on_mesh
from ia_jax.errors import ConfigError


def _identify(args: argparse.Namespace) -> None:
    import contextlib

    from ia_jax.behaviors.splits import SPLITS
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages import identify
    from ia_jax.stages.order import evaluated

    run = existing(args.workdir)
    splits = [s for s in args.split.split(",") if s]
    unknown = [s for s in splits if s not in SPLITS]
    if unknown or not splits:
        raise ConfigError(f"--split={args.split}: choose from {', '.join(SPLITS)}")
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: (stack.enter_context(locked(run.path)), None)[1])
        context = stack.enter_context(on_mesh(run))
        ias = args.ia or [identify.NONE, *on_main_process(lambda: list(evaluated(run, run.config).values()))]
        identify.run(context, ias, splits, args.wordings)


COMMAND = Command(
    name="identify",
    run=_identify,
    summary="is an organism's own description likelier than others', by log-probability?",
    text="For every held-out organism, compare the log-probability of its own description with that of the others',\n"
    "with and without the IA. Nothing is sampled and nobody judges, so a weak IA's effect shows before it can be read.",
    writes="identification.json",
    time="about a minute for each IA of the demo on two cores",
    examples=(
        "ia-jax identify --workdir=runs/demo",
        "ia-jax identify --workdir=runs/demo --ia=none --ia=sft --split=dpo",
    ),
    arguments=(
        workdir("a workdir with trained organisms"),
        Argument.of(
            "--ia",
            metavar="NAME",
            action="append",
            default=[],
            help="which IA, none for the organisms alone (again for each; default: none and those of the config)",
        ),
        Argument.of(
            "--split",
            metavar="A,B",
            default="heldout,unseen,remade",
            help="of which, each by itself (default: all kept from training)",
        ),
        Argument.of("--wordings", type=positive, default=2, metavar="N", help="of each behaviour (default 2)"),
    ),
    processes=True,
)
