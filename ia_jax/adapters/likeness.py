"""How alike two fine-tunes are by their weights alone: the cosine of what their adapters add."""

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.models.lora import RESIDUAL, Member, Sites, layers_of, sites_of, to_scan
from ia_jax.parallel.mesh import replicate, to_host


def cosines(ones: Bank, others: Bank, width: int) -> np.ndarray:
    """[M, N] cosines between what the adapters of two banks add to all weights, each taken as one long vector.

    Those are never formed: of low-rank a b and c d the inner product is that of a'c and b d' (r by r), summed over
    sites and layers. `width` organisms of either are compared at a time. 0 with an adapter that adds nothing. Raises
    ValueError where the banks' organisms sit on different layers.
    """
    mine, theirs = (b.arrange(list(range(len(b))), width) for b in (ones, others))
    products, own, other = np.zeros((len(ones), len(others))), np.zeros(len(ones)), np.zeros(len(others))
    for norms, bank, batches in ((own, ones, mine), (other, others, theirs)):
        for batch in batches:
            member = bank.take(batch)
            _put(norms, np.diagonal(to_host(_products(member, member))), batch)
    for batch in mine:
        member, rows = ones.take(batch), np.zeros((len(batch), len(others)))
        for group in theirs:
            _put(rows.T, to_host(_products(member, others.take(group))).T, group)
        _put(products, rows, batch)
    norms = np.sqrt(np.outer(own, other))
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def _put(out: np.ndarray, values: np.ndarray, batch: list[int | None]) -> None:
    """The values of a batch's positions to the rows of the organisms that they are."""
    for value, organism in zip(values, batch, strict=True):
        if organism is not None:
            out[organism] = value


@jax.jit
def _products(one: Member, other: Member) -> jax.Array:
    """[K, M] inner products between what K and M organisms add to the weights, in fp32."""
    if layers_of(one) != layers_of(other):
        raise ValueError(f"adapters on layers {layers_of(one)} and {layers_of(other)} are not compared")
    trees = [sites_of(tree) for tree in to_scan((one, other))]  # leaves [L, K, ...]
    shared = [site for site in trees[0] if site in trees[1]]

    def layer(total: jax.Array, leaves: tuple[Sites, ...]) -> tuple[jax.Array, None]:
        # Whole on every device: a layer of a few adapters is small.
        x, y = (jax.tree.map(lambda v: v.astype(jnp.float32), replicate(tree)) for tree in leaves)
        for site in shared:
            if site == RESIDUAL:
                total += jnp.einsum("kd,md->km", x[site]["v"], y[site]["v"], precision="highest")
                continue
            a = jnp.einsum("kir,mis->kmrs", x[site]["a"], y[site]["a"], precision="highest")
            b = jnp.einsum("kro,mso->kmrs", x[site]["b"], y[site]["b"], precision="highest")
            total += (a * b).sum((2, 3))
        return total, None

    counts = [next(iter(next(iter(tree.values())).values())).shape[1] for tree in trees]
    total, _ = jax.lax.scan(layer, replicate(jnp.zeros(counts, jnp.float32)), tuple(trees))
    return replicate(total)
