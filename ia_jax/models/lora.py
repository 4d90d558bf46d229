"""Adapters as plain trees: what one looks like, how it starts, and how a stack of them is applied.

An adapter is `{site: {factor: leaf}}`. On a projection it is a LoRA, `{"a": [L, in, r], "b": [L, r, out]}`, with the
scale alpha/rank folded into `b`, so applying it is `(x a) b`; on `RESIDUAL` a vector `{"v": [L, D]}`, added to what a
layer hands on. With an organism axis every leaf has a leading K. L are the layers that it sits on: all, in a plain
tree, or those that a `Placed` one names. A *stack* is a tuple of adapters on one base: `(organisms with K, IA)` for
joint training, `(organisms,)`, `(IA,)` or `()` for the controls. Frozen organisms may be `Picked` from a bank that
holds all of a run's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.parallel.mesh import TRAINING, Rules

Sites = dict[str, dict[str, Any]]  # {site: {factor: leaf}}


@flax.struct.dataclass
class Placed(Mapping[str, dict[str, Any]]):
    """An adapter on some of the layers: its leaves have those, in ascending order, in place of all.

    Reads like the tree of its sites; `map_leaves` makes another on the same layers.
    """

    sites: Sites
    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def __getitem__(self, site: str) -> dict[str, Any]:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


Adapter = Sites | Placed


class Picked(NamedTuple):
    """K frozen organisms out of a bank, as a member of a stack.

    bank:  leaves [F * M, L, ...], the organism axis over F groups of devices, M rows in each.
    slots: [K] int32, K a multiple of F and spread alike: a row *of the group's own part* of the bank, or -1 for an
           adapter that changes nothing. So a step picks what its own devices hold, and no adapter crosses between them.
    """

    bank: Adapter
    slots: jax.Array


Member = Adapter | Picked
Stack = tuple[Member, ...]
Scanned = tuple[Adapter, ...]  # what `to_scan` makes of a stack
LayerStack = tuple[Sites, ...]  # one layer's part of it: {} where a member does not sit on that layer

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
# A vector on what a layer hands on. The down projection's output is added to the residual stream as it is, so this is
# also a bias of that projection.
RESIDUAL = "residual"
SITES = (*PROJECTIONS, RESIDUAL)
NDIM = {"a": 3, "b": 3, "v": 2}  # without organism axis
_IN_AXIS = {"o": "heads", "down": "mlp"}
_OUT_AXIS = {"q": "heads", "k": "heads", "v": "heads", "gate": "mlp", "up": "mlp"}


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is: `rank`, `alpha`, the sites that it targets, and the layers that it sits on (None: all).

    `init` is "b_zero" (PEFT's default) or "a_zero". A vector alone has rank 0.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS
    init: str = "b_zero"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [t for t in self.targets if t not in SITES]
        if unknown or not self.targets:
            raise ConfigError(f"LoRA targets {unknown or '()'} unknown; choose from {', '.join(SITES)}")
        if self.rank < 1 and self.targets != (RESIDUAL,):
            raise ConfigError(f"LoRA rank must be at least 1, got {self.rank}")
        if self.init not in ("b_zero", "a_zero"):
            raise ConfigError(f"LoRA init must be b_zero or a_zero, got {self.init!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", checked_layers(self.layers))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0


def checked_layers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """Layers in ascending order, from numbers or as text: a range "10:20" (without its end) or numbers "3,7,11".

    Raises ConfigError for none at all, one that is named twice or negative, and text that is neither.
    """
    if isinstance(layers, str):
        layers = _layers_of_text(layers)
    if not layers:
        raise ConfigError("layers is empty; name at least one, or None for all")
    twice = next((n for n in layers if list(layers).count(n) > 1), None)
    if twice is not None:
        raise ConfigError(f"layers has {twice} twice; name each layer once")
    if min(layers) < 0:
        raise ConfigError(f"layers has {min(layers)}; layers are counted from 0")
    return tuple(sorted(layers))


def _layers_of_text(text: str) -> tuple[int, ...]:
    try:
        if ":" in text:
            start, stop = map(int, text.split(":"))
            if start >= stop:
                raise ConfigError(f"layers {text!r} is an empty range; write START:STOP, as in 10:20 for 10 to 19")
            return tuple(range(start, stop))
        return tuple(int(n) for n in text.strip("()[] ").split(",") if n.strip())
    except ValueError:
        raise ConfigError(
            f"layers {text!r} is no range; write START:STOP, as in 10:20, or numbers, as in 3,7"
        ) from None


def layers_on(cfg: ModelConfig, lora: LoraConfig) -> tuple[int, ...] | None:
    """The layers of this model that such an adapter sits on; None for all. Raises ConfigError for one that it lacks."""
    count = cfg.num_hidden_layers
    if lora.layers is not None and lora.layers[-1] >= count:
        raise ConfigError(f"layer {lora.layers[-1]} is out of range: the model has layers 0 to {count - 1}")
    return None if lora.layers == tuple(range(count)) else lora.layers


def sites_of(adapter: Adapter) -> Sites:
    """The tree of leaves, whatever layers it is for."""
    return adapter.sites if isinstance(adapter, Placed) else adapter


def layers_of(member: Member) -> tuple[int, ...] | None:
    """The layers that a member of a stack sits on; None for all."""
    tree = member.bank if isinstance(member, Picked) else member
    return tree.layers if isinstance(tree, Placed) else None


def on_layers(sites: Sites, layers: tuple[int, ...] | None) -> Adapter:
    return sites if layers is None else Placed(sites, layers)


def map_leaves(function: Callable[[str, str, Any], Any], adapter: Adapter) -> Adapter:
    """`function(site, factor, leaf)` of every leaf, as an adapter on the same layers."""
    tree = {t: {n: function(t, n, x) for n, x in leaves.items()} for t, leaves in adapter.items()}
    return on_layers(tree, layers_of(adapter))


def layers_in_words(layers: tuple[int, ...] | None) -> str:
    """Numbers and runs of them, as in "3,10-19"; "all" for None."""
    if layers is None:
        return "all"
    ends = [n for n in layers if n + 1 not in layers]
    starts = [n for n in layers if n - 1 not in layers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def projection_sizes(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of every projection that a LoRA can sit on."""
    d, f, q, kv = cfg.hidden_size, cfg.intermediate_size, cfg.q_size, cfg.kv_size
    return {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d), "gate": (d, f), "up": (d, f), "down": (f, d)}


def lora_shapes(cfg: ModelConfig, lora: LoraConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an adapter's leaves without organism axis: `a` [L, in, r], `b` [L, r, out], `v` [L, D].

    L is the number of layers that it sits on. Raises ConfigError for a layer that the model does not have.
    """
    layers = layers_on(cfg, lora)
    sizes, n, r = projection_sizes(cfg), cfg.num_hidden_layers if layers is None else len(layers), lora.rank
    return {
        t: {"v": (n, cfg.hidden_size)} if t == RESIDUAL else {"a": (n, sizes[t][0], r), "b": (n, r, sizes[t][1])}
        for t in lora.targets
    }


def leaf_axes(projection: str, factor: str) -> tuple[str | None, ...]:
    """Logical axes of one leaf without organism axis (fields of `parallel.mesh.Rules`)."""
    if factor == "v":
        return ("layers", None)  # too small to be worth spreading
    if factor == "a":
        return ("layers", _IN_AXIS.get(projection, "embed"), "rank")
    return ("layers", "rank", _OUT_AXIS.get(projection, "embed"))


def adapter_shardings(tree: Any, mesh: Mesh | AbstractMesh, organisms: bool = False, rules: Rules = TRAINING) -> Any:
    """A NamedSharding for every leaf of an adapter, or of a training state with adapters and moments shaped alike.

    With `organisms` the leading axis of every leaf is spread; without, an organism axis lies whole. Leaves outside an
    adapter (counts, batches) lie whole, or by organism.
    """

    def leaf(path: tuple[Any, ...], x: Any) -> NamedSharding:
        keys = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
        inside = len(keys) > 1 and keys[-2] in SITES
        axes = leaf_axes(keys[-2], keys[-1]) if inside else ()
        lead = ("organism",) if organisms else (None,) * (x.ndim - NDIM[keys[-1]]) if inside else ()
        return rules.sharding(mesh, *lead, *axes)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def init_lora(key: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Adapter:
    """A new adapter that changes nothing yet, fp32: of a LoRA one factor Kaiming-uniform as in PEFT, the other zero.

    With "a_zero" it is `b` that starts random. The scale is in `b`, so a random `b` carries it.
    """
    shapes, out = lora_shapes(cfg, lora), {}
    for t, k in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        random = "a" if lora.init == "b_zero" else "b"
        out[t] = {n: jnp.zeros(shape, jnp.float32) for n, shape in shapes[t].items()}
        if t != RESIDUAL:
            bound = shapes[t][random][-2] ** -0.5 * (lora.scale if random == "b" else 1.0)
            out[t][random] = jax.random.uniform(k, shapes[t][random], jnp.float32, -bound, bound)
    return on_layers(out, layers_on(cfg, lora))


def init_organisms(keys: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Adapter:
    """K adapters stacked on a leading axis; adapter i depends on `keys[i]` alone. keys: [K]."""
    return jax.vmap(lambda k: init_lora(k, cfg, lora))(keys)


def rank_of(adapter: Adapter) -> int:
    """The rank of its LoRA; 0 for a vector alone."""
    return next((leaves["a"].shape[-1] for leaves in adapter.values() if "a" in leaves), 0)


RANK_AXIS = {"a": -1, "b": -2}


def pad_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with zeros up to `rank`, so that adapters of several ranks stack.

    Gradients of the padding are exactly zero, as each factor's is a product with the other's: training leaves it zero.
    """

    def pad(site: str, factor: str, x: jax.Array) -> jax.Array:
        return zeros_along(x, RANK_AXIS[factor], after=rank - x.shape[RANK_AXIS[factor]]) if factor != "v" else x

    if rank < rank_of(adapter):
        raise ConfigError(f"an adapter of rank {rank_of(adapter)} cannot be padded to rank {rank}")
    return map_leaves(pad, adapter)


def strip_rank(adapter: Adapter, rank: int) -> Adapter:
    """The first `rank` ranks of an adapter: the inverse of `pad_rank`. Raises ConfigError if others are not zero."""

    def strip(site: str, factor: str, x: Any) -> Any:
        if factor == "v":
            return x
        if ((x[..., rank:] if factor == "a" else x[..., rank:, :]) != 0).any():
            raise ConfigError(f"{site}: an adapter of rank {rank} is expected, but ranks beyond it are not zero")
        return x[..., :rank] if factor == "a" else x[..., :rank, :]

    return map_leaves(strip, adapter)


def zeros_along(x: Any, axis: int, after: int) -> Any:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, after)
    return np.pad(x, widths) if isinstance(x, np.ndarray) else jnp.pad(x, widths)


def take_organisms(stacked: Adapter, index: Any) -> Adapter:
    """Organism(s) `index` out of a stacked adapter; on a mesh one lies whole where the organisms were spread."""

    def take(x: jax.Array) -> jax.Array:
        if not isinstance(x, jax.Array) or jax.sharding.get_abstract_mesh().empty:
            return x[index]
        rest = (*jax.typeof(x).sharding.spec, *(None,) * x.ndim)[1 : x.ndim]
        return x.at[index].get(out_sharding=PartitionSpec(*(None,) * jnp.ndim(index), *rest))

    return jax.tree.map(take, stacked)


def has_organism_axis(member: Member) -> bool:
    if isinstance(member, Picked):
        return True
    factor, x = next(iter(next(iter(member.values())).items()))
    return x.ndim > NDIM[factor]


def to_scan(stack: Stack, rules: Rules = TRAINING, dtype: Any = None) -> Scanned:
    """The stack ready for `lax.scan`: layer axis first ([K, L, ...] -> [L, K, ...]), on its logical axes.

    `dtype` casts it: for generation, which reads it at every token. A stack that is trained stays as it is held, and so
    its gradient comes in fp32; `project` casts what it multiplies.
    """

    def leaf(site: str, factor: str, x: jax.Array) -> jax.Array:
        axes = leaf_axes(site, factor)
        if x.ndim > NDIM[factor]:
            x, axes = jnp.swapaxes(x, 0, 1), (axes[0], "organism", *axes[1:])
        return rules.reshard(x if dtype is None else x.astype(dtype), *axes)

    def tree(member: Member) -> Adapter:
        if isinstance(member, Picked):
            bank, slots = jax.lax.stop_gradient(member.bank), member.slots
            picked = map_leaves(lambda t, n, x: _pick(t, n, x, slots, rules), bank)
            return picked if dtype is None else jax.tree.map(lambda x: x.astype(dtype), picked)
        return map_leaves(leaf, member)

    return tuple(map(tree, stack))


def _pick(projection: str, factor: str, x: jax.Array, slots: jax.Array, rules: Rules) -> jax.Array:
    """A bank's leaf [F * M, L, ...] at `slots` [K] -> [L, K, ...]: every device takes from the rows that it holds."""

    def own(x: jax.Array, slots: jax.Array) -> jax.Array:
        rows = x.at[slots].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        return jnp.swapaxes(rows, 0, 1)

    # As they lie, whatever the rules that the bank was opened with; then where this pass wants them.
    held, index = jax.typeof(x).sharding.spec, jax.typeof(slots).sharding.spec
    groups, layers, *rest = (*held, *(None,) * x.ndim)[: x.ndim]
    picked = jax.shard_map(own, in_specs=(held, index), out_specs=PartitionSpec(layers, groups, *rest))(x, slots)
    layer_axis, *axes = leaf_axes(projection, factor)
    return rules.reshard(picked, layer_axis, "organism", *axes)


def peft_parametrization(tx: optax.GradientTransformation, scale: float | jax.Array) -> optax.GradientTransformation:
    """Runs `tx` as if `b` were stored unscaled, as PEFT does, while our `b` holds scale * b.

    With b = s b': grad b' = s grad b, and a step on b' is s times itself in b. So a learning rate, Adam's epsilon and
    a clipping norm mean what they mean in PEFT and in the paper's recipe.
    """

    def on_b(tree: Any, factor: float | jax.Array) -> Any:
        return map_leaves(lambda _, n, x: x * factor if n == "b" else x, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        params = None if params is None else on_b(params, 1 / scale)
        updates, state = tx.update(on_b(updates, scale), state, params)
        return on_b(updates, scale), state

    return optax.GradientTransformation(tx.init, update)
