"""`ia-jax plan --search`: which mesh, rows and remat policy make the fastest step that fits."""

import atexit
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from ia_jax.config import MeshSection, RunConfig
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.models.remat import REMAT_POLICIES
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning.plan import Data, devices_of, layout_of, plan
from ia_jax.planning.roofline import bandwidths, dcn_by_hand, ici_by_hand, roofline
from ia_jax.planning.steps import trained_lora, work_of
from ia_jax.planning.topology import topology_of

T = TypeVar("T")


class Candidate(NamedTuple):
    """A config to try: what it changes, how much a step holds of what grows, and the most real tokens/s."""

    config: RunConfig
    overrides: tuple[str, ...]
    size: int
    bound: float


def search(
    config: RunConfig, topology: str, stage: str, data: Data, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Plans of the configs that could be best, best first: those that fit, by real tokens/s ("tokens_per_s").

    Tried are meshes and remat policies; of organisms, how many train at once; of SFT and DPO, into how many rows a
    slot is cut. None of these changes what is learned. What the roofline says of one before compiling bounds what it
    can reach, so they are compiled in that order, and the search stops when none left can beat the best that fits. One
    is left out where another that holds less (on the same mesh, no more in a step, no less recomputation) did not fit.
    Ctrl-C ends it with what was found so far.
    """
    candidates = _candidates(config, topology, stage, data)
    reports: list[dict[str, Any]] = []
    too_large: list[Candidate] = []
    best = 0.0
    for number, candidate in enumerate(candidates, 1):
        if candidate.bound <= best:
            progress(f"the other {len(candidates) - number + 1} cannot be faster")
            break
        if any(_holds_more(candidate, x) for x in too_large):
            continue
        name = f"{number}/{len(candidates)}: {' '.join(candidate.overrides)}"
        progress(f"{name}: compiling (at most {candidate.bound:,.0f} real tokens/s)")
        try:
            report = interruptible(lambda c=candidate: plan(c.config, topology, stage, data))
        except KeyboardInterrupt:
            if not reports:
                raise
            progress("stopped; the best of those compiled so far:")
            break
        work = work_of(candidate.config, stage, data(candidate.config, stage))
        speed = work.fill * work.tokens / report["predicted_step_s"] if report["fits"] else 0.0
        report |= {"tokens_per_s": round(speed), "overrides": list(candidate.overrides)}
        best = max(best, speed)
        reports.append(report)
        if report["fits"]:
            progress(f"{name}: {report['hbm_gib']} GiB, at most {speed:,.0f} tokens/s, bound by {report['bound']}")
        else:
            too_large.append(candidate)
            progress(f"{name}: does not fit ({report['hbm_gib'] or '?'} GiB of {report['capacity_gib']})")
    # Of two that are as fast, what computes less again: what a policy sends to the host and back is in no bound.
    again = REMAT_POLICIES.index
    return sorted(reports, key=lambda r: (-r["tokens_per_s"], again(r["remat"]), r["hbm_gib"] or math.inf))


def _candidates(config: RunConfig, topology: str, stage: str, data: Data) -> list[Candidate]:
    """Fastest first, as the roofline by hand has it."""
    where = topology_of(topology)
    chip, devices = where.chip, devices_of(where)
    cfg, lora = architecture(config.model.name, config.model.quantization), trained_lora(config, stage)
    found: list[Candidate] = []
    for mesh in _meshes(config, len(devices)):
        if cfg.num_key_value_heads % mesh.tp or cfg.hidden_size % (mesh.fsdp * mesh.rows):
            continue
        axes = tuple(f"--config.mesh.{axis}={getattr(mesh, axis)}" for axis in ("dcn", "fsdp", "rows", "tp"))
        if mesh.dcn % where.slices:
            continue
        speed = bandwidths(make_mesh(mesh.fsdp, mesh.tp, mesh.dcn, mesh.rows, devices=devices).devices, chip)
        for variant, overrides, size in _variants(replace(config, mesh=mesh), stage):
            batches, layout = data(variant, stage), layout_of(variant)
            if batches.organisms % layout.groups or batches.rows % mesh.rows:
                continue
            work = work_of(variant, stage, batches)
            between = dcn_by_hand(cfg, lora, work, layout, chip, where.slices)
            step = roofline(cfg, lora, work, layout, chip, ici_by_hand(cfg, work, layout, speed), between)
            bound = work.fill * work.tokens / step["predicted_step_s"]
            found.append(Candidate(variant, (*axes, *overrides), size, bound))
    if not found:
        raise ConfigError(
            f"no mesh of {len(devices)} chips divides {data(config, stage).organisms} organisms and "
            f"{cfg.num_key_value_heads} key heads; change how many organisms the stage has in a step"
        )
    # Where the bound is the same, first what takes least memory.
    return sorted(found, key=lambda c: (-c.bound, c.size, -c.config.mesh.tp))


def _meshes(config: RunConfig, chips: int) -> Iterator[MeshSection]:
    """Meshes of all chips: the base cut along `tp`, along `fsdp` and `rows`, or there as a whole `dcn` times."""
    for tp, rows in itertools.product((1, 2, 4, 8, 16), (1, 2, 4)):
        groups, left = divmod(chips, tp * rows)
        if groups and not left:
            yield from (
                replace(config.mesh, dcn=dcn, fsdp=groups // dcn, rows=rows, tp=tp)
                for dcn in (2**n for n in range(groups.bit_length()))
                if groups % dcn == 0
            )


def _variants(config: RunConfig, stage: str) -> Iterator[tuple[RunConfig, tuple[str, ...], int]]:
    """Configs on one mesh with the same outcome, what they override, and how much of what grows a step holds."""
    if stage == "sample":  # a run settles the rows of a generation batch itself
        yield config, (), 1
        return
    section = getattr(config, stage)
    if stage == "organisms":
        sizes = [("parallel", n * section.parallel) for n in (1, 2, 4)]
    else:
        sizes = [("rows", n) for n in (1, 2, 4) if section.per_slot % n == 0]
    for (name, size), remat in itertools.product(sizes, REMAT_POLICIES):
        changed = {stage: replace(section, **{name: size}), "model": replace(config.model, remat=remat)}
        overrides = f"--config.{stage}.{name}={size}", f"--config.model.remat={remat}"
        yield replace(config, **changed), overrides, size


def _holds_more(candidate: Candidate, other: Candidate) -> bool:
    again = REMAT_POLICIES.index
    no_less = candidate.size >= other.size
    no_less &= again(candidate.config.model.remat) <= again(other.config.model.remat)
    return candidate.config.mesh == other.config.mesh and no_less


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
