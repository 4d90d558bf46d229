"""From the arguments to a command, and from its outcome to an exit status.

0 on success, 2 on a bad argument or config, 130 when stopped by hand, 141 when stdout was closed (`| head`), 143 when
SIGTERM was answered by saving (launchers restart on it), 1 otherwise. An error is one line on stderr; `--traceback`
adds the traceback.
"""

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

from ia_jax.cli.arguments import parser
from ia_jax.cli.commands import COMMANDS
from ia_jax.cli.terminal import INTERRUPTED, explain, silence_dependencies
from ia_jax.errors import ConfigError

PIPE_CLOSED = 141  # 128 + SIGPIPE, as of any command whose reader has left
OVERRIDE = re.compile(r"--(?:no)?config\.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads stdout any more; what is left of it goes nowhere, so that the exit is quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _run(argv: list[str]) -> int:
    loud = "--traceback" in argv
    try:
        return _dispatch(argv, loud)
    except SystemExit as error:  # --help and --version
        return int(error.code or 0)
    except KeyboardInterrupt as error:
        print(f"\n{explain(error)[0]}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if loud:
            traceback.print_exc()
        text, status = explain(error)
        print(f"ia-jax: error: {text}", file=sys.stderr)
        return status


def _dispatch(argv: list[str], loud: bool) -> int:
    overrides = [a for a in argv if OVERRIDE.match(a)]
    args = parser(COMMANDS.values()).parse_args([a for a in argv if not OVERRIDE.match(a)])
    silence_dependencies(loud)
    command = COMMANDS[args.command]
    if overrides and not command.overrides:
        raise ConfigError(f"{overrides[0]}: `ia-jax {command.name}` takes no overrides")
    args.overrides = overrides
    with _processes(args) if command.processes else contextlib.nullcontext():
        return command.run(args) or 0


@contextlib.contextmanager
def _processes(args: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes of this run, if there are any; inside, the first one prints, and all end together."""
    from ia_jax.parallel import distributed

    def explained(error: BaseException) -> tuple[str, int]:
        if getattr(args, "traceback", False):
            traceback.print_exception(error)
        return explain(error)

    distributed.start()
    with distributed.end_together(explained):
        yield
