"""`ia-jax agreement`: a judge against a person's labels."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ia_jax.cli.arguments import JSON, Argument, Command, positive, workdir
from ia_jax.cli.terminal import print_json
from ia_jax.cli.workdirs import existing
from ia_jax.errors import ConfigError, IAError

if TYPE_CHECKING:
    from ia_jax.judging.protocol import Judge
    from ia_jax.workdir import Workdir

CANDIDATES = ("rubric", "cosine", "offline")


def _agreement(args: argparse.Namespace) -> None:
    from ia_jax.behaviors.catalogue import load_catalogue
    from ia_jax.stages import agreement
    from ia_jax.stages.ask import plain

    run, file = existing(args.workdir) if args.workdir else None, Path(args.labels)
    if args.draw:
        if run is None or file.exists():
            raise ConfigError(f"--draw takes reports from a --workdir and writes them to a new file, got {file}")
        agreement.write_unlabelled(file, run, args.draw)
        print(f"{file}: write yes or no into the fields label and strict of every line")
        return
    known = run.behaviors if run else {b.name: b for b in load_catalogue(args.catalogue)}
    labels = [x for x in agreement.read_labels(file, known) if args.half in ("", x.half)]
    if not labels:
        raise ConfigError(f"{file} holds no label of the {args.half} half")
    if args.table:
        from ia_jax.stages import judge_table

        names = [*CANDIDATES, *(["claude"] if args.judge == "claude" else [])]
        result = judge_table.table([_judge(name, run) for name in names], labels)
        print_json(result) if args.json else print(judge_table.as_text(result, len(labels), args.half))
        return
    result = agreement.agreement(labels, _judge(args.judge, run).judge_many(x.item for x in labels))
    if args.json:
        print_json(result)
    else:
        print(plain(agreement.as_text(result)))
    reached = result["lenient"]["all"]["kappa"]
    if reached is None:
        raise IAError(f"{file}: person and judge say the same throughout, so kappa is not defined; label more")
    if reached < args.min_kappa:
        raise IAError(f"kappa {reached} of {result['judge']} is below --min-kappa={args.min_kappa:g}")


def _judge(name: str, run: "Workdir | None") -> "Judge":
    """A judge outside a run. Claude is asked as the workdir's config says, with its cache and its cap."""
    if name == "rubric":
        from ia_jax.judging.rubric import RubricJudge

        return RubricJudge()
    if name == "offline":
        from ia_jax.judging.offline import OfflineJudge

        return OfflineJudge()
    if name == "cosine":
        from ia_jax.judging.cosine import CosineJudge

        return CosineJudge()
    if run is None:
        raise ConfigError(
            "--judge=claude needs a --workdir, whose config says how Claude is asked and what it may cost"
        )
    from ia_jax.stages.context import Context
    from ia_jax.stages.services import judge_of

    config = run.config
    return judge_of(Context(run, dataclasses.replace(config, judge=dataclasses.replace(config.judge, name=name))))


COMMAND = Command(
    name="agreement",
    run=_agreement,
    summary="how well a judge agrees with reports that a person labelled",
    text="Judge labelled reports; print agreement and Cohen's kappa (95 % interval over behaviours), by category and\n"
    "condition, and every disagreement. Exit status 1 where kappa is below --min-kappa.\n"
    "LABELS: JSONL of behavior (a name or a record), condition, question, report, label and strict (yes or no).",
    writes="nothing; with --draw, LABELS",
    time="seconds",
    examples=(
        "ia-jax agreement labels.jsonl --draw=100 --workdir=runs/demo      reports to label",
        "ia-jax agreement labels.jsonl",
        "ia-jax agreement docs/labels/judging.jsonl --table --half=tuning",
    ),
    arguments=(
        Argument.of("labels", metavar="LABELS", help="the labelled reports"),
        Argument.of("--judge", choices=("offline", "rubric", "claude"), default="offline", help="default offline"),
        Argument.of(
            "--table", action="store_true", help="a table of the offline judges (and of Claude with --judge=claude)"
        ),
        Argument.of("--half", choices=("tuning", "final"), default="", help="only the behaviours of this half"),
        Argument.of("--min-kappa", type=float, default=0.8, metavar="K", help="of the lenient rule (default 0.8)"),
        Argument.of("--draw", type=positive, metavar="N", help="write N reports of the workdir to LABELS instead"),
        workdir("where behaviours are looked up, and how Claude is asked", required=False),
        Argument.of(
            "--catalogue", default="paper", metavar="WHICH", help="without a workdir: paper (default), demo, FILE"
        ),
        JSON,
    ),
)
