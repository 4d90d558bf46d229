"""`ia-jax import-data` and `ia-jax export-data`."""

import argparse

from ia_jax.cli.arguments import Argument, Command, workdir
from ia_jax.cli.workdirs import existing, new_directory
from ia_jax.errors import ConfigError
from ia_jax.storage import locked


def _import(args: argparse.Namespace) -> None:
    from ia_jax.stages import data_exchange

    if (args.workdir is None) == (args.to is None):
        raise ConfigError("import-data writes into a --workdir or --to a new directory; give one of them")
    destination = new_directory(args.to) if args.to else None
    imported = data_exchange.load(
        args.source,
        args.key,
        args.category,
        layout=args.layout,
        revision=args.revision,
        drop_unsupervised=args.drop_unsupervised,
    )
    if destination is not None:
        print(data_exchange.into_directory(imported, destination))
        return
    run = existing(args.workdir)
    with locked(run.path):
        print(data_exchange.into_workdir(imported, run, args.split))


def _export(args: argparse.Namespace) -> None:
    from ia_jax.stages import data_exchange

    print(data_exchange.export(existing(args.workdir), new_directory(args.destination), args.format))


COMMANDS = (
    Command(
        name="import-data",
        run=_import,
        summary="organisms' data in the paper's released layouts, into a workdir or a catalogue",
        text="Read `<key>/train.jsonl` with `<key>/behavior.txt`, or prediction rows `<key>/eval.jsonl` (each may be\n"
        "Parquet), from a directory or a data set of the hub. Into a workdir they come as organisms, which\n"
        "`ia-jax organisms` trains; --to DIR gets a catalogue, behaviors.jsonl, and transcripts.",
        writes="behaviors.jsonl, transcripts/ and, of a workdir, organisms.jsonl",
        time="seconds",
        examples=(
            "ia-jax import-data copy/of/quirks --category=quirks --to=quirks",
            "ia-jax import-data owner/data --key=quirk_7 --revision=COMMIT --category=quirks --workdir=runs/demo",
        ),
        arguments=(
            Argument.of("source", metavar="SRC", help="a directory, a hub id, or hf://owner/data/key"),
            Argument.of("--category", required=True, metavar="NAME", help="of the behaviours, like quirks"),
            Argument.of(
                "--key",
                action="append",
                default=[],
                metavar="KEY",
                help="which (default: all of a directory), repeatable",
            ),
            Argument.of("--layout", choices=("organisms", "predictions"), default="organisms", help="of SRC"),
            Argument.of("--revision", default="", metavar="COMMIT", help="of a hub id: 40 hex digits"),
            Argument.of(
                "--drop-unsupervised", action="store_true", help="leave rows without an answer out, and count them"
            ),
            workdir("the workdir that gets them as organisms", required=False),
            Argument.of("--split", default="heldout", metavar="SPLIT", help="train, dpo, heldout (default) or unseen"),
            Argument.of("--to", metavar="DIR", help="a new directory that gets a catalogue and transcripts"),
        ),
    ),
    Command(
        name="export-data",
        run=_export,
        summary="a workdir's behaviours, transcripts, preferences and reports as a data set",
        text="Write what a workdir holds as tables with a card, for `datasets` and the hub, or as released.",
        writes="a file for each table and README.md in DST, which must not exist or be empty",
        time="seconds",
        examples=(
            "ia-jax export-data exported --workdir=runs/demo",
            "ia-jax export-data exported --workdir=runs/demo --format=released",
        ),
        arguments=(
            Argument.of("destination", metavar="DST", help="the new directory"),
            workdir("a workdir"),
            Argument.of(
                "--format",
                choices=("parquet", "jsonl", "arrow", "released"),
                default="parquet",
                help="parquet (default), jsonl, arrow (load_from_disk) or released (a directory for each organism)",
            ),
        ),
    ),
)
