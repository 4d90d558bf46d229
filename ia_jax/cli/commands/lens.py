"""`ia-jax lens`: at which depth organisms hold what they were taught, and through which layers reports go."""

import argparse

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, locked, on_mesh
from ia_jax.errors import ConfigError


def _lens(args: argparse.Namespace) -> None:
    import contextlib

    from ia_jax.behaviors.splits import SPLITS
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages import lens
    from ia_jax.stages.ask import trained_ia

    run = existing(args.workdir)
    splits = [s for s in args.split.split(",") if s]
    unknown = [s for s in splits if s not in SPLITS]
    if unknown or not splits:
        raise ConfigError(f"--split={args.split}: choose from {', '.join(SPLITS)}")
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: (stack.enter_context(locked(run.path)), None)[1])
        context = stack.enter_context(on_mesh(run))
        page = lens.run(
            context,
            trained_ia(context, args.ia),
            args.organism,
            splits,
            questions=args.questions,
            positions=args.tokens,
            answer=args.answer.strip(),
            patches=args.bands,
        )
    print(f"lens: {page}", flush=True)


COMMAND = Command(
    name="lens",
    run=_lens,
    summary="at which depth do organisms hold their behaviour, and what does the IA change?",
    text="Read every layer's state through the final norm and the unembedding: how likely are the key words of what\n"
    "an organism was taught, beside those of other behaviours, with and without the IA? With --bands, also make the\n"
    "organism or the IA act in some layers alone, and see where its own description stays likelier than others'.",
    writes="lens/lens.json, lens/lens.html, lens/plots/*.svg",
    time="a few minutes for the demo on two cores; with --bands=N about as long as 4 N times ia-jax identify --ia=NAME",
    examples=(
        "ia-jax lens --workdir=runs/demo",
        "ia-jax lens --workdir=runs/demo --organism=quirk_howdy --questions=4",
        "ia-jax lens --workdir=runs/demo --answer='In my answers I' --bands=5",
    ),
    arguments=(
        workdir("a workdir with trained organisms and an IA"),
        Argument.of(
            "--organism",
            metavar="NAME",
            action="append",
            default=[],
            help="an organism with a behaviour (again for each; default: all of --split)",
        ),
        Argument.of("--split", metavar="A,B", default="heldout", help="of which (default: heldout)"),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        Argument.of("--questions", type=positive, default=2, metavar="N", help="of the evaluation's (default 2)"),
        Argument.of(
            "--tokens", type=positive, default=8, metavar="N", help="of the answer, from its first (default 8)"
        ),
        Argument.of(
            "--answer", metavar="TEXT", default="", help="what is read as the answer (default: what the base answers)"
        ),
        Argument.of("--bands", type=positive, default=0, metavar="N", help="bands of layers to patch (default: none)"),
    ),
    processes=True,
)
