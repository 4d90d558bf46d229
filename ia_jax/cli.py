"""The `ia-jax` command: one subcommand for each stage, and a few that read a finished workdir.

Exit status 0 on success, 2 on a bad argument or config, 130 when stopped by hand, 141 when stdout was closed
(`| head`), 143 when SIGTERM was answered by saving (launchers restart on it), 1 otherwise. An error is one line on
stderr; `--traceback` adds the traceback.
Nothing heavy is imported before it is needed, so `--help` is instant.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import importlib
import json
import logging
import os
import re
import resource
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ia_jax.arguments import parser
from ia_jax.errors import ConfigError, IAError
from ia_jax.stages.order import STAGES, check_inputs, is_done

if TYPE_CHECKING:
    from ia_jax.judging.protocol import Judge
    from ia_jax.stages.session import Session
    from ia_jax.workdir import Workdir

INTERRUPTED = 130
PIPE_CLOSED = 141  # 128 + SIGPIPE, as of any command whose reader has left
TOGETHER = ("ask", "audit")  # like the stages, they run over several processes
OVERRIDE = re.compile(r"--(?:no)?config\.")


# ------------------------------------------------------------------------------------------------------------ workdirs


def _local(directory: str) -> Path:
    if "://" in directory:
        raise ConfigError(f"--workdir {directory}: workdirs in a bucket are not supported yet; give a local directory")
    return Path(directory)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps a second run from writing to the same workdir. The lock goes with the process, however it ends.

    Of several processes only the first can have it: enter it inside `on_main_process`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise IAError(f"cannot write to the workdir {path}: {error.strerror}; choose another --workdir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IAError(f"another ia-jax is working in {path}; wait for it, or use another --workdir") from None
        yield


@contextlib.contextmanager
def _opened(args: argparse.Namespace, overrides: Sequence[str]) -> Iterator["Workdir"]:
    """The workdir of a stage command, locked: continued, or started by `run` and `transcripts`."""
    from ia_jax.parallel.distributed import on_main_process
    from ia_jax.workdir import open_workdir

    with contextlib.ExitStack() as stack:
        yield open_workdir(on_main_process(lambda: str(_lock_and_start(stack, args, overrides))))


def _lock_and_start(stack: contextlib.ExitStack, args: argparse.Namespace, overrides: Sequence[str]) -> Path:
    """The path of the workdir, which is locked until `stack` is left; nothing in it is written before that."""
    from ia_jax.workdir import open_workdir, start_workdir

    path = _local(args.workdir)
    stored = (path / "config.json").exists()
    if args.config is None:
        if overrides and stored:
            raise ConfigError(f"{overrides[0]}: overrides need --config; {path} goes on with its stored config.json")
        if overrides or not stored:
            raise ConfigError(f"--config is required: {path} has no config.json to go on with")
        stack.enter_context(_locked(path))
        return open_workdir(path).path
    if not stored and args.command not in ("run", "transcripts"):
        raise ConfigError(f"workdir {path} does not exist or has no config.json; start it with `ia-jax transcripts`")
    from ia_jax.recipes import load_config

    config = load_config(args.config, overrides)  # a mistake in it leaves no directory behind
    stack.enter_context(_locked(path))
    return start_workdir(path, config).path


@contextlib.contextmanager
def _processes(args: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes of this run, if there are any; inside, the first one speaks, and all end together."""
    from ia_jax.parallel import distributed

    def explain(error: BaseException) -> tuple[str, int]:
        if getattr(args, "traceback", False):
            traceback.print_exception(error)
        return _explain(error)

    distributed.start()
    with distributed.end_together(explain):
        yield


# ------------------------------------------------------------------------------------------------------------ commands


def _stage(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from ia_jax.parallel.distributed import on_main_process, stop_if_preempted

    everything = args.command == "run"
    chosen = STAGES if everything else [s for s in STAGES if s.name == args.command]
    began = time.monotonic()
    with _opened(args, overrides) as workdir, _session(workdir) as session:
        if getattr(args, "estimate", False):
            from ia_jax.stages.transcripts import estimate

            print(estimate(session))
            return
        for number, stage in enumerate(chosen, 1):
            label = f"[{number}/{len(chosen)}] {stage.name}" if everything else stage.name
            if is_done(workdir, stage.name) and (everything or stage.name != "report"):
                print(f"{label}: already done", flush=True)
                continue
            stop_if_preempted(stage.name)
            on_main_process(partial(check_inputs, workdir, stage.name))
            start = time.monotonic()
            if stage.name == "report":
                on_main_process(lambda: _report(workdir))
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
    from ia_jax.planning import plan
    from ia_jax.planning.search import interruptible, search
    from ia_jax.recipes import load_config

    config = load_config(args.config, overrides)
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


def _export_peft(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    destination = _new_directory(args.destination)
    print(exchange.export([Path(s) for s in (args.source, *args.add)], destination, args.model, args.merged))


def _import_peft(args: argparse.Namespace) -> None:
    from ia_jax.stages import exchange

    print(exchange.bring_in(args.source, _new_directory(args.destination), args.model, args.revision))


def _adapters(args: argparse.Namespace) -> int:
    from ia_jax.stages import inventory
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
        with _locked(workdir.path):
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


def _agreement(args: argparse.Namespace) -> None:
    from ia_jax.behaviors.catalogue import load_catalogue
    from ia_jax.stages import agreement
    from ia_jax.stages.ask import plain
    from ia_jax.workdir import open_workdir

    workdir, file = open_workdir(_local(args.workdir)) if args.workdir else None, Path(args.labels)
    if args.draw:
        if workdir is None or file.exists():
            raise ConfigError(f"--draw takes reports from a --workdir and writes them to a new file, got {file}")
        agreement.write_unlabelled(file, workdir, args.draw)
        print(f"{file}: write yes or no into the fields label and strict of every line")
        return
    known = workdir.behaviors if workdir else {b.name: b for b in load_catalogue(args.catalogue)}
    labels = agreement.read_labels(file, known)
    result = agreement.agreement(labels, _judge(args.judge, workdir).judge_many(x.item for x in labels))
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else plain(agreement.as_text(result)))
    reached = result["lenient"]["all"]["kappa"]
    if reached is None:
        raise IAError(f"{file}: person and judge say the same throughout, so kappa is not defined; label more")
    if reached < args.min_kappa:
        raise IAError(f"kappa {reached} of {result['judge']} is below --min-kappa={args.min_kappa:g}")


def _judge(name: str, workdir: "Workdir | None") -> "Judge":
    """A judge outside a run. Claude is asked as the workdir's config says, with its cache and its cap."""
    if name == "rubric":
        from ia_jax.judging.rubric import RubricJudge

        return RubricJudge()
    if workdir is None:
        raise ConfigError(
            "--judge=claude needs a --workdir, whose config says how Claude is asked and what it may cost"
        )
    from ia_jax.stages.session import Session

    config = workdir.config
    return Session(workdir, dataclasses.replace(config, judge=dataclasses.replace(config.judge, name=name))).judge


def _new_directory(directory: str) -> Path:
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already and is not an empty directory; choose another DST")
    return path


@contextlib.contextmanager
def _session(workdir: "Workdir") -> Iterator["Session"]:
    import jax

    from ia_jax.stages.session import Session

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


def _quiet(loud: bool) -> None:
    """Keeps dependencies' notices off the terminal. Before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA raises what matters; the rest are notices
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("jax", "grain", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A failed write is raised; Orbax logs it from each of its threads too, and TensorStore's print a traceback each.
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR if loud else logging.CRITICAL)
    sys.excepthook = sys.__excepthook__ if loud else _of_main_thread
    warnings.filterwarnings("ignore", module=r"(?!ia_jax)")


def _of_main_thread(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(kind, error, where)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _explain(error: BaseException) -> tuple[str, int]:
    """What to print about an error, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; run the same command to continue", INTERRUPTED
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
    try:
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads stdout any more; what is left of it goes nowhere, so that the exit is quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in argv if OVERRIDE.match(a)]
    commands: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "adapters": _adapters,
        "agreement": _agreement,
        "ask": _ask,
        "audit": _audit,
        "behaviors": _behaviors,
        "export-peft": _export_peft,
        "import-peft": _import_peft,
    }
    try:
        args = parser().parse_args([a for a in argv if not OVERRIDE.match(a)])
        _quiet("--traceback" in argv)
        if args.command == "plan":
            _plan(args, overrides)
        elif args.command in commands:
            if overrides:
                raise ConfigError(f"{overrides[0]}: `ia-jax {args.command}` takes no overrides")
            with _processes(args) if args.command in TOGETHER else contextlib.nullcontext():
                return commands[args.command](args) or 0
        else:
            with _processes(args):
                _stage(args, overrides)
    except SystemExit as error:  # --help and --version
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if "--traceback" in argv:
            traceback.print_exc()
        text, status = _explain(error)
        print(f"ia-jax: error: {text}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
