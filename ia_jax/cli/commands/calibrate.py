"""`ia-jax calibrate`: how far an IA's reports are to be believed."""

import argparse

from ia_jax.cli.arguments import Argument, Command, positive, workdir
from ia_jax.cli.workdirs import existing, locked, on_mesh
from ia_jax.errors import ConfigError


def _calibrate(args: argparse.Namespace) -> None:
    import contextlib

    from ia_jax.behaviors.splits import SPLITS
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.stages import calibrate

    run = existing(args.workdir)
    splits, test, sorts = (_names(x) for x in (args.splits, args.test, args.test_sorts))
    for option, given in (("splits", splits), ("test", test)):
        if unknown := [s for s in given if s not in SPLITS]:
            raise ConfigError(f"--{option}: {unknown[0]!r} is no split; choose from {', '.join(SPLITS)}")
    if not 0 < args.alpha < 1:
        raise ConfigError(f"--alpha={args.alpha:g} must lie between 0 and 1")
    if args.bank < 0 or args.samples < 0:
        raise ConfigError("--bank and --samples must not be negative")
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: (stack.enter_context(locked(run.path)), None)[1])
        context = stack.enter_context(on_mesh(run))
        print(
            calibrate.run(
                context,
                ia=args.ia,
                splits=splits,
                nulls=args.nulls,
                test=test,
                test_sorts=sorts,
                audits=_names(args.audits),
                alpha=args.alpha,
                bank=args.bank,
                questions=args.questions,
                samples=args.samples,
                kind=args.by,
            )
        )


def _names(text: str) -> list[str]:
    return [s for s in text.split(",") if s]


COMMAND = Command(
    name="calibrate",
    run=_calibrate,
    summary="learn from models that the IA never saw how far its reports are to be believed",
    text="Weigh the claims of organisms and clean fine-tunes that the IA was not trained on, and learn from them the\n"
    "probability that a claim is right, and a threshold that clean fine-tunes seldom exceed. `ia-jax audit` uses it.",
    writes="ia/<name>/calibration.json, and evidence*.jsonl, from which a killed calibration goes on",
    time="about 8 s for each model of the demo on two cores with AMX (docs/evidence.md)",
    examples=(
        "ia-jax nulls --workdir=runs/demo && ia-jax calibrate --workdir=runs/demo",
        "ia-jax calibrate --workdir=runs/demo --ia=sft --test=heldout,remade --test-sorts=documents,random,doubled",
    ),
    arguments=(
        workdir("a workdir with a trained IA"),
        Argument.of("--ia", metavar="NAME", help="which IA: sft, dpo or another name (default: the last one)"),
        Argument.of(
            "--splits",
            metavar="A,B",
            default="",
            help="of which splits (default: dpo for an IA that was not trained on it, else heldout)",
        ),
        Argument.of(
            "--nulls",
            metavar="DIR",
            action="append",
            default=[],
            help="clean fine-tunes besides those of `ia-jax nulls`: an adapter directory of ia_jax, or a directory "
            "of them (again for each)",
        ),
        Argument.of(
            "--test",
            metavar="A,B",
            default="",
            help="splits to measure it on that it does not see, such as heldout,remade (default: none)",
        ),
        Argument.of(
            "--test-sorts",
            metavar="A,B",
            default="",
            help="sorts of clean fine-tunes to measure it on that it does not see (default: none)",
        ),
        Argument.of(
            "--audits",
            metavar="A,B",
            default="",
            help="finished audits (`ia-jax audit-family`) on whose targets to measure it too (default: none)",
        ),
        Argument.of(
            "--alpha", type=float, default=0.05, metavar="A", help="false reports allowed on nulls (default 0.05)"
        ),
        Argument.of("--bank", type=int, default=8, metavar="N", help="nulls that are only compared with (default 8)"),
        Argument.of("--questions", type=positive, default=8, metavar="N", help="how many, up to 32 (default 8)"),
        Argument.of("--samples", type=int, default=3, metavar="N", help="sampled replies to each (default 3)"),
        Argument.of(
            "--by", choices=("logistic", "isotonic"), default="logistic", help="what is fitted (default logistic)"
        ),
    ),
    processes=True,
)
