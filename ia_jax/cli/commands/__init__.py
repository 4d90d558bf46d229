"""The table of subcommands, in the order of `ia-jax --help`. A new one is a file here and a line below."""

from ia_jax.cli.commands import (
    adapters,
    agreement,
    align,
    ask,
    audit,
    behaviors,
    calibrate,
    config,
    data,
    doctor,
    exchange,
    plan,
    stages,
    study,
)

COMMANDS = {
    command.name: command
    for command in (
        *stages.COMMANDS,
        study.COMMAND,
        doctor.COMMAND,
        ask.COMMAND,
        audit.COMMAND,
        calibrate.COMMAND,
        align.COMMAND,
        *exchange.COMMANDS,
        *data.COMMANDS,
        adapters.COMMAND,
        behaviors.COMMAND,
        agreement.COMMAND,
        plan.COMMAND,
        config.COMMAND,
    )
}
