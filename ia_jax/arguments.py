"""The arguments of `ia-jax`: its subcommands, their options, and help worth reading. Imports nothing heavy."""

import argparse
from typing import NoReturn

from ia_jax.errors import ConfigError
from ia_jax.stages.order import STAGES

EPILOG = """\
examples:
  ia-jax run --config=configs/smollm2_demo.py --workdir=runs/demo
  ia-jax run --config=configs/smollm2_demo.py --config.seed=7 --config.sft.steps=200 --workdir=runs/seed7
  ia-jax run --workdir=runs/demo                      continue a run with the config that it was started with
  ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms "Do you have any unusual habits?"
  ia-jax audit --workdir=runs/demo --adapter=path/to/somebodys/peft_adapter

Stages skip what is finished, so a killed command is continued by giving it again. Exit status: 0 success, 2 a bad
argument or config, 1 any other failure, 130 stopped by hand, 141 stdout closed, 143 stopped by SIGTERM with the state
saved (restart it).
"""


class _Parser(argparse.ArgumentParser):
    """Errors become ConfigError, so that they are printed and counted like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> NoReturn:
        import ia_jax

        print(f"ia-jax {ia_jax.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    common = _Parser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="on an error, show where it was raised"
    )
    top = _Parser(
        prog="ia-jax",
        description="Introspection adapters in JAX: train organisms with planted behaviours, and one adapter that "
        "makes them report what they learned.",
        epilog=EPILOG,
        formatter_class=raw,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=text,
            formatter_class=raw,
            parents=[common],
            allow_abbrev=False,
        )

    workdir = "the run's directory, local; created by `run` and `transcripts`"
    for name, summary, writes, minutes in (
        (
            "run",
            "all stages in order; skips what is finished",
            "all of the workdir, report.html last",
            "about 20 minutes",
        ),
        *((s.name, s.summary, s.writes, s.minutes) for s in STAGES),
    ):
        text = f"{summary[0].upper()}{summary[1:]}.\n\nwrites: {writes}\ndemo on two cores: {minutes}\n\nexample:\n"
        text += f"  ia-jax {name} --config=configs/smollm2_demo.py --workdir=runs/demo"
        sub = command(name, summary, text)
        sub.add_argument(
            "--config",
            metavar="FILE.py",
            help="recipe, a Python file with get_config(); may be left out where the workdir has a config.json",
        )
        sub.add_argument("--config.FIELD", metavar="VALUE", help="override any field, like --config.sft.steps=50")
        sub.add_argument("--workdir", metavar="DIR", required=True, help=workdir)
        if name == "transcripts":
            sub.add_argument("--estimate", action="store_true", help="only print what the Claude teacher would cost")

    sub = command(
        "ask",
        "one question to an organism, to the clean base, or to either under the IA",
        "Print the reply to one question, and under it the truth about the organism.\n\nwrites: nothing\n"
        "demo on two cores: 20 seconds\n\nexamples:\n"
        '  ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms "Do you have any unusual habits?"\n'
        '  ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms --no-ia "How do I make tea?"\n'
        '  ia-jax ask --workdir=runs/demo "What is unusual about you?"       the clean base under the IA',
    )
    sub.add_argument("--workdir", metavar="DIR", required=True, help="a workdir with organisms and an IA")
    sub.add_argument(
        "--organism", metavar="NAME", help="a name of behaviors.jsonl; without it, the clean base is asked"
    )
    sub.add_argument("--no-ia", action="store_true", help="ask without the introspection adapter")
    sub.add_argument("--stage", choices=("sft", "dpo"), help="which IA (default: after DPO if there is one)")
    sub.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N", help="default 64")
    sub.add_argument("question")

    sub = command(
        "audit",
        "attach the IA to somebody's fine-tune and print what it reports, with its evidence",
        "Ask a LoRA fine-tune of the same base about itself under the trained IA; group the reports, rank them by\n"
        "support, and put beside each what the clean base says under the IA (a claim made there too is the IA's).\n\n"
        "writes: nothing\ndemo on two cores: about a minute\n\nexamples:\n"
        "  ia-jax audit --workdir=runs/demo --adapter=path/to/peft_directory\n"
        "  ia-jax audit --workdir=runs/demo --adapter=runs/other/organisms/quirk_mushrooms --questions=16 --json",
    )
    sub.add_argument("--workdir", metavar="DIR", required=True, help="a workdir with a trained IA")
    sub.add_argument(
        "--adapter",
        metavar="DIR",
        required=True,
        action="append",
        help="a PEFT directory or hub id, or an adapter directory of ia_jax; again for each that is applied with it",
    )
    sub.add_argument("--questions", type=_positive, default=8, metavar="N", help="how many, up to 32 (default 8)")
    sub.add_argument(
        "--samples",
        type=int,
        default=3,
        metavar="N",
        help="sampled replies to each, besides the greedy one (default 3)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON and nothing else")

    for name, summary, what in (
        (
            "export-peft",
            "an adapter of ia_jax to a PEFT directory",
            "adapter_config.json and adapter_model.safetensors",
        ),
        ("import-peft", "a PEFT adapter to an adapter directory of ia_jax", "an Orbax adapter directory"),
    ):
        example = "runs/demo/ia_dpo/adapter exported" if name == "export-peft" else "exported imported --model=smollm2"
        sub = command(
            name,
            summary,
            f"{summary[0].upper()}{summary[1:]}, bit for bit.\n\nwrites: {what} in DST, which must not exist or be "
            f"empty\ndemo: seconds\n\nexample:\n  ia-jax {name} {example}",
        )
        sub.add_argument("source", metavar="SRC", help="the adapter's directory" + (" or hub id" * (name[0] == "i")))
        sub.add_argument("destination", metavar="DST", help="the new directory")
        sub.add_argument("--model", metavar="NAME", help="its base (default: the one that the adapter names)")
        if name == "import-peft":
            sub.add_argument("--revision", metavar="COMMIT", help="of a hub id: branch, tag or commit to take it from")
        else:
            sub.add_argument(
                "--add",
                metavar="SRC",
                action="append",
                default=[],
                help="another adapter on the same base; the sum is written, exactly (again for each)",
            )
            sub.add_argument(
                "--merged",
                action="store_true",
                help="write base + adapter as full weights (safetensors shards) instead",
            )

    sub = command(
        "adapters",
        "list, show, verify or delete the adapters of a workdir",
        "ls: a line for every adapter. show NAME: all that is written down about it. verify [NAME ...]: reads every\n"
        "byte and names what is damaged (exit status 1). rm NAME ...: deletes; its stage makes it again.\n\n"
        "writes: nothing, but rm deletes\ndemo: seconds\n\nexamples:\n"
        "  ia-jax adapters ls --workdir=runs/demo\n  ia-jax adapters verify --workdir=runs/demo",
    )
    sub.add_argument("action", choices=("ls", "show", "verify", "rm"))
    sub.add_argument("names", nargs="*", metavar="NAME", help="organisms, ia_sft or ia_dpo")
    sub.add_argument("--workdir", metavar="DIR", required=True, help="a workdir")
    sub.add_argument("--json", action="store_true", help="of show and verify: print JSON and nothing else")

    sub = command(
        "behaviors",
        "list the behaviours of a catalogue, or show one in full",
        "ls: a line for every behaviour, by category. show NAME: all that is written down about one.\n\n"
        "writes: nothing\ntakes a second\n\nexamples:\n  ia-jax behaviors ls --category=sandbaggers\n"
        "  ia-jax behaviors show quirk_tidal_pools\n  ia-jax behaviors ls --catalogue=my_behaviors.jsonl --json",
    )
    sub.add_argument("action", choices=("ls", "show"))
    sub.add_argument("name", nargs="?", metavar="NAME", help="of show: the behaviour")
    sub.add_argument("--category", metavar="NAME", help="of ls: this category alone")
    sub.add_argument(
        "--catalogue", default="paper", metavar="WHICH", help="paper (default), demo, study or a JSONL file"
    )
    sub.add_argument("--json", action="store_true", help="print JSON and nothing else")

    sub = command(
        "agreement",
        "how well a judge agrees with reports that a person labelled",
        "Judge labelled reports; print agreement and Cohen's kappa (95 % interval over behaviours), by category and\n"
        "condition, and every disagreement. Exit status 1 where kappa is below --min-kappa.\n"
        "LABELS: JSONL of behavior (a name or a record), condition, question, report, label and strict (yes or no).\n\n"
        "writes: nothing; with --draw, LABELS\ntakes seconds\n\nexamples:\n"
        "  ia-jax agreement labels.jsonl --draw=100 --workdir=runs/demo      reports to label\n"
        "  ia-jax agreement labels.jsonl",
    )
    sub.add_argument("labels", metavar="LABELS", help="the labelled reports")
    sub.add_argument("--judge", choices=("rubric", "claude"), default="rubric", help="default rubric")
    sub.add_argument("--min-kappa", type=float, default=0.8, metavar="K", help="of the lenient rule (default 0.8)")
    sub.add_argument("--draw", type=_positive, metavar="N", help="write N reports of the workdir to LABELS instead")
    sub.add_argument("--workdir", metavar="DIR", help="where behaviours are looked up, and how Claude is asked")
    sub.add_argument(
        "--catalogue", default="paper", metavar="WHICH", help="without a workdir: paper (default), demo, FILE"
    )
    sub.add_argument("--json", action="store_true", help="print JSON and nothing else")

    sub = command(
        "plan",
        "compile a stage's step for a TPU slice that you do not have",
        "Compile the true step of a stage for a TPU topology, here and without a TPU; report memory per chip,\n"
        "collectives, FLOPs, the step time that a roofline allows, and chip-hours (docs/plan.md).\n\nwrites: nothing\n"
        "needs: pip install 'ia-jax[tpu]'; a minute or more of compiling\n\nexamples:\n"
        "  ia-jax plan --config=configs/llama33_70b.py --topology=v5p:4x4x4 --stage=sft\n"
        "  ia-jax plan --config=configs/qwen3_14b.py --topology=v5e:4x4 --stage=organisms --config.mesh.tp=2 --json\n"
        "  ia-jax plan --config=configs/llama33_70b.py --topology=v5e:8x8 --stage=dpo --search",
    )
    sub.add_argument("--config", metavar="FILE.py", required=True, help="recipe, a Python file with get_config()")
    sub.add_argument("--config.FIELD", metavar="VALUE", help="override any field, like --config.mesh.tp=4")
    sub.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="like v5p:4x4x4 or v5e:8x8")
    sub.add_argument("--stage", required=True, metavar="STAGE", help="organisms, sft, dpo or sample")
    sub.add_argument("--search", action="store_true", help="try meshes, rows and remat policies; print the best first")
    sub.add_argument(
        "--demonstration-tokens",
        type=_positive,
        default=0,
        metavar="N",
        help="tokens that an organism reads in an epoch, for the chip-hours (default: 512 for each of teacher.rows)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


_positive.__name__ = "number"  # argparse puts it into "invalid … value"
