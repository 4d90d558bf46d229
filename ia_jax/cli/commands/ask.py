"""`ia-jax ask`: one question to a model of a workdir."""

import argparse
import sys

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, session
from ia_jax.errors import ConfigError


def _ask(args: argparse.Namespace) -> None:
    from ia_jax.stages.ask import ask, plain

    if not args.question.strip():
        raise ConfigError("the question is empty")
    if args.no_ia and args.stage:
        raise ConfigError("--stage chooses an IA, --no-ia leaves it out; give one of them")
    run = existing(args.workdir)
    with session(run) as opened:
        reply = ask(
            opened,
            args.question,
            name=args.organism,
            use_ia=not args.no_ia,
            stage=args.stage,
            max_new_tokens=args.max_new_tokens,
        )
    print(plain(reply))
    if args.organism:
        truth = f"truth: {plain(run.behaviors[args.organism].description)}"
        print(f"\x1b[2m{truth}\x1b[0m" if sys.stdout.isatty() else truth)


COMMAND = Command(
    name="ask",
    run=_ask,
    summary="one question to an organism, to the clean base, or to either under the IA",
    text="Print the reply to one question, and under it the truth about the organism.",
    writes="nothing",
    time="20 seconds for the demo on two cores",
    examples=(
        'ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms "Do you have any unusual habits?"',
        'ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms --no-ia "How do I make tea?"',
        'ia-jax ask --workdir=runs/demo "What is unusual about you?"       the clean base under the IA',
    ),
    arguments=(
        workdir("a workdir with organisms and an IA"),
        Argument.of(
            "--organism", metavar="NAME", help="a name of behaviors.jsonl; without it, the clean base is asked"
        ),
        Argument.of("--no-ia", action="store_true", help="ask without the introspection adapter"),
        Argument.of("--stage", choices=("sft", "dpo"), help="which IA (default: after DPO if there is one)"),
        Argument.of("--max-new-tokens", type=positive, default=64, metavar="N", help="default 64"),
        Argument.of("question"),
    ),
    processes=True,
)
