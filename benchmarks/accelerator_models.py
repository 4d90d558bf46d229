"""Models, adapters and batches of `accelerator.py`: their shapes, and random contents made on the device."""

from typing import Any


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
