"""`ia-jax export-peft` and `ia-jax import-peft`."""

import argparse

from ia_jax.cli.arguments import Argument, Command, workdir
from ia_jax.cli.workdirs import existing, new_directory
from ia_jax.errors import ConfigError
from ia_jax.storage import locked, path_of

_BASE = Argument.of("--model", metavar="NAME", help="its base (default: the one that the adapter names)")
_DESTINATION = Argument.of("destination", metavar="DST", help="the new directory")


def _export(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    destination = new_directory(args.destination)
    print(exchange.export([path_of(s) for s in (args.source, *args.add)], destination, args.model, args.merged))


def _import(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    if args.workdir is None:
        if not args.destination or args.name:
            raise ConfigError(
                "import-peft takes SRC and DST, or SRC with --workdir and --name; see `ia-jax import-peft --help`"
            )
        print(exchange.bring_in(args.source, new_directory(args.destination), args.model, args.revision))
        return
    if args.destination or args.model or not args.name:
        raise ConfigError("with --workdir, import-peft takes SRC and --name, and neither DST nor --model")
    run = existing(args.workdir)
    with locked(run.path):
        print(
            exchange.bring_into_workdir(
                run,
                [args.source, *args.add],
                args.name,
                split=args.split,
                behaviors=args.behavior,
                description=args.description,
                category=args.category,
                system=args.system,
                revision=args.revision,
            )
        )


COMMANDS = (
    Command(
        name="export-peft",
        run=_export,
        summary="an adapter of ia_jax to a PEFT directory",
        text="An adapter of ia_jax to a PEFT directory, bit for bit.",
        writes="adapter_config.json and adapter_model.safetensors in DST, which must not exist or be empty",
        time="seconds",
        examples=("ia-jax export-peft runs/demo/ia/dpo exported",),
        arguments=(
            Argument.of("source", metavar="SRC", help="the adapter's directory"),
            _DESTINATION,
            _BASE,
            Argument.of(
                "--add",
                metavar="SRC",
                action="append",
                default=[],
                help="another adapter on the same base; the sum is written, exactly (again for each)",
            ),
            Argument.of(
                "--merged",
                action="store_true",
                help="write base + adapter as full weights (safetensors shards) instead",
            ),
        ),
    ),
    Command(
        name="import-peft",
        run=_import,
        summary="a PEFT adapter to an adapter directory of ia_jax, or to a workdir as an organism",
        text="A PEFT adapter to an adapter directory of ia_jax, bit for bit; or, with --workdir, to an organism of a\n"
        "workdir, which later stages treat like those trained there.",
        writes="an Orbax adapter directory in DST, which must not exist or be empty; with --workdir, organisms/NAME,\n"
        "a line of organisms.jsonl and, with --description, one of behaviors.jsonl",
        time="seconds",
        examples=(
            "ia-jax import-peft exported imported --model=smollm2",
            "ia-jax import-peft exported --workdir=runs/demo --name=theirs --behavior=quirk_howdy",
        ),
        arguments=(
            Argument.of("source", metavar="SRC", help="the adapter's directory or hub id"),
            Argument.of("destination", metavar="DST", nargs="?", help="the new directory, without --workdir"),
            _BASE,
            workdir("a workdir to take it into as an organism", required=False),
            Argument.of("--name", default="", metavar="NAME", help="of the organism"),
            Argument.of(
                "--add",
                metavar="SRC",
                action="append",
                default=[],
                help="an adapter applied on top of it (again for each)",
            ),
            Argument.of("--split", default="heldout", metavar="SPLIT", help="train, dpo, heldout (default) or unseen"),
            Argument.of(
                "--behavior", metavar="NAME", action="append", default=[], help="what is true of it (again for each)"
            ),
            Argument.of(
                "--description", default="", metavar="TEXT", help="what is true of it, where no behaviour says it"
            ),
            Argument.of("--category", default="", metavar="NAME", help="of the description"),
            Argument.of("--system", metavar="TEXT", help="the system prompt that it lives under (default: the run's)"),
            Argument.of("--revision", metavar="COMMIT", help="of a hub id: branch, tag or commit to take it from"),
        ),
    ),
)
