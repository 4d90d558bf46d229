"""The number type that a machine is fast in: what `model.dtype="auto"` comes to.

bf16 on TPUs and GPUs and on CPUs with instructions for its products (AVX512-BF16, AMX), fp32 on other CPUs: two AVX2
cores reach 137 to 154 GFLOP/s in fp32 and 95 to 128 in bf16, which they convert first. Where the flags of a CPU say
nothing, a product is timed in both.
"""

import platform
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

AUTO = "auto"
FP32, BF16 = "float32", "bfloat16"
CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # as Linux calls them
FASTER = 1.1  # bf16 rounds more, so it has to be faster by more than a timer's noise
# [rows, in] x [in, out]: the MLP's products in SmolLM2, and what a large device needs to be busy.
SHAPES = {"cpu": ((4096, 576, 1536), (4096, 1536, 576)), "other": ((4096, 4096, 4096),)}


class Choice(NamedTuple):
    """A number type, and why it was chosen, in words."""

    dtype: str
    why: str


def by_flags(platform: str, flags: Set[str] | None) -> Choice | None:
    """What a platform of JAX's ("cpu", "gpu", "tpu") with these CPU flags (None: not known) is fast in.

    None where that does not decide it.
    """
    if platform in ("gpu", "tpu"):
        return Choice(BF16, f"a {platform.upper()} is fastest in it")
    if platform != "cpu" or flags is None:
        return None
    found = [flag for flag in CPU_FLAGS if flag in flags]
    if found:
        return Choice(BF16, f"the CPU multiplies it ({', '.join(found)})")
    return Choice(FP32, "the CPU has no products in bf16 (neither avx512_bf16 nor amx_bf16)")


def by_probe(seconds: Callable[[str], float]) -> Choice:
    """The same by timing. seconds: of one product in a number type, by the type's name."""
    fp32, bf16 = seconds(FP32), seconds(BF16)
    found = f"a product takes {fp32 / bf16:.2f} times as long in fp32 as in bf16"
    return Choice(BF16 if fp32 > FASTER * bf16 else FP32, found)


def choose(platform: str, flags: Set[str] | None, seconds: Callable[[str], float]) -> Choice:
    """By the flags, and by timing where they do not decide it."""
    return by_flags(platform, flags) or by_probe(seconds)


def choose_here() -> Choice:
    """What this process's devices are fast in. Takes about a second where the CPU's flags are not known."""
    return choose(jax.default_backend(), cpu_flags(), product_seconds)


def cpu_flags() -> frozenset[str] | None:
    """The flags of this machine's CPU; None where they are not known, or not an x86's."""
    try:
        return flags_in(platform.machine(), Path("/proc/cpuinfo").read_text())
    except OSError:
        return None


def flags_in(machine: str, cpuinfo: str) -> frozenset[str] | None:
    """The flags that all of a machine's cores have, by the text of /proc/cpuinfo; None if it is no x86 or has none."""
    if machine.lower() not in ("x86_64", "amd64", "i686"):
        return None
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.split(":")[0].strip() == "flags"]
    return frozenset.intersection(*map(frozenset, lines)) if lines else None


# ---------------------------------------------------------------------------------------------------------------------
# Timing products
# ---------------------------------------------------------------------------------------------------------------------


def product_seconds(dtype: str) -> float:
    """Seconds of the first of this platform's products, at their fastest."""
    return fastest(_product(dtype, shapes()[0]))


def product_rate(dtype: str) -> float:
    """FLOP/s of the fastest of this platform's products on one device. Takes about a second."""
    return max(2 * m * n * p / fastest(_product(dtype, (m, n, p))) for m, n, p in shapes())


def shapes() -> tuple[tuple[int, int, int], ...]:
    return SHAPES.get(jax.default_backend(), SHAPES["other"])


def _product(dtype: str, shape: tuple[int, int, int]) -> Callable[[], object]:
    m, n, p = shape
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(s, np.float32), dtype) for s in ((m, n), (n, p)))
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(a, b))


def fastest(work: Callable[[], object], budget: float = 0.3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `work` takes at its fastest, called again and again for `budget` seconds and at least twice.

    The first call, which may compile, counts for nothing.
    """
    work()
    times: list[float] = []
    while len(times) < 2 or sum(times) < budget:
        began = clock()
        work()
        times.append(clock() - began)
    return max(min(times), 1e-9)
