"""What a person reads on the terminal: errors in one line, JSON; and silence from dependencies."""

import json
import logging
import os
import resource
import sys
import threading
import warnings
from types import TracebackType
from typing import Any

from ia_jax.errors import IAError

INTERRUPTED = 130


def explain(error: BaseException) -> tuple[str, int]:
    """What to print about an error, in one line, and the exit status."""
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def peak_memory() -> float:
    """The most memory that this process has held on the host, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


def silence_dependencies(loud: bool) -> None:
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
