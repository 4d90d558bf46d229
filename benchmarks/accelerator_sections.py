"""The sections of `accelerator.py`: which steps each of them times, in what shapes and in what order."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerator_machine import attention, machine
from accelerator_models import architecture, random_weights
from accelerator_session import Session, emit
from accelerator_steps import Bench


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
    # Of what lies on the device beside 15 GiB of base, "none" keeps some 4.5 MB a token, "mlp" 0.9 and "full" 0.3.
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
    before = project.sum_dtype
    project.sum_dtype = lambda _: jnp.float32
    jax.clear_caches()
    bench.train("sft K=4x1 none, fp32 sums", "sft", 4, 1, t, s, "none")
    project.sum_dtype = before


def _joined(to_scan: Callable, stack: Any, rules: Any, dtype: Any = None) -> Any:
    """Organisms and IA as one adapter of both ranks: one batched product where there are two."""
    import jax
    import jax.numpy as jnp

    scanned = to_scan(stack, rules, dtype)
    if len(scanned) != 2:
        return scanned
    own, shared = scanned

    def join(target: str, factor: str, axis: int) -> Any:
        x, y = own[target][factor], shared[target][factor]
        y = jnp.broadcast_to(y[:, None], (y.shape[0], x.shape[1], *y.shape[1:]))
        y = jax.sharding.reshard(y, jax.typeof(x).sharding.spec)  # every organism's group holds it
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
