"""`ia-jax config`: a config as it comes out, two compared, and the reference of all settings."""

import argparse

from ia_jax.cli.arguments import JSON, Argument, Command
from ia_jax.cli.terminal import print_json
from ia_jax.errors import ConfigError


def _config(args: argparse.Namespace) -> None:
    {"show": _show, "diff": _diff, "reference": _reference}[args.action](args)


def _show(args: argparse.Namespace) -> None:
    import dataclasses

    from ia_jax.cli.config_reference import as_text, changed
    from ia_jax.recipes import override, read_config

    if args.config is None or args.sources:
        raise ConfigError("`ia-jax config show` takes --config=FILE (a recipe, a workdir or a config.json)")
    config = override(read_config(args.config), args.overrides)
    if args.json:
        other = {name: {"default": a, "value": b} for name, (a, b) in changed(config).items()}
        print_json({"config": dataclasses.asdict(config), "changed": other})
    else:
        print(as_text(config))


def _diff(args: argparse.Namespace) -> None:
    from ia_jax.cli.config_reference import difference, difference_as_text
    from ia_jax.recipes import read_config

    if len(args.sources) != 2 or args.config is not None or args.overrides:
        raise ConfigError("`ia-jax config diff` takes two of: a recipe, a workdir, a config.json; and no overrides")
    found = difference(*map(read_config, args.sources))
    if args.json:
        print_json({name: list(values) for name, values in found.items()})
    else:
        print(difference_as_text(found, *args.sources))


def _reference(args: argparse.Namespace) -> None:
    from ia_jax.cli.config_reference import markdown

    if args.sources or args.config is not None or args.overrides or args.json:
        raise ConfigError("`ia-jax config reference` takes no arguments; it prints docs/config.md")
    print(markdown(), end="")


COMMAND = Command(
    name="config",
    run=_config,
    summary="what a recipe comes to, how two configs differ, or all settings there are",
    text="show: every setting of --config, a star beside those that are not at their default. diff A B: the settings\n"
    "in which two differ. reference: what every setting means, as in docs/config.md.",
    writes="nothing",
    time="a few seconds",
    examples=(
        "ia-jax config show --config=configs/smollm2_demo.py --config.sft.steps=50",
        "ia-jax config diff configs/qwen3_8b.py configs/qwen3_14b.py",
        "ia-jax config diff runs/demo configs/smollm2_demo.py --json",
    ),
    arguments=(
        Argument.of("action", choices=("show", "diff", "reference")),
        Argument.of("sources", nargs="*", metavar="A B", help="of diff: recipes, workdirs or config.json files"),
        Argument.of("--config", metavar="FILE", help="of show: a recipe, a workdir or a config.json"),
        Argument.of("--config.FIELD", metavar="VALUE", help="of show: override any field, like --config.sft.steps=50"),
        JSON,
    ),
    overrides=True,
)
