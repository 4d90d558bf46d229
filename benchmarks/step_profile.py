"""What a training step is made of, in shares of the processors' time, from a trace of some steps.

    .venv/bin/python benchmarks/step_profile.py                 # K=10 organisms, and the joint step of eight
    .venv/bin/python benchmarks/step_profile.py --dtype=float32 --organisms=4 --top=20

Programs carry the names of their parts (`jax.named_scope`); a trace says how long every instruction ran on every
thread, without what ran inside it. `base` and `lora` are products, forward and backward; `other` is what has no name:
sums of residuals, casts, what a scan reads and writes, what the compiler fused across parts (`--top` lists it). A
product that is spread over threads has a name on one of them alone: `helpers` is what the process's threads took
beside all that, their part of products and waiting that keeps a core busy, which a trace doesn't tell apart. `idle` is
the rest of the processors' time.
Compiling is apart, in seconds. A trace costs something itself; `step_s` is timed without one.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from organisms_vs_peft import Steps, demonstrations, joint_steps, organism_steps, seconds_of

from ia_jax.config import parse_config
from ia_jax.models.number_type import AUTO, choose_here
from ia_jax.stages.context import Context
from ia_jax.stages.expected import cores
from ia_jax.training.trainer import train_step
from ia_jax.workdir import Workdir

SCOPES = ("base", "lora", "attention", "norm", "swiglu", "rope", "embed", "vocabulary", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=int, default=10, help="K, organisms trained at once")
    parser.add_argument("--steps", type=int, default=3, help="steps traced")
    parser.add_argument("--dtype", default=AUTO, help="compute dtype")
    parser.add_argument("--top", type=int, default=0, help="list so many instructions that have no name")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    args = parser.parse_args()
    dtype = choose_here().dtype if args.dtype == AUTO else args.dtype
    context = Context(Workdir(Path(".")), parse_config({"model": {"dtype": dtype}}))
    found: dict[str, Any] = {"dtype": dtype, "cores": cores()}
    with jax.set_mesh(context.mesh):
        units = demonstrations(context, args.organisms)
        found["organisms"] = profile(context, organism_steps(context, units, args.steps)[0], args.top)
        found["joint"] = profile(context, joint_steps(context, args.steps)[0], args.top)
    if not args.json:
        table(found)
    print(json.dumps(found))


def profile(context: Context, steps: Steps, top: int) -> dict[str, Any]:
    """{"compile_s", "step_s", "traced_step_s", "shares": {scope: of the processors' time of a step}, "unnamed":
    {instruction: its share}}.
    """
    params, (state, frozen, batches, how) = context.model.params, steps
    began = time.perf_counter()
    text = train_step.lower(params, state, frozen, batches[0], **how).compile().as_text()
    compiled = time.perf_counter() - began
    copy = jax.tree.map(jnp.copy, state)
    seconds = seconds_of(context, steps._replace(state=copy)) / len(batches)
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            traced, worked = time.perf_counter(), time.process_time()
            for batch in batches:
                state, _ = train_step(params, state, frozen, batch, **how)
            jax.block_until_ready(state)
            traced, worked = time.perf_counter() - traced, time.process_time() - worked
        [file] = Path(directory).rglob("*.xplane.pb")
        took = by_instruction(jax.profiler.ProfileData.from_file(str(file)))
    whole, paths = traced * cores() * 1e9, paths_of(text)
    busy: Counter[str] = Counter()
    for name, nanoseconds in took.items():
        busy[scope_of(paths.get(name, ""))] += nanoseconds
    shares = {scope: busy[scope] / whole for scope in (*SCOPES, "other")}
    shares["helpers"] = worked * 1e9 / whole - sum(shares.values())
    shares["idle"] = 1 - worked * 1e9 / whole
    unnamed = [name for name, _ in took.most_common() if scope_of(paths.get(name, "")) == "other"]
    return {
        "compile_s": compiled,
        "step_s": seconds,
        "traced_step_s": traced / len(batches),
        "shares": shares,
        "unnamed": {f"{name} {paths.get(name, '')}": took[name] / whole for name in unnamed[:top]},
    }


def paths_of(text: str) -> dict[str, str]:
    """{instruction of a compiled program: where in the source it comes from}; of a fusion that does not say, where
    most of what it fuses comes from.
    """
    paths: dict[str, str] = {}
    inside: dict[str, Counter[str]] = {}
    calls: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line):
            computation = opened[1]
        if not (found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)):
            continue
        if path := re.search(r'op_name="([^"]*)"', line):
            paths[found[1]] = path[1]
            inside.setdefault(computation, Counter())[path[1]] += scope_of(path[1]) != "other"
        elif called := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
            calls[found[1]] = called[1]
    for name, called in calls.items():
        if inside.get(called):
            paths[name] = inside[called].most_common(1)[0][0]
    return paths


def scope_of(path: str) -> str:
    """The innermost of `SCOPES`."""
    within = [part for part in re.split(r"[/()]", path) if part in SCOPES]
    return within[-1] if within else "other"


def by_instruction(data: Any) -> Counter[str]:
    """Nanoseconds of every instruction on all threads, less those of what ran inside it."""
    out: Counter[str] = Counter()
    for line in (line for plane in data.planes for line in plane.lines):
        events = [(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in line.events if _is_instruction(e)]
        running: list[tuple[float, str]] = []  # their ends, the innermost last
        before = 0.0
        for at, begins, end, name in _edges(events):
            if running:
                out[running[-1][1]] += at - before
            before = at
            if begins:
                running.append((end, name))
            else:
                running.remove((end, name))
    return out


def _is_instruction(event: Any) -> bool:
    return any(key == "hlo_op" for key, _ in event.stats)


def _edges(events: list[tuple[float, float, str]]) -> list[tuple[float, int, float, str]]:
    """Beginnings (1) and ends (0) in order of time; of what begins at once, the longest first."""
    starts = [(a, 1, b, n) for a, b, n in events if b > a]
    ends = [(b, 0, b, n) for a, b, n in events if b > a]
    return sorted(starts + ends, key=lambda e: (e[0], e[1], -e[2]))


def table(found: dict[str, Any]) -> None:
    print(f"{found['dtype']}, {found['cores']} cores")
    print(f"{'':<14}{'organisms':>12}{'joint':>12}")
    for scope in (*SCOPES, "other", "helpers", "idle"):
        print(f"{scope:<14}" + "".join(f"{found[k]['shares'][scope]:>12.1%}" for k in ("organisms", "joint")))
    for kind in ("organisms", "joint"):
        for name, share in found[kind]["unnamed"].items():
            print(f"{kind}: {share:.1%} {name}")
    for key in ("step_s", "traced_step_s", "compile_s"):
        print(f"{key:<14}" + "".join(f"{found[k][key]:>12.2f}" for k in ("organisms", "joint")))


if __name__ == "__main__":
    main()
