"""The stages' own jitted functions, lowered with shapes and shardings in place of arrays."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch, Beside, batch_shardings
from ia_jax.models import ring
from ia_jax.models.config import ModelConfig
from ia_jax.models.known import architecture
from ia_jax.models.lora import LoraConfig, Picked, Stack, adapter_shardings, layers_on, lora_shapes, on_layers
from ia_jax.models.transformer import KVCache, Params, abstract_params
from ia_jax.parallel.mesh import DECODING, TRAINING, Rules
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import Work, lowest_layer
from ia_jax.training.losses import Dpo, Sft, of_descriptions
from ia_jax.training.state import init_organisms_state, init_state
from ia_jax.training.trainer import train_step

STAGES = ("organisms", "sft", "dpo", "sample")


def trained_lora(config: RunConfig, stage: str) -> LoraConfig:
    """The adapter that a stage trains; of organisms the largest, to which a stack is padded."""
    return config.organisms.loras()[-1] if stage == "organisms" else config.sft.lora.lora()


def work_of(config: RunConfig, stage: str, batches: Batches) -> Work:
    """What a step of these batches does."""
    k, b, t = batches.organisms, batches.rows, batches.length
    lora, frozen = trained_lora(config, stage), None if stage == "organisms" else config.organisms.loras()[-1]
    if stage == "sample":
        cached = t + config.eval.max_new_tokens // 2
        return Work(k, b, 1, b, adapters=2, trained=0, remat="none", backward=False, cached=cached, frozen=frozen)
    targets, share = b * batches.targets, 1.0
    if lora.layers is not None:
        cfg = architecture(config.model.name)
        share = (cfg.num_hidden_layers - lowest_layer(cfg, [lora])) / cfg.num_hidden_layers
    real = batches.supervised / (batches.slots * targets)
    shape = {"remat": config.model.remat, "fill": batches.fill, "target_fill": real}
    return Work(k, b, t, targets, 2 if frozen else 1, trained=1, frozen=frozen, share=share, **shape)


def bank_gib(config: RunConfig, cfg: ModelConfig, batches: Batches, mesh: Mesh | AbstractMesh) -> float:
    """GiB of each device that a resident bank of all the stage's organisms takes."""
    bank = _placed(_adapter(config, cfg, "organisms", _bank_rows(batches, mesh)), mesh, organisms=True)
    return _bytes_here(bank) * 2 / jnp.dtype(config.model.dtype).itemsize / 2**30


def argument_gib(config: RunConfig, cfg: ModelConfig, stage: str, mesh: Mesh | AbstractMesh, batches: Batches) -> float:
    """GiB of each device that stay there during a stage: the base, its organisms, what is trained and its two moments.

    Not what a step leaves for its backward pass, nor what generation caches: that is the compiler's to say.
    """
    base = _bytes_here(abstract_params(cfg, jnp.dtype(config.model.dtype), mesh))
    many = (batches.organisms,) if stage == "organisms" else ()
    ours = _placed(_adapter(config, cfg, stage, *many), mesh, organisms=bool(many))
    entries = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(ours))
    bank = bank_gib(config, cfg, batches, mesh) if batches.bank else 0.0
    return (base + entries * (4 if stage == "sample" else 12)) / 2**30 + bank


def sampling_rules(config: RunConfig, cfg: ModelConfig, mesh: Mesh | AbstractMesh, free: float) -> Rules:
    """`transformer.decoding_rules` by sums: `DECODING` where another copy of the base, whole along `fsdp` and `rows`,
    takes no more than half of the bytes that are free on a device.
    """
    whole = _bytes_here(abstract_params(cfg, jnp.dtype(config.model.dtype), mesh, DECODING))
    return DECODING if TRAINING.size("embed", mesh) == 1 or whole <= free / 2 else TRAINING


def _bytes_here(tree: Any) -> int:
    """Of one device, of arrays of these shapes and shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in leaves)


def lower(
    config: RunConfig,
    cfg: ModelConfig,
    stage: str,
    mesh: Mesh,
    batches: Batches,
    resident: bool,
    rules: Rules = DECODING,
) -> Any:
    """One step, lowered. resident: whether all of a stage's organisms lie on the devices, or a step's alone. rules: of
    sampling.
    """
    base = abstract_params(cfg, jnp.dtype(config.model.dtype), mesh)
    k = batches.organisms
    if stage == "organisms":
        lora, optimizer = trained_lora(config, stage), config.organisms.optimizer
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), k))
        start = partial(init_organisms_state, cfg=cfg, loras=(lora,), optimizer=optimizer)
        state = _placed(jax.eval_shape(start, keys, _integers(k), _integers(k)), mesh, organisms=True)
        how: dict[str, Any] = {"remat": config.model.remat, "accumulate": config.organisms.accumulate}
        how["dropout"] = config.organisms.lora.dropout
        return train_step.lower(base, state, (), _batch(batches, mesh), cfg=cfg, loss=Sft(), optimizer=optimizer, **how)
    slots: Any = jax.ShapeDtypeStruct((k,), jnp.int32, sharding=TRAINING.sharding(mesh, "organism"))
    picked = Picked(
        _placed(_adapter(config, cfg, "organisms", _bank_rows(batches, mesh) if resident else k), mesh, organisms=True),
        slots,
    )
    if stage == "sample":
        stack = (picked, _placed(_adapter(config, cfg, "sft"), mesh))
        return _lower_sampling(config, cfg, mesh, batches, stack, rules)
    ours, section = trained_lora(config, stage), config.sft if stage == "sft" else config.dpo
    ia = _adapter(config, cfg, stage)
    state = _placed(jax.eval_shape(lambda a: init_state(a, 2, section.optimizer, scale=ours.scale), ia), mesh)
    beside = Beside()
    if stage == "sft":
        loss = of_descriptions(config.sft.contrast, config.sft.contrast_beta)
    else:
        loss = Dpo(config.dpo.beta, sft_weight=config.dpo.sft_weight)
    if isinstance(loss, Dpo):
        reference = jax.ShapeDtypeStruct((k, batches.examples), jnp.float32)
        beside = Beside(_placed(reference, mesh, organisms=True))
    how = {"optimizer": section.optimizer, "remat": config.model.remat, "accumulate": section.accumulate}
    how["dropout"] = config.sft.lora.dropout
    return train_step.lower(base, state, (picked,), _batch(batches, mesh), beside, cfg=cfg, loss=loss, **how)


def _lower_sampling(
    config: RunConfig, cfg: ModelConfig, mesh: Mesh, batches: Batches, stack: Stack, rules: Rules
) -> Any:
    """Up to `ring.MOST_STEPS` new tokens of every row, of positions that have just picked their adapters."""
    k, b, dtype = batches.organisms, batches.rows, jnp.dtype(config.model.dtype)
    base = abstract_params(cfg, dtype, mesh, rules)
    places = batches.length + max(config.eval.max_new_tokens, config.preferences.max_new_tokens)
    lies = rules.sharding(mesh, *ring.ON_CACHE)
    cache, token = jax.eval_shape(lambda: ring.empty(cfg, k, b, places, rules, False, dtype))
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), cache)
    one: Any = _integers(k, b)
    draws: Any = _integers(2, k, b)
    state = ring.Rows(draws, one, one, one, one)
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    scalars = [_integers() for _ in range(3)]
    drawing = ring.Drawing(key, number, number)

    @partial(jax.jit, donate_argnames=("cache", "token"))
    def some_tokens(
        base: Params, stack: Stack, cache: KVCache, token: jax.Array, state: ring.Rows, scalars: Any, stop: jax.Array,
        drawing: ring.Drawing,
    ) -> Any:  # fmt: skip
        adapters = ring.pick(stack, rules, dtype, None)
        return ring.go_on(base, cache, token, adapters, state, *scalars, stop, drawing, cfg, rules=rules)

    return some_tokens.lower(base, stack, cache, _integers(*token.shape), state, scalars, _integers(2), drawing)


def _bank_rows(batches: Batches, mesh: Mesh | AbstractMesh) -> int:
    groups = TRAINING.size("organism", mesh)
    return math.ceil(batches.bank / groups) * groups


def _adapter(config: RunConfig, cfg: ModelConfig, stage: str, *lead: int) -> Any:
    """An adapter's leaves: in fp32 where trained, in the model's dtype in a bank."""
    dtype = jnp.dtype(config.model.dtype) if lead else jnp.float32
    lora = trained_lora(config, stage)
    shapes = lora_shapes(cfg, lora).items()
    tree = {t: {n: jax.ShapeDtypeStruct((*lead, *s), dtype) for n, s in ab.items()} for t, ab in shapes}
    return on_layers(tree, layers_on(cfg, lora))


def _integers(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.int32)


def _placed(tree: Any, mesh: Mesh | AbstractMesh, organisms: bool = False) -> Any:
    shardings = adapter_shardings(tree, mesh, organisms)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _batch(batches: Batches, mesh: Mesh) -> Batch:
    rows = [_integers(batches.organisms, batches.rows, batches.length)] * 3
    targets = [_integers(batches.organisms, batches.rows, batches.targets)] * 4
    targets[2] = jax.ShapeDtypeStruct(targets[2].shape, jnp.float32)  # the weights
    batch = Batch(*rows, *targets)
    shardings = batch_shardings(batch, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), batch, shardings)
