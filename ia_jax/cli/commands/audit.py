"""`ia-jax audit`: what somebody's fine-tune reports under the IA."""

import argparse

from ia_jax.cli.arguments import JSON, Argument, Command, positive, workdir
from ia_jax.cli.terminal import print_json
from ia_jax.cli.workdirs import existing, on_mesh
from ia_jax.errors import ConfigError
from ia_jax.storage import in_bucket, path_of


def _audit(args: argparse.Namespace) -> None:
    from ia_jax.analysis.audit_page import write_audit
    from ia_jax.audits.evidence.calibration import VERDICTS
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages import audit

    if not args.adapter and not args.model:
        raise ConfigError("give what to audit: --adapter, --model, or both; see `ia-jax audit --help`")
    if args.rank and not args.model:
        raise ConfigError(f"--rank={args.rank} is of a checkpoint's difference; give the checkpoint with --model")
    page = path_of(args.html) if args.html else None
    if page is not None and on_main_process(
        lambda: not in_bucket(page) and (page.is_dir() or not page.absolute().parent.is_dir())
    ):
        raise ConfigError(
            f"--html={args.html} is no file in a directory that exists; name one, as in --html=audit.html"
        )
    with on_mesh(existing(args.workdir)) as context:
        result = audit.run(
            context,
            args.adapter,
            args.questions,
            args.samples,
            args.ia,
            checkpoint=args.model,
            rank=args.rank,
            evidence=args.evidence,
        )
    if args.json:
        print_json(result)
    else:
        print(audit.as_text(result))
    if page is not None:
        on_main_process(lambda: write_audit(page, result, VERDICTS))


COMMAND = Command(
    name="audit",
    run=_audit,
    summary="attach the IA to somebody's fine-tune and print what it reports, with its evidence",
    text="Ask a fine-tune of the same base about itself under the trained IA; group the reports, rank them by\n"
    "support, and put beside each what the clean base says under the IA (a claim made there too is the IA's). After\n"
    "`ia-jax calibrate`, say of each claim how probable it is, or that it can't be told.",
    writes="with --html a page, else nothing",
    time="about a minute for the demo on two cores",
    examples=(
        "ia-jax audit --workdir=runs/demo --adapter=path/to/peft_directory",
        "ia-jax audit --workdir=runs/demo --adapter=runs/other/organisms/quirk_howdy --questions=16 --json",
        "ia-jax audit --workdir=runs/demo --model=path/to/finetuned_checkpoint",
    ),
    arguments=(
        workdir("a workdir with a trained IA"),
        Argument.of(
            "--adapter",
            metavar="DIR",
            default=[],
            action="append",
            help="a PEFT directory or hub id, or an adapter directory of ia_jax; again for each applied with it",
        ),
        Argument.of(
            "--model",
            metavar="DIR",
            help="a merged or fully fine-tuned checkpoint of the base: a directory of safetensors, or a hub id",
        ),
        Argument.of(
            "--rank",
            type=positive,
            metavar="R",
            help="cut the checkpoint's difference to this rank (default: all of it)",
        ),
        Argument.of(
            "--evidence",
            action="store_true",
            help="measure the evidence for each claim even where the IA has no calibration (with one it always is)",
        ),
        Argument.of("--questions", type=positive, default=8, metavar="N", help="how many, up to 32 (default 8)"),
        Argument.of(
            "--samples",
            type=int,
            default=3,
            metavar="N",
            help="sampled replies to each, besides the greedy one (default 3)",
        ),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        Argument.of("--html", metavar="FILE", help="also write a page: one file that needs no network"),
        JSON,
    ),
    processes=True,
)
