"""`ia-jax plan`: a stage's step, compiled for a TPU slice that one does not have."""

import argparse
import json
import os
import sys

from ia_jax.cli.arguments import JSON, Argument, Command, recipe
from ia_jax.cli.workdirs import existing
from ia_jax.errors import ConfigError, IAError


def _plan(args: argparse.Namespace) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU of this machine, if there is one, is not to be taken
    from ia_jax.planning.plan import plan, plan_by_hand
    from ia_jax.planning.prices import price_of, priced
    from ia_jax.planning.search import interruptible, search
    from ia_jax.planning.text import as_text
    from ia_jax.planning.topology import topology_of
    from ia_jax.recipes import load_config, override
    from ia_jax.stages.planned import planned

    workdir = existing(args.workdir) if args.workdir else None
    if args.config:
        config = load_config(args.config, args.overrides)
    elif workdir:
        config = override(workdir.config, args.overrides)
    else:
        raise ConfigError("plan needs --config=FILE, or a run's --workdir=DIR")
    where = topology_of(args.topology)
    chip = where.chip
    if args.price is not None:
        price_of(chip.name, args.price)  # a mistake in it is known before minutes of compiling
    if args.rows < 0:
        raise ConfigError(f"--rows {args.rows} is no number of rows")
    data = planned(workdir, memory=where.memory, rows=args.rows)
    if args.search:
        found = search(config, args.topology, args.stage, data, _progress)
    elif args.by_hand or not chip.libtpu:
        found = [plan_by_hand(config, args.topology, args.stage, data)]
    else:
        found = [interruptible(lambda: plan(config, args.topology, args.stage, data))]
    found = [priced(report, args.price) for report in found]
    if args.json:
        print(json.dumps(found if args.search else found[0]))
    else:
        print("\n\n".join(as_text(r) for r in found[:3]))
    if not found[0]["fits"]:
        raise IAError(f"the {args.stage} step does not fit {args.topology}; try --search, more chips or fewer rows")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


COMMAND = Command(
    name="plan",
    run=_plan,
    summary="compile a stage's step for a TPU slice that you do not have",
    text="Compile the true step of a stage for a TPU topology, here and without a TPU; report memory per chip,\n"
    "collectives, FLOPs, the step time that a roofline allows, chip-hours and dollars (docs/plan.md). GPUs, and all\n"
    "else with --by-hand, are not compiled for: a roofline by hand.",
    writes="nothing",
    time="a minute or more of compiling, which needs: pip install 'ia-jax[tpu]'; with --by-hand half a minute",
    examples=(
        "ia-jax plan --config=configs/llama33_70b.py --topology=v5p:2x2x4 --stage=sft",
        "ia-jax plan --config=configs/qwen3_14b.py --topology=v6e:2x4 --stage=organisms --json",
        "ia-jax plan --config=configs/llama33_70b.py --topology=2xv5p:2x2x2 --stage=sft    two slices",
        "ia-jax plan --config=configs/qwen3_8b.py --topology=h100:4 --stage=sft --price=2.5    by hand",
        "ia-jax plan --workdir=runs/70b --topology=v5p:2x2x4 --stage=dpo --search",
    ),
    arguments=(
        *recipe(required=False),
        Argument.of("--topology", required=True, metavar="CHIP:SHAPE", help="like v5p:4x4x4, 2xv5e:8x8 or h100:8"),
        Argument.of("--stage", required=True, metavar="STAGE", help="organisms, sft, dpo or sample"),
        Argument.of("--by-hand", action="store_true", help="compile nothing: a roofline from formulas"),
        Argument.of(
            "--price",
            metavar="DOLLARS",
            help="what an hour of one chip costs (default: list price, as ia_jax/planning/prices.json has it)",
        ),
        Argument.of(
            "--rows",
            type=int,
            default=0,
            metavar="N",
            help="with --stage=sample: rows of a batch (default: as many as a run takes, by the devices' memory)",
        ),
        Argument.of("--search", action="store_true", help="try meshes, rows and remat policies; print the best first"),
        Argument.of(
            "--workdir",
            metavar="DIR",
            help="count the tokens of this run's transcripts, organisms and preference pairs (default: of the "
            "catalogue's questions and descriptions, and of made-up demonstrations)",
        ),
        JSON,
    ),
    overrides=True,
)
