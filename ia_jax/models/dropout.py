"""Dropout on the inputs of one adapter's LoRAs, as PEFT has it: `x -> dropout(x) -> A`.

The projections that share an input (q, k and v; gate and up) share one mask, where PEFT draws one for each module:
their `a` lie side by side in one product of width n * r, and one dropped input is read where there would be three. The
expected gradient is the same.

A mask follows from the key of its organism, the number of its row, the layer and the group of projections, and from the
token's place in the row: not from other organisms, how many rows or tokens there are, or where arrays lie. It is drawn
again in the backward pass, which so holds keys and no mask: a bool for every input would be about as much memory as all
else that a layer remembers. Dropped inputs and masks drawn twice make a step 9 % longer (docs/adapters.md).
"""

import flax.struct
import jax
import jax.numpy as jnp

from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import TRAINING, Rules

_GROUPS = {"q": 0, "o": 1, "gate": 2, "down": 3}  # by the first projection of an input


@flax.struct.dataclass
class Dropout:
    """Dropout in one pass, of the member of the stack at position `member`.

    keys: typed keys, [K] or [K, B]: of each organism, or of each of its rows as `row_keys` makes them of the former
    (for a step that takes its rows in parts: with each part's keys, what is drawn does not depend on the parts). They
    are those of one update; `forward` folds in the layer. rate: of inputs that are dropped, to the next 2^-16.
    """

    rate: float = flax.struct.field(pytree_node=False)
    keys: jax.Array
    member: int = flax.struct.field(pytree_node=False, default=-1)

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"dropout must be at least 0 and less than 1, got {self.rate}")


def row_keys(keys: jax.Array, rows: int) -> jax.Array:
    """A key for every row of each organism: [K] -> [K, B]."""
    return _fold_in(jnp.broadcast_to(keys[:, None], (len(keys), rows)), jnp.arange(rows))


def _fold_in(keys: jax.Array, numbers: int | jax.Array) -> jax.Array:
    """`fold_in` of keys [K, B], where they lie."""
    data = jax.sharding.reshard(jnp.broadcast_to(jnp.asarray(numbers), keys.shape), jax.typeof(keys).sharding.spec)
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, data)


def for_pass(dropout: Dropout | None, shape: tuple[int, ...], members: int, rules: Rules = TRAINING) -> Dropout | None:
    """The dropout of a pass over tokens of a shape [K, B, T], with keys [K, B] where their rows lie; None at rate 0.

    Raises ConfigError where the keys are not those of so many organisms and rows, or there is no such member.
    """
    if dropout is None or dropout.rate == 0:
        return None
    (organisms, rows, _), keys, member = shape, dropout.keys, dropout.member
    if keys.shape not in ((organisms,), (organisms, rows)):
        raise ConfigError(
            f"dropout needs a key for each of {organisms} organisms, or for each of their {rows} rows; got an array of "
            f"shape {list(keys.shape)}"
        )
    if not -members <= member < members:
        raise ConfigError(f"dropout is for member {member} of a stack that has {members}")
    if keys.ndim == 1:
        keys = row_keys(rules.reshard(keys, "organism"), rows)
    return Dropout(dropout.rate, rules.reshard(keys, "organism", "rows"), member % members)


def fold(dropout: Dropout | None, number: int | jax.Array) -> Dropout | None:
    """The dropout of one part of a pass: of a layer, and within it of a group of projections."""
    if dropout is None:
        return None
    return Dropout(dropout.rate, _fold_in(dropout.keys, number), dropout.member)


def of_group(dropout: Dropout | None, projection: str) -> Dropout | None:
    """Of one layer's dropout, that of the input which this projection is the first to read."""
    return fold(dropout, _GROUPS[projection])


def keep_mask(dropout: Dropout, length: int, width: int, rules: Rules = TRAINING, axis: str | None = None) -> jax.Array:
    """Which inputs are kept, [K, B, T, in]: those of the group whose keys these are. axis: the inputs' logical axis."""
    spec = rules.spec("organism", "rows", None, axis)

    def draw(key: jax.Array) -> jax.Array:
        first, second = jax.random.bits(key, (2,), jnp.uint32)
        shape, where = (-(-length // 2), width), jax.P(None, spec[-1])
        token, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=where) for axis in (0, 1))
        return _mixed(_mixed((token * jnp.uint32(width) + column) ^ first) ^ second)

    # Each draw is for two tokens, one after the other: 16 bits are plenty.
    bits = jax.vmap(jax.vmap(draw))(dropout.keys)
    halves = jnp.stack([bits & 0xFFFF, bits >> 16], axis=3).reshape(*bits.shape[:2], -1, width)
    return rules.reshard(halves[:, :, :length] >= round(dropout.rate * 2**16), "organism", "rows", None, axis)


def _mixed(x: jax.Array) -> jax.Array:
    """uint32 to uint32, each bit of the one turning about half of the other's (MurmurHash3's finaliser).

    A draw is two of them around a key's two words. Threefry, by which that key came, would take ten times as many
    operations for each input.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
