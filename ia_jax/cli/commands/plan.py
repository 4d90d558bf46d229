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
    from ia_jax.planning.plan import plan
    from ia_jax.planning.search import interruptible, search
    from ia_jax.planning.text import as_text
    from ia_jax.recipes import load_config, override
    from ia_jax.stages.planned import planned

    workdir = existing(args.workdir) if args.workdir else None
    if args.config:
        config = load_config(args.config, args.overrides)
    elif workdir:
        config = override(workdir.config, args.overrides)
    else:
        raise ConfigError("plan needs --config=FILE, or a run's --workdir=DIR")
    data = planned(workdir)
    if args.search:
        found = search(config, args.topology, args.stage, data, _progress)
    else:
        found = [interruptible(lambda: plan(config, args.topology, args.stage, data))]
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
    "collectives, FLOPs, the step time that a roofline allows, and chip-hours (docs/plan.md).",
    writes="nothing",
    time="a minute or more of compiling; needs: pip install 'ia-jax[tpu]'",
    examples=(
        "ia-jax plan --config=configs/llama33_70b.py --topology=v5p:2x2x4 --stage=sft",
        "ia-jax plan --config=configs/qwen3_14b.py --topology=v6e:2x4 --stage=organisms --json",
        "ia-jax plan --workdir=runs/70b --topology=v5p:2x2x4 --stage=dpo --search",
    ),
    arguments=(
        *recipe(required=False),
        Argument.of("--topology", required=True, metavar="CHIP:SHAPE", help="like v5p:4x4x4 or v5e:8x8"),
        Argument.of("--stage", required=True, metavar="STAGE", help="organisms, sft, dpo or sample"),
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
