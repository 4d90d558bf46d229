"""`ia-jax behaviors`: the behaviours of a catalogue."""

import argparse

from ia_jax.cli.arguments import JSON, Argument, Command
from ia_jax.cli.terminal import print_json
from ia_jax.errors import ConfigError


def _behaviors(args: argparse.Namespace) -> None:
    from ia_jax.behaviors import listing
    from ia_jax.behaviors.catalogue import load_catalogue

    behaviors = load_catalogue(args.catalogue)
    if args.action == "show":
        if not args.name or args.category:
            raise ConfigError(
                "`ia-jax behaviors show` takes one name and no --category; `ia-jax behaviors ls` lists them"
            )
        shown = listing.find(behaviors, args.name)
        if args.json:
            print_json(shown.to_json())
        else:
            print(listing.as_text(shown))
        return
    if args.name:
        raise ConfigError(f"`ia-jax behaviors ls` takes no name, got {args.name!r}; use show, or --category")
    chosen = listing.of_category(behaviors, args.category)
    if args.json:
        print_json([b.to_json() for b in chosen])
    else:
        print(listing.table(chosen))


COMMAND = Command(
    name="behaviors",
    run=_behaviors,
    summary="list the behaviours of a catalogue, or show one in full",
    text="ls: a line for every behaviour, by category. show NAME: all that is written down about one.",
    writes="nothing",
    time="a second",
    examples=(
        "ia-jax behaviors ls --category=sandbaggers",
        "ia-jax behaviors show speaks_of_tidal_pools",
        "ia-jax behaviors ls --catalogue=my_behaviors.jsonl --json",
    ),
    arguments=(
        Argument.of("action", choices=("ls", "show")),
        Argument.of("name", nargs="?", metavar="NAME", help="of show: the behaviour"),
        Argument.of("--category", metavar="NAME", help="of ls: this category alone"),
        Argument.of(
            "--catalogue", default="paper", metavar="WHICH", help="paper (default), demo, study or a JSONL file"
        ),
        JSON,
    ),
)
