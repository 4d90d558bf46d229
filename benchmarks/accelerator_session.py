"""What the measurements of one process of `accelerator.py` share: how a program is timed, and how a result is told.

jax is imported in functions, here and in the files of what is measured: the process that only starts the others reads
them too.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = "@row "  # in front of the lines of a section's output that are results
# Published dense bf16 FLOP/s and bytes/s of HBM.
PEAKS = {"H100": (989.4e12, 3.35e12), "H200": (989.4e12, 4.8e12), "A100": (312e12, 2.039e12)}
GIB = 2**30


class Session:
    """What the measurements of one process share: the clock, the device's peaks, and how a program is timed."""

    def __init__(self, args: argparse.Namespace) -> None:
        import jax

        self.tiny, self.profile, self.weights = args.tiny, args.profile, args.weights
        self.cases = [c for c in args.cases.split(",") if c]
        self.ends = time.monotonic() + args.budget
        known = json.loads(args.known)
        device = jax.devices()[0]
        published = next((p for name, p in PEAKS.items() if name in device.device_kind), (None, None))
        self.device = device
        self.matmul = known["matmul_tflops"] * 1e12 if "matmul_tflops" in known else published[0]
        self.bandwidth = known["copy_gbs"] * 1e9 if "copy_gbs" in known else published[1]
        self.published = published[0]

    def wanted(self, case: str, needs: float = 20) -> bool:
        if self.cases and not any(c in case for c in self.cases):
            return False
        left = self.ends - time.monotonic()
        if left < needs and not self.tiny:
            emit({"case": case, "error": f"left out: {left:.0f} s are left, it needs {needs:.0f}"})
            return False
        return True

    @contextmanager
    def guarded(self, case: str) -> Iterator[None]:
        """One measurement that fails (no memory, say) is a row with its error, and the next goes on."""
        try:
            yield
        except Exception as error:  # of the compiler, the runtime or the kernel library
            emit({"case": case, "error": f"{type(error).__name__}: {str(error)[:600]}"})

    def compiled(self, function: Any, *arguments: Any, **static: Any) -> tuple[Any, dict[str, float]]:
        """The program for these arguments; seconds to make it, and GiB that it holds at most, arguments included."""
        began = time.monotonic()
        program = function.lower(*arguments, **static).compile()
        figures = {"compile_s": time.monotonic() - began}
        memory = program.memory_analysis()
        if memory is not None:
            arguments_, out = memory.argument_size_in_bytes, memory.output_size_in_bytes
            held = arguments_ + memory.temp_size_in_bytes + out - memory.alias_size_in_bytes
            figures |= {"memory_gib": held / GIB, "temp_gib": memory.temp_size_in_bytes / GIB}
        return program, figures

    def seconds(self, call: Callable[[], Any], target: float = 1.0) -> float:
        """Of one call: the median of three blocks of calls, each waited for at its end. `target`: seconds of all."""
        import jax

        began = time.monotonic()
        jax.block_until_ready(call())  # the first one loads and, maybe, tunes
        first = time.monotonic()
        jax.block_until_ready(call())
        once = time.monotonic() - first
        count = 1 if self.tiny else max(1, min(50, round(target / 3 / max(once, 1e-5))))
        blocks = []
        for _ in range(1 if self.tiny else 3):
            began = time.monotonic()
            out = None
            for _ in range(count):
                out = call()
            jax.block_until_ready(out)
            blocks.append((time.monotonic() - began) / count)
        return sorted(blocks)[len(blocks) // 2]

    def kernels(self, case: str, call: Callable[[], Any], most: int = 25) -> None:
        """With --profile: a row with the device's kernels of one call, by the time that they take together."""
        if not self.profile:
            return
        import tempfile

        import jax

        with self.guarded(f"{case} kernels"), tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                jax.block_until_ready(call())
            [file] = Path(directory).rglob("*.xplane.pb")
            found: dict[str, list[float]] = {}
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
                if not plane.name.startswith("/device:"):
                    continue
                for stream in plane.lines:
                    if not stream.name.startswith("Stream"):
                        continue
                    for event in stream.events:
                        statistics = {key: value for key, value in event.stats if key is not None}
                        name = f"{event.name[:60]} [{str(statistics.get('hlo_op', ''))[:60]}]"
                        found.setdefault(name, []).append(event.duration_ns / 1e6)
            rows = sorted(found.items(), key=lambda item: -sum(item[1]))
            kernels = [{"name": n, "ms": round(sum(t), 3), "count": len(t)} for n, t in rows[:most]]
            total = sum(sum(t) for t in found.values())
            emit({"case": f"{case} kernels", "busy_ms": total, "kernels": kernels})

    def rates(self, flops: float, seconds: float) -> dict[str, float]:
        """`mfu` and `of_matmul` of so much useful work in so long."""
        rates = {"tflops": flops / seconds / 1e12}
        if self.published:
            rates["mfu"] = flops / seconds / self.published
        if self.matmul:
            rates["of_matmul"] = flops / seconds / self.matmul
        return rates


def emit(row: dict[str, Any]) -> None:
    print(MARK + json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)
