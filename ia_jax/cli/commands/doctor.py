"""`ia-jax doctor`: what this machine has, and how long a run would take on it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ia_jax.cli.arguments import JSON, Argument, Command, recipe
from ia_jax.cli.terminal import print_json
from ia_jax.storage import path_of

if TYPE_CHECKING:
    from ia_jax.config import RunConfig

DEMO = Path("configs/smollm2_demo.py")


def _doctor(args: argparse.Namespace) -> None:
    from ia_jax.stages.doctor import as_text, examine

    directory = path_of(args.workdir)
    config, what = _config(args, directory)
    facts = examine(config, directory, what=what)
    if args.json:
        print_json(facts)
    else:
        print(as_text(facts))


def _config(args: argparse.Namespace, directory: Path) -> "tuple[RunConfig | None, str]":
    """The run that is asked about, and what it is called: that of --config, of the workdir, else the demo where this is
    a checkout of ia_jax.
    """
    from ia_jax.errors import ConfigError
    from ia_jax.recipes import load_config, override
    from ia_jax.workdir import open_workdir

    if args.config is not None:
        return load_config(args.config, args.overrides), "this run"
    if (directory / "config.json").exists():
        return override(open_workdir(directory).config, args.overrides), "this run"
    places = (DEMO, Path(__file__).parents[3] / DEMO)
    demo = next((str(p) for p in places if p.is_file()), None)
    if demo is None and args.overrides:
        raise ConfigError(f"{args.overrides[0]}: there is no recipe to change; give --config=FILE.py")
    return (load_config(demo, args.overrides) if demo else None), "the demo"


COMMAND = Command(
    name="doctor",
    run=_doctor,
    summary="what this machine has, what can be reached from it, and how long the demo takes here",
    text="Devices, the number type that model.dtype=auto comes to and why, measured rates of matrix products, memory,\n"
    "disk, versions, whether the hub, Claude and a bucket can be reached (keys are never printed), and an estimate of\n"
    "the demo's time here, or of another run's.",
    writes="nothing",
    time="about 15 seconds, most of them counting what the run will read",
    examples=(
        "ia-jax doctor",
        "ia-jax doctor --config=configs/smollm2_study.py --workdir=/elsewhere/study",
        "ia-jax doctor --json",
    ),
    arguments=(
        *recipe(required=False, more=" (default: the workdir's config, else the demo's)"),
        Argument.of("--workdir", metavar="DIR", default="runs/demo", help="where the run is or will be: runs/demo"),
        JSON,
    ),
    overrides=True,
)
