"""`ia-jax plan --search`: which mesh, rows and remat policy make the fastest step that fits."""

import atexit
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.models.transformer import REMAT_POLICIES
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning.chips import chip_of
from ia_jax.planning.plan import (
    Shape,
    bandwidths,
    default_shape,
    devices_of,
    ici_by_hand,
    organisms_at_once,
    plan,
    roofline,
    trained_lora,
    work_of,
)

T = TypeVar("T")


def search(
    config: RunConfig, topology: str, stage: str, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Plans of the shapes that could be best, best first: those that fit, by tokens/s. Each has its "tokens_per_s".

    What the roofline says of a shape before compiling bounds what it can reach, so shapes are compiled in that order,
    and the search stops when none left can beat the best that fits. A shape is left out where one that holds less (as
    many chips along `tp`, no more rows, no less recomputation) did not fit. Ctrl-C ends it with what was found so far.
    """
    candidates = _candidates(config, topology, stage)
    reports: list[dict[str, Any]] = []
    too_large: list[Shape] = []
    best = 0.0
    for number, (bound, shape) in enumerate(candidates, 1):
        if bound <= best:
            progress(f"the other {len(candidates) - number + 1} cannot be faster")
            break
        if any(_holds_more(shape, x) for x in too_large):
            continue
        name = f"{number}/{len(candidates)}: {_title(shape)}"
        progress(f"{name}: compiling (at most {bound:,.0f} tokens/s)")
        try:
            report = interruptible(lambda shape=shape: plan(config, topology, stage, shape))
        except KeyboardInterrupt:
            if not reports:
                raise
            progress("stopped; the best of those compiled so far:")
            break
        tokens = work_of(config, stage, shape).tokens
        speed = tokens / report["predicted_step_s"] if report["fits"] else 0.0
        report["tokens_per_s"] = round(speed)
        best = max(best, speed)
        reports.append(report)
        if report["fits"]:
            progress(f"{name}: {report['hbm_gib']} GiB, at most {speed:,.0f} tokens/s, bound by {report['bound']}")
        else:
            too_large.append(shape)
            progress(f"{name}: does not fit ({report['hbm_gib'] or '?'} GiB of {report['capacity_gib']})")
    return sorted(reports, key=lambda r: (-r["tokens_per_s"], r["hbm_gib"] or math.inf))


def _candidates(config: RunConfig, topology: str, stage: str) -> list[tuple[float, Shape]]:
    """(tokens/s that the roofline by hand allows, shape), fastest first."""
    chip, devices = chip_of(topology), devices_of(topology)
    chips, cfg, lora = len(devices), architecture(config.model.name), trained_lora(config, stage)
    organisms, rows = organisms_at_once(config, stage), default_shape(config, stage).rows
    choices = (1,), ("none",)  # a run settles the rows of a generation batch itself
    if stage != "sample":
        choices = (1, 2, 4), REMAT_POLICIES
    found: list[tuple[float, Shape]] = []
    for tp, times, remat in itertools.product((1, 2, 4, 8, 16), *choices):
        shape = Shape(chips // tp, tp, times * rows, remat)
        if chips % tp or cfg.num_key_value_heads % tp or organisms % shape.fsdp or cfg.hidden_size % shape.fsdp:
            continue
        work = work_of(config, stage, shape)
        speed = bandwidths(make_mesh(shape.fsdp, tp, devices=devices).devices, chip)
        step = roofline(cfg, lora, work, shape, chip, ici_by_hand(cfg, work, shape, speed))
        found.append((work.tokens / step["predicted_step_s"], shape))
    if not found:
        raise ConfigError(
            f"no mesh of {chips} chips divides {organisms} organisms and {cfg.num_key_value_heads} key heads; "
            "change how many organisms the stage has in a step"
        )
    # Where the bound is the same, first what takes least memory.
    return sorted(found, key=lambda c: (-c[0], c[1].rows, -c[1].tp))


def _holds_more(shape: Shape, other: Shape) -> bool:
    again = REMAT_POLICIES.index
    no_less = shape.rows >= other.rows and again(shape.remat) <= again(other.remat)
    return shape.tp == other.tp and no_less


def _title(shape: Shape) -> str:
    return f"fsdp {shape.fsdp} x tp {shape.tp}, {shape.rows} rows, remat {shape.remat}"


def interruptible(work: Callable[[], T]) -> T:
    """work(), but Ctrl-C is heard at once: the compiler does not come back to Python for a minute or more."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(1)  # not for ever: a signal that another thread gets would not end that
        return outcome.result()
    except KeyboardInterrupt:
        atexit.register(_leave, thread)
        raise


def _leave(thread: threading.Thread) -> None:
    # The compiler cannot be ended, and crashes when Python takes itself apart beneath it.
    if thread.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
