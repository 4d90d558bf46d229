"""`ia-jax align`: a checkpoint put back into its base's basis."""

import argparse

from ia_jax.cli.arguments import JSON, Argument, Command
from ia_jax.cli.terminal import print_json
from ia_jax.cli.workdirs import new_directory


def _align(args: argparse.Namespace) -> None:
    from ia_jax.stages.checkpoint import align

    found = align(args.source, new_directory(args.destination), args.to, args.revision)
    if args.json:
        print_json(found)
        return
    print(f"undone: {found['in_words']}")
    print(
        f"distance to {found['base']}: {100 * found['distance_before']:.2f} % before, "
        f"{100 * found['distance_after']:.2f} % after"
    )
    print(f"{found['model']} -> {found['destination']} ({found['shards']} shards)")


COMMAND = Command(
    name="align",
    run=_align,
    summary="put a fine-tuned checkpoint back into the basis of its base",
    text="Find and undo changes of a checkpoint's weights that leave what it computes as it is: permuted MLP columns\n"
    "and heads, rotated values, turned queries and keys, rescaled norms and columns. Adapters of the base fit again.",
    writes="a checkpoint in DST, which must not exist or be empty",
    time="not measured for SmolLM2 (docs/evidence.md); no accelerator is used",
    examples=("ia-jax align path/to/finetune aligned --to=HuggingFaceTB/SmolLM2-135M-Instruct",),
    arguments=(
        Argument.of("source", metavar="MODEL", help="the fine-tune: a directory of safetensors, or a hub id"),
        Argument.of("destination", metavar="DST", help="the new directory"),
        Argument.of("--to", metavar="BASE", required=True, help="the base: smollm2, a directory, a .gguf or a hub id"),
        Argument.of("--revision", metavar="REV", help="of the fine-tune, where it is a hub id"),
        JSON,
    ),
)
