"""Tiny random models, adapters and examples for tests. Weights are so large that every part of the model matters."""

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.data.batch import build_batch
from ia_jax.data.plans import plan_organisms
from ia_jax.models import transformer
from ia_jax.models.chat import ChatExample
from ia_jax.models.config import ModelConfig, RopeScaling
from ia_jax.models.lora import LoraConfig, adapter_shardings, layers_on, lora_shapes, on_layers
from ia_jax.models.transformer import WeightSpec, weight_specs

forward = jax.jit(transformer.forward, static_argnames=("cfg", "rules", "remat", "every_layer"))
TINY = ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 1e-5, 1e4)
LLAMA3 = RopeScaling(
    "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
LORA = LoraConfig(rank=4, alpha=8.0)
# Every kind of input, output and group, in programs that compile faster.
FEW = LoraConfig(rank=4, alpha=12.0, targets=("q", "v", "o", "up", "down"))


def params(cfg=TINY, seed=0):
    """Weights whose products keep the size of their input; norms and biases away from one and zero."""
    rng = np.random.default_rng(seed)

    def leaf(spec):
        if spec.init == "ones":
            return jnp.asarray(rng.uniform(0.7, 1.3, spec.shape), jnp.float32)
        fan_in = spec.shape[-2] if len(spec.shape) > 2 else spec.shape[-1]
        return jnp.asarray(rng.normal(size=spec.shape) * fan_in**-0.5, jnp.float32)

    return jax.tree.map(leaf, weight_specs(cfg), is_leaf=lambda x: isinstance(x, WeightSpec))


def adapter(seed=0, cfg=TINY, lora=LORA, organisms=None, size=0.3):
    """A random adapter, with a leading axis of `organisms` if given; both factors are far from zero."""
    rng = np.random.default_rng([seed, 99])
    lead = () if organisms is None else (organisms,)
    tree = {
        t: {n: jnp.asarray(rng.normal(size=(*lead, *s)) * size * s[-2] ** -0.5, jnp.float32) for n, s in ab.items()}
        for t, ab in lora_shapes(cfg, lora).items()
    }
    return on_layers(tree, layers_on(cfg, lora))


def chat(rng, length=9, vocab=TINY.vocab_size, supervised=None):
    """Random tokens of which the last few (at random, or `supervised`) are the answer."""
    mask = np.zeros(length, bool)
    mask[-(supervised or rng.integers(1, length - 1)) :] = True
    return ChatExample(rng.integers(1, vocab, length).astype(np.int32), mask)


def units(organisms, count, seed=0, low=5, high=12):
    """`count` random one-example units for every organism."""
    rng = np.random.default_rng(seed)
    return [[(chat(rng, int(rng.integers(low, high))),) for _ in range(count)] for _ in range(organisms)]


def batches(organisms, count=4, seed=0, rows=2, length=24, epochs=1):
    """All batches of `organisms` organisms with `count` units each, packed."""
    own = units(organisms, count, seed)
    plan = plan_organisms(own, list(range(organisms)), epochs=epochs, rows=rows, length=length)
    return [build_batch(step, plan, own) for step in plan.steps]


def rows(organisms, count, length, seed=0, vocab=TINY.vocab_size):
    """tokens, segment_ids, positions [K, B, T] of unpacked full rows."""
    tokens = np.random.default_rng(seed).integers(1, vocab, (organisms, count, length)).astype(np.int32)
    return tokens, np.ones_like(tokens), np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)


def placed(state, organisms=True):
    """A state as a step returns it, so that the second step is the program of the first."""
    return jax.device_put(state, adapter_shardings(state, jax.sharding.get_mesh(), organisms))


def beside(tree, other):
    """A tree of arrays inside a program, moved to where those of another lie."""
    return jax.tree.map(lambda x, y: jax.sharding.reshard(x, jax.typeof(y).sharding.spec), tree, other)


def worst(got, wanted):
    """The largest difference of two trees, relative to each leaf's largest value."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(b)).max() + 1e-30)) for a, b in leaves
    )


def furthest(got, wanted):
    """The largest difference of two trees."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in leaves)


def differs(got, wanted):
    """Whether any leaf of two trees has another bit anywhere (NaNs count as equal)."""
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return any(not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in leaves)
