"""The table of subcommands, in the order of `ia-jax --help`. A new one is a file here and a line below."""

from ia_jax.cli.commands import (
    adapters,
    agreement,
    align,
    ask,
    audit,
    audit_family,
    behaviors,
    calibrate,
    config,
    data,
    doctor,
    exchange,
    identify,
    investigate,
    lens,
    nulls,
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
        identify.COMMAND,
        lens.COMMAND,
        ask.COMMAND,
        audit.COMMAND,
        audit_family.COMMAND,
        nulls.COMMAND,
        calibrate.COMMAND,
        align.COMMAND,
        investigate.COMMAND,
        *exchange.COMMANDS,
        *data.COMMANDS,
        adapters.COMMAND,
        behaviors.COMMAND,
        agreement.COMMAND,
        plan.COMMAND,
        config.COMMAND,
    )
}
