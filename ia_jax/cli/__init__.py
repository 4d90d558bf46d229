"""The `ia-jax` command. `entry` runs it; `commands` holds the table of its subcommands, each with its arguments.

Nothing heavy is imported before a command needs it, so `--help` is instant.
"""

from ia_jax.cli.entry import PIPE_CLOSED, main

__all__ = ["PIPE_CLOSED", "main"]
