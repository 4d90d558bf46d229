"""Several processes as one run: how they find each other, decide together, stop together, and which of them speaks.

Every process runs the same stages over the same config; each computes its own part of a batch, and process 0 alone
writes files and logs. What a stage finds in files it asks with `on_main_process`, so that no two processes
act on different answers. The workdir must be one that all of them see.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from ia_jax import errors
from ia_jax.errors import ConfigError, IAError, Preempted

EXPLICIT = ("IA_JAX_COORDINATOR", "IA_JAX_PROCESSES", "IA_JAX_PROCESS")
AUTO = "IA_JAX_DISTRIBUTED"
WATCH_SECONDS = 0.5  # how often a process looks whether another has ended with an error
SAME_SECONDS = 2  # how long process 0 may take to meet an error that another has told it of, so that it is everybody's
LEAVE_SECONDS = 10  # how long process 0 waits for the others to be gone
FOREVER_MS = 30 * 24 * 3600 * 1000  # a teacher's or judge's batch may take a day

T = TypeVar("T")


# --------------------------------------------------------------------------------------------------------------- start


def start(environ: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes, where the environment says that there are any; must come before the first computation.

    Explicitly: IA_JAX_COORDINATOR=host:port, IA_JAX_PROCESSES=n, IA_JAX_PROCESS=i. Under Slurm with several tasks, or
    with IA_JAX_DISTRIBUTED=auto (set by `launch/`; TPU pods and others that jax knows): jax finds out by itself.
    Returns whether there are several; called again, it does no more than that. Raises ConfigError where the variables
    do not fit together, IAError where the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return is_multi_process()
    given = [name for name in EXPLICIT if name in environ]
    if given and len(given) < len(EXPLICIT):
        missing = next(name for name in EXPLICIT if name not in environ)
        raise ConfigError(f"{given[0]} is set but {missing} is not; set all of {', '.join(EXPLICIT)}")
    if given:
        count, number = (_number(environ, name) for name in EXPLICIT[1:])
        if not 0 <= number < count:
            raise ConfigError(f"IA_JAX_PROCESS={number} must lie in 0 … {count - 1} (IA_JAX_PROCESSES={count})")
        _join(environ[EXPLICIT[0]], count, number)
    elif environ.get(AUTO, "") == "auto" or _slurm_tasks(environ) > 1:
        _join()
    elif environ.get(AUTO, ""):
        raise ConfigError(f"{AUTO}={environ[AUTO]} unknown; set it to auto, or leave it out")
    return is_multi_process()


def _join(*explicit: Any) -> None:
    try:
        jax.distributed.initialize(*explicit)
    except (RuntimeError, ValueError) as error:
        where = f" at {explicit[0]}" if explicit else ""
        raise IAError(
            f"cannot join the other processes of this run{where} ({' '.join(str(error).split())[:200]}); start all of "
            "them within five minutes of each other, where each can reach the first"
        ) from error


def is_multi_process() -> bool:
    """Whether this run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1  # the first alone wakes no device


def is_main_process() -> bool:
    """Whether this process writes files and logs."""
    return not is_multi_process() or jax.process_index() == 0


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    # Of the step, not of the allocation: a plain command inside an allocation is one process.
    return _number(environ, "SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in environ else 1


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(f"{name}={environ[name]} is not a number") from None


def _coordinator() -> Any:
    """The key-value store that all processes share. jax has no public name for it; Orbax takes it from here too."""
    from jax._src.distributed import global_state

    return global_state.client


# ------------------------------------------------------------------------------------------------------------ together


_asked = itertools.count()
_alone = threading.Event()  # set while process 0 is inside `on_main_process`
as_if_several = False  # whether one process, too, refuses values that others could not be told; tests set it


def on_main_process(work: Callable[[], T]) -> T:
    """`work()` on process 0 alone; its value, or its error, on every process. So also: what it wrote is there for all.

    The value travels as JSON, and must be what JSON gives back: None, numbers, text, lists and dicts with text as keys.
    All processes must call it, in the same order, from the main thread; `work` must not compute on the mesh. A plain
    call where there is one process (and in tests a value that others could not be told is an error there too), and
    inside another `on_main_process`.
    """
    if _alone.is_set() or not (is_multi_process() or as_if_several):
        return work()
    if not is_multi_process():
        with _by_itself():
            value = work()
        _in_json(value)
        return value
    key = f"ia_jax/once/{next(_asked)}"
    if not is_main_process():
        told = json.loads(_coordinator().blocking_key_value_get(key, FOREVER_MS))
        if "error" in told:
            name, text = told["error"]
            raise getattr(errors, name, IAError)(text)
        return told["value"]
    try:
        with _by_itself():
            value = work()
        told = _in_json(value)
    except Exception as error:
        _coordinator().key_value_set(key, json.dumps({"error": [type(error).__name__, str(error)]}))
        raise
    _coordinator().key_value_set(key, told)
    return value


@contextmanager
def _by_itself() -> Iterator[None]:
    _alone.set()
    try:
        yield
    finally:
        _alone.clear()


def check_together(what: str) -> None:
    """Raises RuntimeError where this is inside an `on_main_process`: the others, who are to take part, wait there."""
    if _alone.is_set():
        raise RuntimeError(f"{what}: all processes do this together, and this is one alone")


def _in_json(value: object) -> str:
    told = json.dumps({"value": value})
    if json.loads(told)["value"] != value:
        raise TypeError(f"on_main_process: {value!r} does not survive JSON")
    return told


_told = itertools.count()


def from_every_process(value: T) -> list[T]:
    """Every process's value, on every process, in the order of the processes; so also: all have come this far.

    Values travel as JSON, as in `on_main_process`; [value] where there is one process.
    """
    if not is_multi_process() or _alone.is_set():
        return [value]
    key, service = f"ia_jax/every/{next(_told)}", _coordinator()
    service.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(service.blocking_key_value_get(f"{key}/{i}", FOREVER_MS)) for i in range(jax.process_count())]


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of work that all could do; all of it inside `on_main_process`."""
    alone = not is_multi_process() or _alone.is_set()
    return items if alone else items[jax.process_index() :: jax.process_count()]


_looked = itertools.count(1)


def should_stop() -> bool:
    """Whether SIGTERM came to any process. All get the same answer, at the same call: jax's service picks one ahead.

    All processes must ask equally often. It says yes once: save, and leave.
    """
    return multihost_utils.reached_preemption_sync_point(next(_looked))


def stop_if_preempted(what: str) -> None:
    """Raises Preempted, on all of several processes alike, if one was told to stop. A single one ends by itself."""
    if is_multi_process() and should_stop():
        raise Preempted(f"{what}: stopped by SIGTERM; the same command continues")


# ------------------------------------------------------------------------------------------------------------- the end


_ENDED = "ia_jax/ended"
_leaving = threading.Lock()


@contextmanager
def end_together(explain: Callable[[BaseException], tuple[str, int]]) -> Iterator[None]:
    """Inside, only process 0 prints; and an error on any process ends all of them.

    Process 0 says in one line what `explain` makes of the first error, and every process exits with its status. Without
    this the others would wait in their next collective for one that never comes.
    """
    if not is_multi_process():
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(done,), daemon=True).start()
    try:
        with nullcontext() if is_main_process() else _silent():
            yield
    except BaseException as error:
        _end(*explain(error))
    finally:
        done.set()


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard output, to which libraries below Python print too."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _watch(done: threading.Event) -> None:
    while not done.wait(WATCH_SECONDS):
        try:
            said = _coordinator().key_value_try_get(_ENDED)
        except jax.errors.JaxRuntimeError:  # not there: all is well
            continue
        if is_main_process():
            time.sleep(SAME_SECONDS)
        _leave(said)


def _end(text: str, status: int) -> None:
    mine = json.dumps([status, jax.process_index(), text])
    with suppress(jax.errors.JaxRuntimeError):  # another was first: what happened here is probably its consequence
        _coordinator().key_value_set(_ENDED, mine)
    try:
        said = _coordinator().key_value_try_get(_ENDED)
    except jax.errors.JaxRuntimeError:
        said = mine
    _leave(said, text)


def _leave(said: str, own: str | None = None) -> None:
    """Ends this process without jax's farewell, in which each waits for all. own: what happened here, if anything."""
    _leaving.acquire()  # the main thread or the watcher, whichever is first
    status, who, text = json.loads(said)
    line = f"ia-jax: error: {f'process {who}: ' if who and text != own else ''}{text}"
    if is_main_process():
        print(line, file=sys.stderr, flush=True)
        # The others talk through a service in this process: it goes last.
        until = time.monotonic() + LEAVE_SECONDS
        for i in range(1, jax.process_count()):
            left = max(1, int(1000 * (until - time.monotonic())))
            with suppress(jax.errors.JaxRuntimeError):
                _coordinator().blocking_key_value_get(f"{_ENDED}/{i}", left)
        time.sleep(WATCH_SECONDS)
    else:
        try:
            _coordinator().key_value_set(f"{_ENDED}/{jax.process_index()}", "gone")
        except jax.errors.JaxRuntimeError:  # process 0 is dead and says nothing
            print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
