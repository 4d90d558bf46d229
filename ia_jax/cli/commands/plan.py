"""`ia-jax plan`: a stage's step, compiled for a TPU slice that one does not have."""

import argparse
import json
import os
import sys

from ia_jax.cli.arguments import JSON, Argument, Command, positive, recipe
from ia_jax.errors import IAError


def _plan(args: argparse.Namespace) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU of this machine, if there is one, is not to be taken
    from ia_jax.planning import plan
    from ia_jax.planning.search import interruptible, search
    from ia_jax.recipes import load_config

    config = load_config(args.config, args.overrides)
    if args.search:
        found = search(config, args.topology, args.stage, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        tokens = args.demonstration_tokens
        found = [interruptible(lambda: plan.plan(config, args.topology, args.stage, demonstration_tokens=tokens))]
    if args.json:
        print(json.dumps(found if args.search else found[0]))
    else:
        print("\n\n".join(plan.as_text(r) for r in found[:3]))
    if not found[0]["fits"]:
        raise IAError(f"the {args.stage} step does not fit {args.topology}; try --search, more chips or fewer rows")


COMMAND = Command(
    name="plan",
    run=_plan,
    summary="compile a stage's step for a TPU slice that you do not have",
    text="Compile the true step of a stage for a TPU topology, here and without a TPU; report memory per chip,\n"
    "collectives, FLOPs, the step time that a roofline allows, and chip-hours (docs/plan.md).",
    writes="nothing",
    time="a minute or more of compiling; needs: pip install 'ia-jax[tpu]'",
    examples=(
        "ia-jax plan --config=configs/llama33_70b.py --topology=v5p:4x4x4 --stage=sft",
        "ia-jax plan --config=configs/qwen3_14b.py --topology=v5e:4x4 --stage=organisms --config.mesh.tp=2 --json",
        "ia-jax plan --config=configs/llama33_70b.py --topology=v5e:8x8 --stage=dpo --search",
    ),
    arguments=(
        *recipe(required=True),
        Argument.of("--topology", required=True, metavar="CHIP:SHAPE", help="like v5p:4x4x4 or v5e:8x8"),
        Argument.of("--stage", required=True, metavar="STAGE", help="organisms, sft, dpo or sample"),
        Argument.of("--search", action="store_true", help="try meshes, rows and remat policies; print the best first"),
        Argument.of(
            "--demonstration-tokens",
            type=positive,
            default=0,
            metavar="N",
            help="tokens that an organism reads in an epoch, for the chip-hours (default: 512 for each of "
            "teacher.rows)",
        ),
        JSON,
    ),
    overrides=True,
)
