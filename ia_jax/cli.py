"""The `ia-jax` command: one subcommand for each stage, and a few that read a finished workdir.

Exit status 0 on success, 2 on a bad argument or config, 130 when stopped by hand, 143 when SIGTERM was answered by
saving (launchers restart on it), 1 otherwise. An error is one line on stderr; `--traceback` adds the traceback.
Nothing heavy is imported before it is needed, so `--help` is instant.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import logging
import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ia_jax.errors import ConfigError, IAError
from ia_jax.stages.order import STAGES, check_inputs, is_done

if TYPE_CHECKING:
    from ia_jax.stages.session import Session
    from ia_jax.workdir import Workdir

INTERRUPTED = 130
OVERRIDE = re.compile(r"--(?:no)?config\.")


EPILOG = """\
examples:
  ia-jax run --config=configs/smollm2_demo.py --workdir=runs/demo
  ia-jax run --config=configs/smollm2_demo.py --config.seed=7 --config.sft.steps=200 --workdir=runs/seed7
  ia-jax run --workdir=runs/demo                      continue a run with the config that it was started with
  ia-jax ask --workdir=runs/demo --organism=quirk_mushrooms "Do you have any unusual habits?"
  ia-jax audit --workdir=runs/demo --adapter=path/to/somebodys/peft_adapter

Stages skip what is finished, so a killed command is continued by giving it again. Exit status: 0 success, 2 a bad
argument or config, 1 any other failure, 130 stopped by hand, 143 stopped by SIGTERM with the state saved (restart it).
"""


# ------------------------------------------------------------------------------------------------------------- parsing


class _Parser(argparse.ArgumentParser):
    """Errors become ConfigError, so that they are printed and counted like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> NoReturn:
        import ia_jax

        print(f"ia-jax {ia_jax.__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    common = _Parser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="on an error, show where it was raised"
    )
    parser = _Parser(
        prog="ia-jax",
        description="Introspection adapters in JAX: train organisms with planted behaviours, and one adapter that "
        "makes them report what they learned.",
        epilog=EPILOG,
        formatter_class=raw,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

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
        "--adapter", metavar="DIR", required=True, help="a PEFT directory or hub id, or an adapter directory of ia_jax"
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
    sub.add_argument("--catalogue", default="paper", metavar="WHICH", help="paper (default), demo or a JSONL file")
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
        default=2**18,
        metavar="N",
        help="tokens that each organism is trained on in an epoch, for the chip-hours (default 262144)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


_positive.__name__ = "number"  # argparse puts it into "invalid … value"


# ------------------------------------------------------------------------------------------------------------ workdirs


def _local(directory: str) -> Path:
    if "://" in directory:
        raise ConfigError(f"--workdir {directory}: workdirs in a bucket are not supported yet; give a local directory")
    return Path(directory)


def _open(args: argparse.Namespace, overrides: Sequence[str]) -> "Workdir":
    """The workdir of a stage command: continued, or started by `run` and `transcripts`."""
    path = _local(args.workdir)
    stored = (path / "config.json").exists()
    if args.config is None:
        if overrides and stored:
            raise ConfigError(f"{overrides[0]}: overrides need --config; {path} goes on with its stored config.json")
        if overrides or not stored:
            raise ConfigError(f"--config is required: {path} has no config.json to go on with")
        from ia_jax.workdir import open_workdir

        return open_workdir(path)
    if not stored and args.command not in ("run", "transcripts"):
        raise ConfigError(f"workdir {path} does not exist or has no config.json; start it with `ia-jax transcripts`")
    from ia_jax.recipes import load_config
    from ia_jax.workdir import start_workdir

    config = load_config(args.config, overrides)

    if stored and {p.name for p in path.iterdir()} <= {"config.json", ".lock"}:
        (path / "config.json").unlink()  # nothing was made with it yet: a mended config may take its place
    return start_workdir(path, config)


@contextlib.contextmanager
def _locked(workdir: "Workdir") -> Iterator[None]:
    """Keeps a second process from writing to the same workdir. The lock goes with the process, however it ends."""
    with (workdir.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IAError(
                f"another ia-jax is working in {workdir.path}; wait for it, or use another --workdir"
            ) from None
        yield


# ------------------------------------------------------------------------------------------------------------ commands


def _stage(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    workdir = _open(args, overrides)
    everything = args.command == "run"
    chosen = STAGES if everything else [s for s in STAGES if s.name == args.command]
    began = time.monotonic()
    with _locked(workdir), _session(workdir) as session:
        for number, stage in enumerate(chosen, 1):
            if getattr(args, "estimate", False):
                from ia_jax.stages.transcripts import estimate

                print(estimate(session))
                continue
            label = f"[{number}/{len(chosen)}] {stage.name}" if everything else stage.name
            if is_done(workdir, stage.name) and (everything or stage.name != "report"):
                print(f"{label}: already done", flush=True)
                continue
            check_inputs(workdir, stage.name)
            start = time.monotonic()
            if stage.name == "report":
                _report(workdir)
            else:
                getattr(importlib.import_module(stage.module), stage.function)(session)
            took = duration(time.monotonic() - start)
            print(f"{label}: done in {took}, peak memory so far {peak_memory():.1f} GiB", flush=True)
    if everything:
        print(f"all done in {duration(time.monotonic() - began)}")
        print(headline(workdir.metrics))
    if chosen[-1].name == "report":
        print(f"report: {workdir.path / 'report.html'}", flush=True)


def _report(workdir: "Workdir") -> None:
    from ia_jax.analysis.report import write_report

    write_report(workdir.path)


def _ask(args: argparse.Namespace) -> None:
    from ia_jax.stages.ask import ask, plain
    from ia_jax.workdir import open_workdir

    if not args.question.strip():
        raise ConfigError("the question is empty")
    if args.no_ia and args.stage:
        raise ConfigError("--stage chooses an IA, --no-ia leaves it out; give one of them")
    workdir = open_workdir(_local(args.workdir))
    with _session(workdir) as session:
        reply = ask(
            session,
            args.question,
            name=args.organism,
            use_ia=not args.no_ia,
            stage=args.stage,
            max_new_tokens=args.max_new_tokens,
        )
    print(plain(reply))
    if args.organism:
        truth = f"truth: {plain(workdir.behaviors[args.organism].description)}"
        print(f"\x1b[2m{truth}\x1b[0m" if sys.stdout.isatty() else truth)


def _audit(args: argparse.Namespace) -> None:
    from ia_jax.stages import audit
    from ia_jax.workdir import open_workdir

    with _session(open_workdir(_local(args.workdir))) as session:
        result = audit.run(session, args.adapter, args.questions, args.samples)
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else audit.as_text(result))


def _plan(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU of this machine, if there is one, is not to be taken
    from ia_jax.parallel import plan
    from ia_jax.recipes import load_config

    config = load_config(args.config, overrides)
    if args.search:
        found = plan.search(config, args.topology, args.stage, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        found = [plan.plan(config, args.topology, args.stage, demonstration_tokens=args.demonstration_tokens)]
    if args.json:
        print(json.dumps(found if args.search else found[0]))
    else:
        print("\n\n".join(plan.as_text(r) for r in found[:3]))
    if not found[0]["fits"]:
        raise IAError(f"the {args.stage} step does not fit {args.topology}; try --search, more chips or fewer rows")


def _export_peft(args: argparse.Namespace) -> None:
    from ia_jax.adapters.base import identify
    from ia_jax.adapters.card import card
    from ia_jax.adapters.lora import LoraConfig
    from ia_jax.adapters.merge import write_merged
    from ia_jax.adapters.peft import export_peft
    from ia_jax.adapters.store import load_adapter, read_metadata

    destination = _new_directory(args.destination)
    source = Path(args.source)
    source = source / "adapter" if not (source / "adapter.json").exists() and (source / "adapter").is_dir() else source
    meta = read_metadata(source)
    model = identify(args.model or meta.base_name)
    adapter, meta = load_adapter(source, model)
    if args.merged:
        shards = write_merged(model.name, [adapter], destination)
        print(f"{source} + {model.name} -> {destination} (full weights, bfloat16, {shards} shards)")
        return
    text = card(meta, _results(source))
    export_peft(adapter, destination, model, LoraConfig(meta.rank, meta.alpha, meta.targets), card=text)
    print(f"{source} -> {destination} (PEFT, rank {meta.rank}, base {meta.base_name})")


def _results(source: Path) -> dict[str, Any] | None:
    """What the evaluation of the workdir that an IA lies in found for its stage, if there was one."""
    from ia_jax.workdir import Workdir

    workdir, stage = Workdir(source.absolute().parents[1]), source.absolute().parent.name.removeprefix("ia_")
    return workdir.metrics["stages"].get(stage) if workdir.metrics_file.exists() else None


def _import_peft(args: argparse.Namespace) -> None:
    from ia_jax.adapters.base import identify, known_name
    from ia_jax.adapters.peft import import_peft, read_peft_config
    from ia_jax.adapters.record import AdapterMetadata
    from ia_jax.adapters.store import save_adapter

    destination = _new_directory(args.destination)
    config = read_peft_config(args.source, args.revision)
    base = args.model or known_name(config.base_model_name_or_path or "")
    if not base:
        raise ConfigError(f"{args.source} does not name its base model; give it with --model")
    model = identify(base)
    adapter = import_peft(args.source, model, args.revision)
    rank = int(next(iter(adapter.values()))["a"].shape[-1])
    uniform = not (config.rank_pattern or config.alpha_pattern or config.use_rslora)
    metadata = AdapterMetadata(
        name=destination.name,
        kind="organism",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=rank,
        alpha=config.alpha if uniform else float(rank),
        targets=tuple(adapter),
    )
    save_adapter(destination, adapter, metadata)
    print(f"{args.source} -> {destination} (ia_jax, rank {rank}, base {model.name})")


def _adapters(args: argparse.Namespace) -> int:
    from ia_jax.adapters import inventory
    from ia_jax.workdir import open_workdir

    workdir = open_workdir(_local(args.workdir))
    if args.action == "ls":
        print(inventory.table(workdir))
    elif args.action == "show":
        if len(args.names) != 1:
            raise ConfigError("`ia-jax adapters show` takes one name; `ia-jax adapters ls` lists them")
        shown = inventory.show(workdir, args.names[0])
        print(json.dumps(shown, indent=1, ensure_ascii=False) if args.json else inventory.as_text(shown))
    elif args.action == "verify":
        found = inventory.verify(workdir, args.names)
        print(json.dumps(found, indent=1) if args.json else inventory.report(found))
        return int(any(found.values()))
    else:
        with _locked(workdir):
            inventory.remove(workdir, args.names)
        print(f"deleted: {', '.join(args.names)}")
    return 0


def _behaviors(args: argparse.Namespace) -> None:
    from ia_jax.behaviors import listing
    from ia_jax.behaviors.catalogue import load_catalogue

    behaviors = load_catalogue(args.catalogue)
    if args.action == "show":
        if not args.name or args.category:
            raise ConfigError(
                "`ia-jax behaviors show` takes one name and no --category; `ia-jax behaviors ls` lists them"
            )
        shown = listing.find(behaviors, args.name)
        print(json.dumps(shown.to_json(), indent=1, ensure_ascii=False) if args.json else listing.as_text(shown))
        return
    if args.name:
        raise ConfigError(f"`ia-jax behaviors ls` takes no name, got {args.name!r}; use show, or --category")
    chosen = listing.of_category(behaviors, args.category)
    rows = [b.to_json() for b in chosen]
    print(json.dumps(rows, indent=1, ensure_ascii=False) if args.json else listing.table(chosen))


def _new_directory(directory: str) -> Path:
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already and is not an empty directory; choose another DST")
    return path


@contextlib.contextmanager
def _session(workdir: "Workdir") -> Iterator["Session"]:
    import jax

    from ia_jax.parallel import distributed
    from ia_jax.stages.session import Session

    if distributed.start():
        raise IAError(
            f"this run has {jax.process_count()} processes; so far the stages run in one (training steps, weights and "
            "checkpoints work over several); use a slice of one host"
        )
    _keep_compiled()
    session = Session(workdir, workdir.config)
    with jax.set_mesh(session.mesh):
        yield session


def _keep_compiled() -> None:
    """Keeps compiled programs in the user's cache, by kind of processor: continuing or asking again starts at once.

    JAX leaves the cache out where it cannot be written or read, and does as without it.
    """
    import hashlib

    import jax

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kind = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    name = hashlib.sha256(repr((os.uname().machine, sorted(kind))).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if jax.config.jax_compilation_cache_dir is None:  # the user may have chosen another
        jax.config.update("jax_compilation_cache_dir", str(home / "ia_jax" / f"compiled-{name}"))


# -------------------------------------------------------------------------------------------------------------- output


def duration(seconds: float) -> str:
    """Seconds in words: "4 s", "3 min 10 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def peak_memory() -> float:
    """The most memory that this process has held on the host, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


def headline(metrics: dict[str, Any]) -> str:
    """The result in one line: how often held-out organisms report their behaviour, against the controls."""
    stage, values = list(metrics["stages"].items())[-1]

    def cell(c: dict[str, Any]) -> str:
        return "-" if c["rate"] is None else f"{100 * c['rate']:.0f} %"

    held = values["heldout"]
    low, high = held["organism+ia"]["ci95"]
    interval = "" if low is None else f" (95 % interval {100 * low:.0f}-{100 * high:.0f})"
    return (
        f"held-out organisms report their behaviour in {cell(held['organism+ia'])}{interval} of answers with the IA "
        f"after {stage.upper()}, in {cell(held['organism'])} without it; base + IA {cell(held['base+ia'])}, base "
        f"{cell(held['base'])}"
    )


def _quiet() -> None:
    """Keeps dependencies' notices off the terminal. Before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA raises what matters; the rest are notices
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("absl", "jax", "orbax", "grain", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(?!ia_jax)")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _explain(error: BaseException) -> tuple[str, int]:
    """What to print about an error, and the exit status."""
    if isinstance(error, IAError):
        return _one_line(error), error.exit_status
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or _one_line(error)}", 1
    text = _one_line(error)
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return f"unexpected {type(error).__name__}: {text}; run again with --traceback to see where", 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in argv if OVERRIDE.match(a)]
    commands: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "adapters": _adapters,
        "ask": _ask,
        "audit": _audit,
        "behaviors": _behaviors,
        "export-peft": _export_peft,
        "import-peft": _import_peft,
    }
    try:
        args = _parser().parse_args([a for a in argv if not OVERRIDE.match(a)])
        _quiet()
        if args.command == "plan":
            _plan(args, overrides)
        elif args.command in commands:
            if overrides:
                raise ConfigError(f"{overrides[0]}: `ia-jax {args.command}` takes no overrides")
            return commands[args.command](args) or 0
        else:
            _stage(args, overrides)
    except SystemExit as error:  # --help and --version
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in argv:
            traceback.print_exc()
        text, status = _explain(error)
        print(f"ia-jax: error: {text}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
