"""Decoders like Llama (Mistral, Qwen2, Qwen3) as pure functions over a tree of weights.

Every weight is described once, in `weight_specs`: shape, logical axes, initialiser. Sharding, random init, loading and
checks walk that description. Layers are stacked on a leading axis and scanned, so compile time does not grow with
depth. Activations are [K, B, T, D]: K organisms (or 1) with B rows of T tokens each.

Axis letters: k organisms, b rows, t tokens, d hidden, f MLP, n key/value heads, g query heads per key head, h head dim,
v vocabulary, r rank.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from ia_jax.errors import ConfigError
from ia_jax.models.attention import Segments, attention, attention_mask
from ia_jax.models.config import ModelConfig
from ia_jax.models.dropout import Dropout, fold, for_pass
from ia_jax.models.layers import scan_layers
from ia_jax.models.lora import PROJECTIONS, RESIDUAL, LayerStack, Scanned, Stack, to_scan
from ia_jax.models.norm import rms_norm
from ia_jax.models.project import project, swiglu
from ia_jax.models.quantize import Int8
from ia_jax.models.remat import LAYER, remembering
from ia_jax.models.rope import apply_rope, rope_tables
from ia_jax.parallel.distributed import on_main_process
from ia_jax.parallel.mesh import DECODING, TRAINING, Rules, describe, mesh_in_use

Params = dict[str, Any]


@dataclass(frozen=True)
class WeightSpec:
    """One weight: shape, logical axes (fields of `parallel.mesh.Rules`), how it starts ("normal" or "ones"), and its
    dtype where that is not the model's.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "normal"
    dtype: str = ""


def weight_specs(cfg: ModelConfig) -> Params:
    """The description of every weight of the model, as a tree of `WeightSpec`; of one in int8, an `Int8` of two."""
    n, d, f = cfg.num_hidden_layers, cfg.hidden_size, cfg.intermediate_size
    q, kv, hd = cfg.q_size, cfg.kv_size, cfg.head_dim

    def norm(size: int) -> WeightSpec:
        return WeightSpec((n, size), ("layers", None), "ones")

    layers = {
        "attn_norm": norm(d),
        "q": WeightSpec((n, d, q), ("layers", "embed", "heads")),
        "k": WeightSpec((n, d, kv), ("layers", "embed", "heads")),
        "v": WeightSpec((n, d, kv), ("layers", "embed", "heads")),
        "o": WeightSpec((n, q, d), ("layers", "heads", "embed")),
        "mlp_norm": norm(d),
        "gate": WeightSpec((n, d, f), ("layers", "embed", "mlp")),
        "up": WeightSpec((n, d, f), ("layers", "embed", "mlp")),
        "down": WeightSpec((n, f, d), ("layers", "mlp", "embed")),
    }
    if cfg.qk_norm:
        layers |= {"q_norm": norm(hd), "k_norm": norm(hd)}
    for name in cfg.biased:  # lies as the projection's output does
        size, axis = (d, None) if name == "o" else (layers[name].shape[-1], "heads")
        layers[f"{name}_bias"] = WeightSpec((n, size), ("layers", axis))
    if cfg.quantization:
        layers |= {name: _quantized(layers[name]) for name in PROJECTIONS}
    specs: Params = {
        "embed": WeightSpec((cfg.vocab_size, d), ("vocab", "embed")),
        "layers": layers,
        "final_norm": WeightSpec((d,), (None,), "ones"),
    }
    if not cfg.tie_word_embeddings:
        specs["lm_head"] = WeightSpec((d, cfg.vocab_size), ("embed", "vocab"))
    return specs


def _quantized(spec: WeightSpec) -> Int8:
    layers, axis = spec.axes[0], spec.axes[-1]
    steps = WeightSpec((spec.shape[0], spec.shape[-1]), (layers, None if axis == "embed" else axis), "ones", "float32")
    return Int8(replace(spec, dtype="int8"), steps)


def _is_spec(x: Any) -> bool:
    return isinstance(x, WeightSpec)


def check_mesh(cfg: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises ConfigError unless the mesh divides what it is to spread: heads, vocabulary, MLP and hidden size."""
    on_tp = {
        "key/value heads": cfg.num_key_value_heads,
        "query heads": cfg.num_attention_heads,
        "MLP columns": cfg.intermediate_size,
        "vocabulary entries": cfg.vocab_size,
    }
    rows = mesh.shape["rows"]
    for axis, others, sizes in (("tp", 1, on_tp), ("fsdp", rows, {"hidden size": cfg.hidden_size})):
        n, common = mesh.shape[axis], math.gcd(*sizes.values())
        for name, size in sizes.items():
            if size % (n * others):
                fitting = ", ".join(str(x) for x in range(1, min(common, 1024) + 1) if common % (x * others) == 0)
                beside = f" x rows={rows}" if others > 1 else ""
                raise ConfigError(
                    f"mesh {axis}={n}{beside} does not divide the model's {size} {name}; set --config.mesh.{axis} to "
                    f"one of: {fitting or 'none'}"
                )


def param_shardings(cfg: ModelConfig, mesh: Mesh | AbstractMesh, rules: Rules = TRAINING) -> Params:
    """A NamedSharding for every weight. Raises ConfigError where the mesh does not divide the model."""
    check_mesh(cfg, mesh)
    return jax.tree.map(lambda s: rules.sharding(mesh, *s.axes), weight_specs(cfg), is_leaf=_is_spec)


def reshard_params(params: Params, cfg: ModelConfig, rules: Rules) -> Params:
    """Inside a program: the weights moved to where `rules` have them."""
    specs = weight_specs(cfg)
    return jax.tree.map(lambda s, x: rules.reshard(x, *s.axes), specs, params, is_leaf=_is_spec)


def decoding_rules(params: Params) -> Rules:
    """`DECODING` where a device has room for all of `fsdp` and `rows`; by `TRAINING` every token gathers the base."""
    return DECODING if TRAINING.size("embed") == 1 or room_for_another(params) else TRAINING


def room_for_another(params: Params) -> bool:
    """Whether the base, divided by `tp` alone, takes no more than half of what is free on the fullest device (on
    processors, always). All processes get one answer, for they compile one program.
    """
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) // TRAINING.size("heads")

    def fits() -> bool:
        stats = [d.memory_stats() or {} for d in jax.local_devices()]
        free = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
        return not free or needed <= min(free) // 2

    return on_main_process(fits)


def abstract_params(
    cfg: ModelConfig, dtype: Any, mesh: Mesh | AbstractMesh | None = None, rules: Rules = TRAINING
) -> Params:
    """Shapes and dtypes (and shardings) of the weights, without any data: for compiling and for restoring."""
    specs = weight_specs(cfg)
    shardings = jax.tree.map(lambda _: None, specs, is_leaf=_is_spec)
    if mesh is not None:
        shardings = param_shardings(cfg, mesh, rules)

    def leaf(s: WeightSpec, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(s.shape, s.dtype or dtype, sharding=sharding)

    return jax.tree.map(leaf, specs, shardings, is_leaf=_is_spec)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of a layer
# ---------------------------------------------------------------------------------------------------------------------


class KVCache(NamedTuple):
    """Keys and values of earlier tokens of every layer: [L, K, B, N, S, H] each."""

    k: jax.Array
    v: jax.Array


class CacheSlot(NamedTuple):
    """Where a layer reads and writes the cache: the layer's index and the first position of the new tokens."""

    layer: jax.Array
    start: jax.Array


def attention_block(
    x: jax.Array,
    w: Params,
    stack: LayerStack,
    rope: tuple[jax.Array, jax.Array],
    mask: Segments | jax.Array,
    cfg: ModelConfig,
    rules: Rules = TRAINING,
    cache: KVCache | None = None,
    slot: CacheSlot | None = None,
    dropout: Dropout | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Norm, q k v, rotation, attention, output projection. x: [K, B, T, D] -> the same, and the cache with x's keys."""
    k_, b_, t_, _ = x.shape
    hd = cfg.head_dim
    y = rms_norm(x, w["attn_norm"], cfg.rms_norm_eps)
    qkv = project(y, {name: w[name] for name in ("q", "k", "v")}, stack, "embed", "heads", rules, dropout)
    if "q" in cfg.biased:
        qkv = {name: value + w[f"{name}_bias"] for name, value in qkv.items()}
    q, k, v = (qkv[name].reshape(k_, b_, t_, -1, hd) for name in ("q", "k", "v"))
    if cfg.qk_norm:
        q, k = rms_norm(q, w["q_norm"], cfg.rms_norm_eps), rms_norm(k, w["k_norm"], cfg.rms_norm_eps)
    q, k, v = apply_rope(q, rope).astype(x.dtype), apply_rope(k, rope).astype(x.dtype), v.astype(x.dtype)
    k, v = jnp.moveaxis(k, 2, 3), jnp.moveaxis(v, 2, 3)
    if cache is not None:
        assert slot is not None
        at = (slot.layer, 0, 0, 0, slot.start, 0)
        cache = KVCache(*(jax.lax.dynamic_update_slice(c, new[None], at) for c, new in zip(cache, (k, v), strict=True)))
        if not isinstance(mask, Segments):
            k, v = (jax.lax.dynamic_index_in_dim(c, slot.layer, keepdims=False) for c in cache)
    out = attention(q, k, v, mask, rules).reshape(k_, b_, t_, -1)
    y = project(out, {"o": w["o"]}, stack, "heads", "embed", rules, dropout)["o"]
    if "o" in cfg.biased:
        y = y + w["o_bias"]
    return (x + y).astype(x.dtype), cache


def mlp_block(
    x: jax.Array,
    w: Params,
    stack: LayerStack,
    dropout: Dropout | None = None,
    *,
    cfg: ModelConfig,
    rules: Rules = TRAINING,
) -> jax.Array:
    """Norm and SwiGLU, and vectors on what the layer hands on. x: [K, B, T, D] -> the same."""
    y = rms_norm(x, w["mlp_norm"], cfg.rms_norm_eps)
    wide = project(y, {"gate": w["gate"], "up": w["up"]}, stack, "embed", "mlp", rules, dropout)
    act = swiglu(wide["gate"].astype(jnp.float32), wide["up"].astype(jnp.float32), x.dtype)
    y = project(act, {"down": w["down"]}, stack, "mlp", "embed", rules, dropout)["down"]
    for vector in (adapter[RESIDUAL]["v"] for adapter in stack if RESIDUAL in adapter):
        y = y + (vector[:, None, None] if vector.ndim == 2 else vector)
    return (x + y).astype(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The decoder
# ---------------------------------------------------------------------------------------------------------------------


@jax.named_scope("embed")
def embed(params: Params, tokens: jax.Array, rules: Rules = TRAINING) -> jax.Array:
    """[K, B, T] -> [K, B, T, D].

    Each device looks up its part of the width for everybody, and parts are exchanged for rows, along one mesh axis
    after the other from the innermost: asked for all at once, the compiler would gather the width of all rows.
    """
    on = {"organism": rules.organism, "rows": rules.rows, "embed": rules.embed}
    moves = [m for m in on["embed"] if m in on["organism"] + on["rows"]]
    stage = replace(
        rules,
        organism=tuple(m for m in on["organism"] if m not in moves),
        rows=tuple(m for m in on["rows"] if m not in moves),
    )
    x = params["embed"].at[tokens].get(out_sharding=stage.spec("organism", "rows", None, "embed"))
    while moves:
        moves.pop()
        stage = replace(
            stage,
            organism=tuple(m for m in on["organism"] if m not in moves),
            rows=tuple(m for m in on["rows"] if m not in moves),
            embed=tuple(m for m in on["embed"] if m in moves),
        )
        x = stage.reshard(x, "organism", "rows", None, "embed")
    return rules.reshard(x, "organism", "rows", None, None)


def forward(
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    stack: Stack,
    cfg: ModelConfig,
    *,
    rules: Rules = TRAINING,
    remat: str = "none",
    every_layer: bool = False,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Hidden states after the final norm, under a stack of adapters.

    tokens, segment_ids (0 = padding), positions: [K, B, T]. Adapters with an organism axis must have the same K, those
    on some of the layers cost nothing on the others. dropout: of the inputs of one member's LoRAs, in training.
    Returns [K, B, T, D]; with `every_layer`, [L + 1, K, B, T, D]: the embeddings, each layer's output, the last one
    after the final norm (the order of transformers' `output_hidden_states`).
    `remat`: what the backward pass keeps of a layer (models/remat.py; docs/plan.md: memory and FLOPs of each). Raises
    ConfigError where no mesh is set, or one that does not divide the organisms and rows.
    """
    _check_batch(tokens, rules)
    dtype = params["embed"].dtype
    rope, mask = rope_tables(positions, cfg), attention_mask(segment_ids, dtype, cfg.head_dim)

    adapters, drop = to_scan(stack, rules), for_pass(dropout, tokens.shape, len(stack), rules)

    def layer(x: jax.Array, inputs: tuple[jax.Array, Params, LayerStack]) -> tuple[jax.Array, jax.Array | None]:
        number, w, adapters = inputs
        own = fold(drop, number)
        x, _ = attention_block(checkpoint_name(x, LAYER), w, adapters, rope, mask, cfg, rules, dropout=own)
        x = mlp_block(x, w, adapters, own, cfg=cfg, rules=rules)
        return x, x if every_layer else None

    x = embed(params, tokens, rules)
    last, each = scan_layers(remembering(remat, layer), x, params["layers"], adapters)
    out = rms_norm(last, params["final_norm"], cfg.rms_norm_eps)
    return jnp.concatenate([x[None], *each[:-1], each[-1][:-1], out[None]]) if every_layer else out


def _check_batch(tokens: jax.Array, rules: Rules) -> None:
    sizes = mesh_in_use().shape
    settings = {
        "organism": "organisms.parallel, sft.organisms_per_step and dpo.organisms_per_step",
        "rows": "organisms.rows, sft.rows and dpo.rows",
    }
    for count, axis, what in zip(tokens.shape[:2], settings, ("organisms at once", "rows of an organism"), strict=True):
        if count % rules.size(axis):
            spread = describe({m: sizes[m] for m in getattr(rules, axis)})
            raise ConfigError(
                f"{count} {what} do not divide over mesh {spread}; choose a multiple of it for {settings[axis]}"
            )


def forward_cached(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    mask: Segments | jax.Array,
    stack: Scanned | list[LayerStack],
    cfg: ModelConfig,
    cache: KVCache | list[KVCache],
    start: jax.Array,
    rules: Rules = DECODING,
) -> tuple[jax.Array, KVCache | list[KVCache]]:
    """Like `forward`, for new tokens at cache positions `start ...`; returns hidden states and the new cache.

    mask: [K, B, T, S] over the whole cache, or `Segments` of a prompt, whose tokens see only each other. `stack` must
    have gone through `to_scan`. Where the cache is a list of layers' own, stack and `params["layers"]` are too.
    """
    rope = rope_tables(positions, cfg)

    def layer(carry: tuple[jax.Array, KVCache], inputs: tuple[jax.Array, Params, LayerStack]) -> tuple[tuple, None]:
        x, cache = carry
        index, w, adapters = inputs
        x, cache = attention_block(x, w, adapters, rope, mask, cfg, rules, cache, CacheSlot(index, start))
        return (mlp_block(x, w, adapters, cfg=cfg, rules=rules), cache), None

    x = embed(params, tokens, rules)
    if isinstance(cache, KVCache):
        (x, cache), _ = scan_layers(layer, (x, cache), params["layers"], cast(Scanned, stack))
    else:
        cache, apart = [*cache], zip(params["layers"], list[Any](stack), strict=True)
        for i, inputs in enumerate(apart):
            (x, cache[i]), _ = layer((x, cache[i]), (jnp.int32(0), *inputs))
    return rms_norm(x, params["final_norm"], cfg.rms_norm_eps), cache


def init_cache(
    cfg: ModelConfig, organisms: int, rows: int, length: int, dtype: Any, rules: Rules = DECODING
) -> KVCache:
    shape = (cfg.num_hidden_layers, organisms, rows, cfg.num_key_value_heads, length, cfg.head_dim)
    zeros = rules.reshard(jnp.zeros(shape, dtype), None, "organism", "rows", "heads", None, None)
    return KVCache(zeros, zeros)


def unembed_weight(params: Params) -> jax.Array:
    """The output matrix as [V, D], tied or not."""
    return params["lm_head"].T if "lm_head" in params else params["embed"]


def logits_from_hidden(params: Params, hidden: jax.Array, rules: Rules = TRAINING) -> jax.Array:
    """[K, B, T, D] -> [K, B, T, V] in fp32."""
    out = rules.spec("organism", "rows", None, "vocab")
    if "lm_head" in params:
        return jnp.einsum(
            "kbtd,dv->kbtv", hidden, params["lm_head"], preferred_element_type=jnp.float32, out_sharding=out
        )
    return jnp.einsum("kbtd,vd->kbtv", hidden, params["embed"], preferred_element_type=jnp.float32, out_sharding=out)


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Position of every token within its segment: [K, B, T] -> [K, B, T]. Segments are contiguous."""
    index = jnp.arange(segment_ids.shape[-1])
    starts = jnp.concatenate([jnp.ones_like(segment_ids[..., :1]), jnp.diff(segment_ids, axis=-1)], -1) != 0
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=segment_ids.ndim - 1)
