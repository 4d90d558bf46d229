"""Sections of `accelerator.py` without a model: the chip's products and copies, and one layer's attention."""

from functools import partial
from typing import Any

from accelerator_session import GIB, Session, emit


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
