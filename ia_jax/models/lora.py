"""LoRA as plain trees: what an adapter looks like, how it starts, and how a stack of them is applied.

An adapter is `{projection: {"a": [L, in, r], "b": [L, r, out]}}`; with an organism axis every leaf has a leading K.
The scale alpha/rank is folded into `b`, so applying one is `(x a) b`. A *stack* is a tuple of adapters on one base:
`(organisms with K, IA)` for joint training, `(organisms,)`, `(IA,)` or `()` for the controls. Frozen organisms may be
`Picked` from a bank that holds all of a run's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.parallel.mesh import TRAINING, Rules

Adapter = dict[str, dict[str, jax.Array]]


class Picked(NamedTuple):
    """K frozen organisms out of a bank, as a member of a stack.

    bank:  leaves [F * M, L, in, r] and [F * M, L, r, out], the organism axis over F groups of devices, M rows in each.
    slots: [K] int32, K a multiple of F and spread alike: a row *of the group's own part* of the bank, or -1 for an
           adapter that changes nothing. So a step picks what its own devices hold, and no adapter crosses between them.
    """

    bank: Adapter
    slots: jax.Array


Member = Adapter | Picked
Stack = tuple[Member, ...]
Scanned = tuple[Adapter, ...]  # what `to_scan` makes of a stack; inside a scan, one layer's part of it

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
_IN_AXIS = {"o": "heads", "down": "mlp"}
_OUT_AXIS = {"q": "heads", "k": "heads", "v": "heads", "gate": "mlp", "up": "mlp"}


@dataclass(frozen=True)
class LoraConfig:
    """`rank`, `alpha` and target projections; `init` is "b_zero" (PEFT's default) or "a_zero"."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS
    init: str = "b_zero"

    def __post_init__(self) -> None:
        unknown = [t for t in self.targets if t not in PROJECTIONS]
        if unknown or not self.targets:
            raise ConfigError(f"LoRA targets {unknown or '()'} unknown; choose from {', '.join(PROJECTIONS)}")
        if self.rank < 1:
            raise ConfigError(f"LoRA rank must be at least 1, got {self.rank}")
        if self.init not in ("b_zero", "a_zero"):
            raise ConfigError(f"LoRA init must be b_zero or a_zero, got {self.init!r}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def projection_sizes(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of every projection that a LoRA can sit on."""
    d, f, q, kv = cfg.hidden_size, cfg.intermediate_size, cfg.q_size, cfg.kv_size
    return {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d), "gate": (d, f), "up": (d, f), "down": (f, d)}


def lora_shapes(cfg: ModelConfig, lora: LoraConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an adapter's leaves without organism axis: `a` [L, in, r], `b` [L, r, out]."""
    sizes, layers, r = projection_sizes(cfg), cfg.num_hidden_layers, lora.rank
    return {t: {"a": (layers, sizes[t][0], r), "b": (layers, r, sizes[t][1])} for t in lora.targets}


def leaf_axes(projection: str, factor: str) -> tuple[str | None, ...]:
    """Logical axes of one leaf without organism axis (fields of `parallel.mesh.Rules`)."""
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
        inside = len(keys) > 1 and keys[-2] in PROJECTIONS
        axes = leaf_axes(keys[-2], keys[-1]) if inside else ()
        lead = ("organism",) if organisms else (None,) * (x.ndim - 3) if inside else ()
        return rules.sharding(mesh, *lead, *axes)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def init_lora(key: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Adapter:
    """A new adapter that changes nothing yet: one factor Kaiming-uniform as in PEFT, the other zero; fp32.

    With "a_zero" it is `b` that starts random. The scale is in `b`, so a random `b` carries it.
    """
    shapes, out = lora_shapes(cfg, lora), {}
    for t, k in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        random, zero = ("a", "b") if lora.init == "b_zero" else ("b", "a")
        bound = shapes[t][random][-2] ** -0.5 * (lora.scale if random == "b" else 1.0)
        out[t] = {
            random: jax.random.uniform(k, shapes[t][random], jnp.float32, -bound, bound),
            zero: jnp.zeros(shapes[t][zero], jnp.float32),
        }
    return out


def init_organisms(keys: jax.Array, cfg: ModelConfig, lora: LoraConfig) -> Adapter:
    """K adapters stacked on a leading axis; adapter i depends on `keys[i]` alone. keys: [K]."""
    return jax.vmap(lambda k: init_lora(k, cfg, lora))(keys)


def rank_of(adapter: Adapter) -> int:
    return next(iter(adapter.values()))["a"].shape[-1]


def pad_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with zeros up to `rank`, so that adapters of several ranks stack.

    Gradients of the padding are exactly zero, as each factor's is a product with the other's: training leaves it zero.
    """

    def pad(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, rank - x.shape[axis])
        return jnp.pad(x, widths)

    if rank < rank_of(adapter):
        raise ConfigError(f"an adapter of rank {rank_of(adapter)} cannot be padded to rank {rank}")
    return {t: {"a": pad(ab["a"], -1), "b": pad(ab["b"], -2)} for t, ab in adapter.items()}


def strip_rank(adapter: Adapter, rank: int) -> Adapter:
    """The first `rank` ranks of an adapter: the inverse of `pad_rank`. Raises ConfigError if others are not zero."""
    out = {t: {"a": ab["a"][..., :rank], "b": ab["b"][..., :rank, :]} for t, ab in adapter.items()}
    for t, ab in adapter.items():
        if (ab["a"][..., rank:] != 0).any() or (ab["b"][..., rank:, :] != 0).any():
            raise ConfigError(f"{t}: an adapter of rank {rank} is expected, but ranks beyond it are not zero")
    return out


def take_organisms(stacked: Adapter, index: Any) -> Adapter:
    """Organism(s) `index` out of a stacked adapter; on a mesh one lies whole where the organisms were spread."""

    def take(x: jax.Array) -> jax.Array:
        if not isinstance(x, jax.Array) or jax.sharding.get_abstract_mesh().empty:
            return x[index]
        rest = (*jax.typeof(x).sharding.spec, *(None,) * x.ndim)[1 : x.ndim]
        return x.at[index].get(out_sharding=PartitionSpec(*(None,) * jnp.ndim(index), *rest))

    return jax.tree.map(take, stacked)


def has_organism_axis(member: Member) -> bool:
    return isinstance(member, Picked) or next(iter(member.values()))["a"].ndim == 4


def to_scan(stack: Stack, rules: Rules = TRAINING, dtype: Any = None) -> Scanned:
    """The stack ready for `lax.scan`: layer axis first ([K, L, ...] -> [L, K, ...]), on its logical axes.

    `dtype` casts it: for generation, which reads it at every token. A stack that is trained stays as it is held, and so
    its gradient comes in fp32; `project` casts what it multiplies.
    """

    def leaf(projection: str, factor: str, x: jax.Array) -> jax.Array:
        axes = leaf_axes(projection, factor)
        if x.ndim == 4:
            x, axes = jnp.swapaxes(x, 0, 1), (axes[0], "organism", *axes[1:])
        return rules.reshard(x if dtype is None else x.astype(dtype), *axes)

    def tree(member: Member) -> Adapter:
        if isinstance(member, Picked):
            bank, slots = jax.lax.stop_gradient(member.bank), member.slots
            picked = {t: {n: _pick(t, n, x, slots, rules) for n, x in ab.items()} for t, ab in bank.items()}
            return picked if dtype is None else jax.tree.map(lambda x: x.astype(dtype), picked)
        return {t: {n: leaf(t, n, x) for n, x in ab.items()} for t, ab in member.items()}

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
        return {t: {"a": ab["a"], "b": ab["b"] * factor} for t, ab in tree.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        params = None if params is None else on_b(params, 1 / scale)
        updates, state = tx.update(on_b(updates, scale), state, params)
        return on_b(updates, scale), state

    return optax.GradientTransformation(tx.init, update)
