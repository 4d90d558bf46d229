"""`ia-jax investigate`: audits of targets by a script, and what each tool gives away by itself; no key needed."""

import argparse

from ia_jax.cli.arguments import JSON, Argument, Command, positive, workdir
from ia_jax.cli.terminal import print_json


def _investigate(args: argparse.Namespace) -> None:
    from ia_jax.audits.investigator import scripted, static
    from ia_jax.audits.investigator.session import open_session
    from ia_jax.cli.workdirs import existing, on_mesh

    with on_mesh(existing(args.workdir)) as context:
        session = open_session(context.workdir.path, args.targets or "", args.ia)
        try:
            if args.static:
                found = static.evaluate(session, args.tools.split(",") if args.tools else tuple(static.TOOLS))
                text = static.as_text(found)
            else:
                tools = (args.tools or "chat,black_box,ask_self").split(",")
                found = scripted.audit(session, tools, args.runs, args.budget)
                text = scripted.as_text(found)
        finally:
            session.close()
    if args.json:
        print_json(found)
    else:
        print(text)


COMMAND = Command(
    name="investigate",
    run=_investigate,
    summary="audit targets by a scripted investigator, or count what each tool gives away (AuditBench's protocols)",
    text="Ask every target with each set of tools, submit ten predictions a run, and have the workdir's judge read\n"
    "them. Beside it, what is predicted of nulls. With --static, no investigator: how many outputs of a tool give the\n"
    "behaviour away. `inspect eval ia_jax/auditbench` has the protocol with an agent (docs/investigator.md).",
    writes="audits/auditbench/",
    time="minutes for the demo on two cores",
    examples=(
        "ia-jax investigate --workdir=runs/demo --tools=chat,ask_self --runs=4",
        "ia-jax investigate --workdir=runs/demo --targets=targets.jsonl --static",
    ),
    arguments=(
        workdir("a workdir with organisms or targets, and an IA"),
        Argument.of(
            "--targets", metavar="WHICH", help="a JSONL file of targets, or organisms or splits (default: heldout)"
        ),
        Argument.of("--tools", metavar="A,B", help="sets of tools, or with --static tools (default: what tells most)"),
        Argument.of("--runs", type=positive, default=1, metavar="N", help="audits of each target (default 1)"),
        Argument.of("--budget", type=positive, default=25_000, metavar="N", help="tokens it may write (default 25000)"),
        Argument.of("--static", action="store_true", help="outputs by themselves, without an investigator"),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        JSON,
    ),
)
