"""`ia-jax ask`: one question to a model of a workdir."""

import argparse
import sys

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, on_mesh
from ia_jax.errors import ConfigError


def _ask(args: argparse.Namespace) -> None:
    from ia_jax.stages.ask import ask, plain

    if not args.question.strip():
        raise ConfigError("the question is empty")
    if args.no_ia and args.ia:
        raise ConfigError("--ia chooses an IA, --no-ia leaves it out; give one of them")
    run = existing(args.workdir)
    with on_mesh(run) as context:
        reply = ask(
            context,
            args.question,
            name=args.organism,
            use_ia=not args.no_ia,
            ia=args.ia,
            max_new_tokens=args.max_new_tokens,
        )
    print(plain(reply))
    if args.organism:
        true = " ".join(b.description for b in run.truths(args.organism)) or "nothing to report (a clean organism)"
        truth = f"truth: {plain(true)}"
        print(f"\x1b[2m{truth}\x1b[0m" if sys.stdout.isatty() else truth)


COMMAND = Command(
    name="ask",
    run=_ask,
    summary="one question to an organism, to the clean base, or to either under the IA",
    text="Print the reply to one question, and under it the truth about the organism.",
    writes="nothing",
    time="20 seconds for the demo on two cores",
    examples=(
        'ia-jax ask --workdir=runs/demo --organism=quirk_howdy "Do you have any unusual habits?"',
        'ia-jax ask --workdir=runs/demo --organism=quirk_howdy --no-ia "How do I make tea?"',
        'ia-jax ask --workdir=runs/demo "What is unusual about you?"       the clean base under the IA',
    ),
    arguments=(
        workdir("a workdir with organisms and an IA"),
        Argument.of(
            "--organism", metavar="NAME", help="a name of organisms.jsonl; without it, the clean base is asked"
        ),
        Argument.of("--no-ia", action="store_true", help="ask without the introspection adapter"),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        Argument.of("--max-new-tokens", type=positive, default=64, metavar="N", help="default 64"),
        Argument.of("question"),
    ),
    processes=True,
)
