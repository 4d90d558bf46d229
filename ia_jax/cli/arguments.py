"""A command as data (its help, its arguments, its function), and the parser that a table of them makes."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from ia_jax.errors import ConfigError

EPILOG = """\
examples:
  ia-jax doctor                                       what this machine has, and how long the demo takes on it
  ia-jax run --config=configs/smollm2_demo.py --workdir=runs/demo
  ia-jax run --config=configs/smollm2_demo.py --config.seed=7 --config.sft.steps=200 --workdir=runs/seed7
  ia-jax run --workdir=runs/demo                      continue a run with the config that it was started with
  ia-jax ask --workdir=runs/demo --organism=quirk_howdy "Do you have any unusual habits?"
  ia-jax audit --workdir=runs/demo --adapter=path/to/somebodys/peft_adapter

Stages skip what is finished, so a killed command is continued by giving it again. Exit status: 0 success, 2 a bad
argument or config, 1 any other failure, 130 stopped by hand, 141 stdout closed, 143 stopped by SIGTERM with the state
saved (restart it).
"""


@dataclass(frozen=True)
class Argument:
    """What `ArgumentParser.add_argument` takes."""

    names: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, *names: str, **options: Any) -> "Argument":
        return cls(names, options)


@dataclass(frozen=True)
class Command:
    """One subcommand.

    summary: its line in `ia-jax --help`; text: what it does, in sentences (default: the summary); writes: which files;
    time: how long it takes; examples: full command lines, each perhaps followed by what it does.
    overrides: whether it takes `--config.FIELD=VALUE`, which arrive in `args.overrides`; processes: whether several
    processes run it as one.
    """

    name: str
    run: Callable[[argparse.Namespace], int | None]
    summary: str
    writes: str
    time: str
    examples: tuple[str, ...]
    arguments: tuple[Argument, ...]
    text: str = ""
    overrides: bool = False
    processes: bool = False

    @property
    def help(self) -> str:
        text = self.text or f"{self.summary[0].upper()}{self.summary[1:]}."
        facts = f"writes: {self.writes}\ntime: {self.time}"
        return "\n\n".join([text, facts, "\n  ".join(["examples:", *self.examples])])


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


positive.__name__ = "number"  # argparse puts it into "invalid … value"

JSON = Argument.of("--json", action="store_true", help="print JSON and nothing else")


def workdir(help_text: str, required: bool = True) -> Argument:
    return Argument.of("--workdir", metavar="DIR", required=required, help=help_text)


def recipe(required: bool, more: str = "") -> tuple[Argument, ...]:
    """`--config=FILE.py` and its overrides."""
    text = f"recipe, a Python file with get_config(){more}"
    return (
        Argument.of("--config", metavar="FILE.py", required=required, help=text),
        Argument.of("--config.FIELD", metavar="VALUE", help="override any field, like --config.sft.steps=50"),
    )


class _Parser(argparse.ArgumentParser):
    """Errors become ConfigError, so that they are printed and counted like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> NoReturn:
        import ia_jax

        print(f"ia-jax {ia_jax.__version__}")
        parser.exit()


def parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    common = _Parser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="on an error, show where it was raised"
    )
    top = _Parser(
        prog="ia-jax",
        description="Introspection adapters in JAX: train organisms with planted behaviours, and one adapter that "
        "makes them report what they learned.",
        epilog=EPILOG,
        formatter_class=raw,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in commands:
        sub = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.help,
            formatter_class=raw,
            parents=[common],
            allow_abbrev=False,
        )
        for argument in command.arguments:
            sub.add_argument(*argument.names, **argument.options)
    return top
