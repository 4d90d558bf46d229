"""`ia-jax export-peft` and `ia-jax import-peft`."""

import argparse
from pathlib import Path

from ia_jax.cli.arguments import Argument, Command
from ia_jax.cli.workdirs import new_directory

_BASE = Argument.of("--model", metavar="NAME", help="its base (default: the one that the adapter names)")
_DESTINATION = Argument.of("destination", metavar="DST", help="the new directory")


def _export(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    destination = new_directory(args.destination)
    print(exchange.export([Path(s) for s in (args.source, *args.add)], destination, args.model, args.merged))


def _import(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    print(exchange.bring_in(args.source, new_directory(args.destination), args.model, args.revision))


COMMANDS = (
    Command(
        name="export-peft",
        run=_export,
        summary="an adapter of ia_jax to a PEFT directory",
        text="An adapter of ia_jax to a PEFT directory, bit for bit.",
        writes="adapter_config.json and adapter_model.safetensors in DST, which must not exist or be empty",
        time="seconds",
        examples=("ia-jax export-peft runs/demo/ia_dpo/adapter exported",),
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
        summary="a PEFT adapter to an adapter directory of ia_jax",
        text="A PEFT adapter to an adapter directory of ia_jax, bit for bit.",
        writes="an Orbax adapter directory in DST, which must not exist or be empty",
        time="seconds",
        examples=("ia-jax import-peft exported imported --model=smollm2",),
        arguments=(
            Argument.of("source", metavar="SRC", help="the adapter's directory or hub id"),
            _DESTINATION,
            _BASE,
            Argument.of("--revision", metavar="COMMIT", help="of a hub id: branch, tag or commit to take it from"),
        ),
    ),
)
