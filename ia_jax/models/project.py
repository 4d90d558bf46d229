"""Frozen linear maps with a stack of LoRAs on top: `y = x W + sum over the stack of (x a) b`.

This one function carries nearly all of the work, so its derivative is written by hand. Autodiff of a product
bf16 x bf16 -> fp32 multiplies fp32 cotangents by fp32 copies of the weights; here cotangents are rounded to the compute
dtype once, all products run in it with fp32 accumulation, and the input's cotangent is summed in fp32. Of a sum over
devices each adds up its own part in fp32, and they exchange that once, in the compute dtype. An adapter's gradient has
the dtype that the adapter is held in: fp32 where it is trained, so that its sum over tokens and over devices is one in
fp32. Nothing is computed for W, which is frozen.

With dropout an adapter reads `keep * x`, and its low-rank product is divided by 1 - rate: so `x` is dropped without
being rounded, and the division is one of few numbers.

A matrix in int8 is multiplied as whole numbers; its steps multiply what comes out and, on the way back, the cotangent
that goes in. So no matrix is ever there in the compute dtype but inside a product.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ia_jax.models.dropout import Dropout, keep_mask, of_group
from ia_jax.models.lora import LayerStack
from ia_jax.models.quantize import Int8
from ia_jax.models.remat import LOW
from ia_jax.parallel.mesh import TRAINING, Rules
from ia_jax.parallel.platform import fix_layout_on_cpu, platform

Axes = tuple[str | None, ...]
LOW_RANK: Axes = ("organism", "rows", None, None)


class Trained(NamedTuple):
    """A layer's matrix that is trained itself, as in a full fine-tune: it gets a gradient, by plain autodiff."""

    matrix: jax.Array


class LayerOf(NamedTuple):
    """A layer's matrix by its number among those of all layers, [L, in, out].

    In place of the matrix where not all layers are scanned together: what a backward pass remembers is the number then,
    and no second copy of the base.
    """

    matrices: jax.Array | Int8
    layer: jax.Array


Weights = dict[str, jax.Array] | dict[str, Int8] | dict[str, LayerOf]


def _matrix(weight: jax.Array | Int8 | LayerOf, dtype: Any, rules: Rules, *axes: str) -> tuple[jax.Array, Any]:
    """A layer's matrix [in, out] for one pass, and the steps [out] of its columns (None: it has none).

    One in int8 comes in `dtype`; it is gathered before it is cast, so half of its bytes are moved.
    """
    if isinstance(weight, LayerOf):
        at = partial(jax.lax.dynamic_index_in_dim, index=weight.layer, keepdims=False)
        weight = cast(jax.Array | Int8, jax.tree.map(at, weight.matrices))
    if isinstance(weight, Int8):
        steps = rules.reshard(weight.scale, _activation_axis(axes[-1]))
        return _whole(weight.values, jnp.int8, rules, *axes).astype(dtype), steps
    return _whole(weight, weight.dtype, rules, *axes), None


def _dot(equation: str, x: jax.Array, y: jax.Array, rules: Rules, out: Axes, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=dtype, out_sharding=rules.spec(*out))


def _sum_of_products(
    equation: str, pairs: Sequence[tuple[jax.Array, jax.Array]], summed: str, rules: Rules, out: Axes, dtype: Any
) -> jax.Array:
    """The sum of these products, each over the logical axis `summed` of activations, in `dtype`."""
    sent, parts = pairs[0][0].dtype, rules.partial_sums(_activation_axis(summed), *out)
    if parts is None or sent == jnp.float32:
        return reduce(jnp.add, (_dot(equation, x, y, rules, out, dtype) for x, y in pairs))
    local = jnp.float32 if len(pairs) > 1 else sent
    own = (jnp.einsum(equation, *p, preferred_element_type=local, out_sharding=parts) for p in pairs)
    return rules.reshard(reduce(jnp.add, own).astype(sent), *out).astype(dtype)


def sum_dtype(x: jax.Array) -> Any:
    """In which a projection adds up the products of base and adapters: fp32, and on GPU x's, in which each of them is
    still summed in fp32.

    There every product of the sum is a call of a library's kernel, which reads and writes the sum: in fp32 this takes
    half as long as the base's product itself. It is rounded to x's dtype where it goes, anyway.
    """
    return x.dtype if platform() == "gpu" else jnp.float32


def _lead(leaf: jax.Array) -> tuple[str, Axes]:
    """The einsum letter and the logical axis of the organism axis, where a leaf has one."""
    return ("k", ("organism",)) if leaf.ndim == 3 else ("", ())


def _activation_axis(axis: str) -> str | None:
    return None if axis == "embed" else axis


def _whole(leaf: jax.Array, dtype: Any, rules: Rules, *axes: str) -> jax.Array:
    """A weight or an adapter's factor of one layer, in the compute dtype, for one pass: whole along `embed`.

    Said, not left to the compiler: it may contract against the shards one after the other, in a loop whose program
    takes many times as long to compile.
    """
    _, lead = _lead(leaf)
    return rules.reshard(leaf.astype(dtype), *lead, *map(_activation_axis, axes))


def project(
    x: jax.Array,
    weights: Weights,
    stack: LayerStack,
    in_axis: str,
    out_axis: str,
    rules: Rules = TRAINING,
    dropout: Dropout | None = None,
) -> dict[str, jax.Array]:
    """All projections that share one input.

    x: [K, B, T, in]; weights: {name: [in, out]}, some in int8; stack: one layer's adapters, leaves `[in, r]` or
    `[K, in, r]`, which need not target every name. in_axis, out_axis: logical axes of the weight ("embed", "heads" or
    "mlp"). dropout: this layer's, of the inputs that one member reads.
    Returns {name: [K, B, T, out]} in x's dtype.
    """

    def leaf(factor: str, value: jax.Array) -> jax.Array:
        axes = (in_axis, "rank") if factor == "a" else ("rank", out_axis)
        return rules.reshard(value, *_lead(value)[1], *axes)

    # Nothing moves inside a model. Gradients are made where these axes lie, and have to lie where the arguments do.
    x = rules.reshard(x, "organism", "rows", None, _activation_axis(in_axis))
    named = tuple({n: adapter[n] for n in weights if n in adapter} for adapter in stack)
    placed = tuple({n: {f: leaf(f, v) for f, v in ab.items()} for n, ab in adapter.items()} for adapter in named)
    if dropout is not None:
        dropout = of_group(dropout, next(iter(weights))) if named[dropout.member] else None
    if any(isinstance(w, Trained) for w in weights.values()):
        plain = {n: w.matrix for n, w in weights.items()}  # pyright: ignore[reportAttributeAccessIssue]
        return _project(x, plain, placed, dropout, in_axis, out_axis, rules)[0]
    return _project_with_stack(x, weights, placed, dropout, in_axis, out_axis, rules)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _project_with_stack(
    x: jax.Array,
    weights: Weights,
    stack: LayerStack,
    dropout: Dropout | None,
    in_axis: str,
    out_axis: str,
    rules: Rules,
) -> dict[str, jax.Array]:
    return _project(x, weights, stack, dropout, in_axis, out_axis, rules)[0]


def _project(
    x: jax.Array,
    weights: Weights,
    stack: LayerStack,
    dropout: Dropout | None,
    in_axis: str,
    out_axis: str,
    rules: Rules,
) -> tuple[dict[str, jax.Array], list[jax.Array | None]]:
    out = ("organism", "rows", None, _activation_axis(out_axis))
    ys, wide = {}, sum_dtype(x)
    for name, weight in weights.items():
        with jax.named_scope("base"):
            w, steps = _matrix(weight, x.dtype, rules, in_axis, out_axis)
            y = _sum_of_products("kbtd,df->kbtf", [(x, w)], in_axis, rules, out, wide)
            ys[name] = y if steps is None else (y * steps).astype(wide)
    low = []
    with jax.named_scope("lora"):
        for position, adapter in enumerate(stack):
            names = [n for n in weights if n in adapter]
            if not names:
                low.append(None)
                continue
            k, _ = _lead(adapter[names[0]]["a"])
            a = _whole(_side_by_side(adapter, names), x.dtype, rules, in_axis, "rank")
            keep = _keep(dropout, position, x, in_axis, rules)
            u = _scaled(_dot(f"kbtd,{k}dr->kbtr", _dropped(x, keep), a, rules, LOW_RANK, x.dtype), keep, dropout)
            u = checkpoint_name(u, LOW)
            for n, u_n in zip(names, _split(u, adapter, names), strict=True):
                b = _whole(adapter[n]["b"], x.dtype, rules, "rank", out_axis)
                ys[n] = ys[n] + _dot(f"kbtr,{k}rf->kbtf", u_n, b, rules, out, wide)
            low.append(u)
    return {n: checkpoint_name(y.astype(x.dtype), n) for n, y in ys.items()}, low


def _keep(dropout: Dropout | None, position: int, x: jax.Array, in_axis: str, rules: Rules) -> jax.Array | None:
    """Which of the inputs x [K, B, T, in] the member at this position reads; None for all."""
    if dropout is None or dropout.member != position:
        return None
    return keep_mask(dropout, x.shape[2], x.shape[3], rules, _activation_axis(in_axis))


def _dropped(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    return x if keep is None else jnp.where(keep, x, jnp.zeros((), x.dtype))


def _scaled(x: jax.Array, keep: jax.Array | None, dropout: Dropout | None) -> jax.Array:
    """x / (1 - rate) where inputs are dropped, by which what is read keeps its mean."""
    if keep is None or dropout is None:
        return x
    return (x.astype(jnp.float32) / (1 - dropout.rate)).astype(x.dtype)


def _side_by_side(adapter: dict, names: list[str]) -> jax.Array:
    """The `a` of a group, for one product of width n * r: alone, a rank-r product wastes the matrix unit."""
    return jnp.concatenate([adapter[n]["a"] for n in names], axis=-1)


def _split(u: jax.Array, adapter: dict, names: list[str]) -> list[jax.Array]:
    pieces, start = [], 0
    for n in names:
        rank = adapter[n]["a"].shape[-1]
        pieces.append(u[..., start : start + rank])
        start += rank
    return pieces


def _project_fwd(
    x: jax.Array,
    weights: Weights,
    stack: LayerStack,
    dropout: Dropout | None,
    in_axis: str,
    out_axis: str,
    rules: Rules,
) -> tuple[dict, tuple]:
    ys, low = _project(x, weights, stack, dropout, in_axis, out_axis, rules)
    return ys, (x, weights, stack, dropout, low)


def _project_bwd(in_axis: str, out_axis: str, rules: Rules, saved: tuple, cotangents: dict) -> tuple:
    x, weights, stack, dropout, low = saved
    gs = {n: g.astype(x.dtype) for n, g in cotangents.items()}
    wide = ("organism", "rows", None, _activation_axis(in_axis))
    pairs = []
    with jax.named_scope("base"):
        for n, weight in weights.items():
            w, steps = _matrix(weight, x.dtype, rules, in_axis, out_axis)
            pairs.append((gs[n] if steps is None else (cotangents[n] * steps).astype(x.dtype), w))
        dx = _sum_of_products("kbtf,df->kbtd", pairs, out_axis, rules, wide, jnp.float32)
    grads = []
    with jax.named_scope("lora"):
        for position, (adapter, u) in enumerate(zip(stack, low, strict=True)):
            grad: dict[str, dict[str, jax.Array]] = {n: {} for n in adapter}
            names = [n for n in weights if n in adapter]
            if u is not None:
                k, lead = _lead(adapter[names[0]]["a"])
                keep, du = _keep(dropout, position, x, in_axis, rules), []
                for n, u_n in zip(names, _split(u, adapter, names), strict=True):
                    b = adapter[n]["b"]
                    grad[n]["b"] = _thin_product(u_n, gs[n], k, rules, (*lead, "rank", out_axis), b.dtype)
                    b = _whole(b, x.dtype, rules, "rank", out_axis)
                    du.append(_dot(f"kbtf,{k}rf->kbtr", gs[n], b, rules, LOW_RANK, x.dtype))
                du = _scaled(jnp.concatenate(du, axis=-1), keep, dropout)
                a = _side_by_side(adapter, names)
                da = jnp.swapaxes(
                    _thin_product(du, _dropped(x, keep), k, rules, (*lead, "rank", in_axis), a.dtype), -1, -2
                )
                for n, da_n in zip(names, _split(da, adapter, names), strict=True):
                    grad[n]["a"] = da_n
                own = _dot(f"kbtr,{k}dr->kbtd", du, _whole(a, x.dtype, rules, in_axis, "rank"), rules, wide)
                dx = dx + _dropped(own, keep)
            grads.append(grad)
    return dx.astype(x.dtype), None, tuple(grads), None


def _thin_product(thin: jax.Array, wide: jax.Array, k: str, rules: Rules, out: Axes, dtype: Any) -> jax.Array:
    """[K, B, T, r] x [K, B, T, f] -> [K, r, f], or [r, f] where k is "": the sum over tokens in a LoRA's gradient.

    Devices add up their parts of the sum in `dtype`.
    The thin factor is transposed first, behind a barrier: XLA's CPU backend has fast kernels for rows times columns
    only, and transposing the wide factor would cost more than the product.
    """
    rows = fix_layout_on_cpu(jnp.moveaxis(thin, 3, 1))
    return fix_layout_on_cpu(_dot(f"krbt,kbtf->{k}rf", rows, wide, rules, out, dtype))


_project_with_stack.defvjp(_project_fwd, _project_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def swiglu(gate: jax.Array, up: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """silu(gate) * up, computed in fp32 and rounded to `dtype`, in which it also remembers its inputs."""
    with jax.named_scope("swiglu"):
        return (jax.nn.silu(gate) * up).astype(dtype)


def _swiglu_fwd(gate: jax.Array, up: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple]:
    return swiglu(gate, up, dtype), (gate.astype(dtype), up.astype(dtype))


@jax.named_scope("swiglu")
def _swiglu_bwd(dtype: jnp.dtype, saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = (s.astype(jnp.float32) for s in saved)
    g = cotangent.astype(jnp.float32)
    sigmoid = jax.nn.sigmoid(gate)
    return g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid


swiglu.defvjp(_swiglu_fwd, _swiglu_bwd)
