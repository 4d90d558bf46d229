"""`ia-jax audit-family`: models that the IA was never trained on, each family by its protocol."""

import argparse
from pathlib import Path

from ia_jax.cli.arguments import JSON, Argument, Command, recipe, workdir
from ia_jax.cli.terminal import print_json
from ia_jax.cli.workdirs import check_name, opened
from ia_jax.errors import ConfigError
from ia_jax.evals.audit_settings import FAMILIES


def _audit(args: argparse.Namespace) -> None:
    if args.family not in FAMILIES:
        raise ConfigError(f"audit-family {args.family!r} unknown; choose from {', '.join(FAMILIES)}")
    name = check_name(args.name)
    with opened(args) as context:
        file = Path(args.targets) if args.targets else None
        if args.family == "in_base":
            from ia_jax.audits.in_base import as_text as told
            from ia_jax.stages import audit_in_base

            result = audit_in_base.run(context, args.ia, file, name)
        else:
            from ia_jax.audits.headlines import headline as told
            from ia_jax.stages import audit_family

            result = audit_family.run(context, args.family, args.ia, file, name)
        where = context.workdir.path / "audits" / (name or args.family)
    if args.json:
        print_json(result)
    else:
        print(told(result))
        print(f"written: {where}/metrics.json")


COMMAND = Command(
    name="audit-family",
    run=_audit,
    summary="audit a whole family of models that the IA was never trained on",
    text="Gather a family's targets (made here where they have to be), see that each shows its behaviour, ask each\n"
    "for self-reports under four conditions, turn those into ranked predictions, judge both, and write rates with\n"
    "intervals, the false side included. Continues where it was killed; another judge reads the same reports.\n\n"
    "families: targets (a JSONL file of one's own), ciphers (nine covert fine-tunes and their controls),\n"
    "sandbaggers (the run's held-out ones, two made here, and everybody else as negatives), auditbench_made (14\n"
    "behaviours in four makings, hardened against confessing, with nulls, static evaluation and script), sycophant\n"
    "(one model with fifteen biases, its twin, and what they admit), in_base (a behaviour that lay in the base before\n"
    "the IA was trained, beside one added after).",
    writes="audits/<family>/: targets, gate, reports, judged and predictions (JSONL), metrics.json",
    time="depends on the targets and on config.audits.reports; docs/audits.md",
    examples=(
        "ia-jax audit-family ciphers --workdir=runs/study",
        "ia-jax audit-family sandbaggers --workdir=runs/study --config.audits.reports=40",
        "ia-jax audit-family auditbench_made --workdir=runs/study --config.audits.reports=40",
        "ia-jax audit-family targets --targets=theirs.jsonl --workdir=runs/qwen --name=theirs",
    ),
    arguments=(
        Argument.of("family", metavar="FAMILY", help=", ".join(FAMILIES)),
        *recipe(required=False, more="; may be left out where the workdir has a config.json"),
        workdir("a workdir with a trained IA"),
        Argument.of("--targets", metavar="FILE", help="targets of one's own, one a line of JSON (docs/audits.md)"),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        Argument.of("--name", default="", metavar="NAME", help="write to audits/NAME (default: the family's)"),
        JSON,
    ),
    overrides=True,
    processes=True,
)
