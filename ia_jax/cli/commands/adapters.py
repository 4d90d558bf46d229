"""`ia-jax adapters`: the adapters that a workdir stores."""

import argparse
import json

from ia_jax.cli.arguments import Argument, Command, workdir
from ia_jax.cli.terminal import print_json
from ia_jax.cli.workdirs import existing
from ia_jax.errors import ConfigError
from ia_jax.storage import locked


def _adapters(args: argparse.Namespace) -> int:
    from ia_jax.stages import inventory

    run = existing(args.workdir)
    if args.action == "ls":
        print(inventory.table(run))
    elif args.action == "show":
        if len(args.names) != 1:
            raise ConfigError("`ia-jax adapters show` takes one name; `ia-jax adapters ls` lists them")
        shown = inventory.show(run, args.names[0])
        if args.json:
            print_json(shown)
        else:
            print(inventory.as_text(shown))
    elif args.action == "verify":
        found = inventory.verify(run, args.names)
        print(json.dumps(found, indent=1) if args.json else inventory.report(found))
        return int(any(found.values()))
    else:
        with locked(run.path):
            inventory.remove(run, args.names)
        print(f"deleted: {', '.join(args.names)}")
    return 0


COMMAND = Command(
    name="adapters",
    run=_adapters,
    summary="list, show, verify or delete the adapters of a workdir",
    text="ls: a line for every adapter. show NAME: all that is written down about it. verify [NAME ...]: reads every\n"
    "byte and names what is damaged (exit status 1). rm NAME ...: deletes; its stage makes it again.",
    writes="nothing, but rm deletes",
    time="seconds",
    examples=("ia-jax adapters ls --workdir=runs/demo", "ia-jax adapters verify --workdir=runs/demo"),
    arguments=(
        Argument.of("action", choices=("ls", "show", "verify", "rm")),
        Argument.of("names", nargs="*", metavar="NAME", help="organisms, ia/sft, ia/dpo or another IA"),
        workdir("a workdir"),
        Argument.of("--json", action="store_true", help="of show and verify: print JSON and nothing else"),
    ),
)
