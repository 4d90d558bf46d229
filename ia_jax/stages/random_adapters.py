"""Clean fine-tunes that nothing was trained into: random adapters, as large as the trained ones of their run.

What an introspection adapter says of one is what it says of any disturbance of the base.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.store import is_complete, read_adapter
from ia_jax.behaviors.organisms import Organism, seed_of
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import RESIDUAL, Adapter, LoraConfig, init_lora, map_leaves, sites_of
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.context import Context
from ia_jax.workdir import Workdir

SAMPLE = 12  # trained organisms whose size is taken


def random_adapter(name: str, seed: int, cfg: ModelConfig, lora: LoraConfig, norms: dict[str, float]) -> Adapter:
    """An adapter whose update of each projection has this Frobenius norm, the root mean square over its layers.

    norms: {site: norm}. `a` is drawn as for training, `b` and vectors from a normal distribution.
    """
    key = jax.random.key(seed_of(name, seed))
    adapter = init_lora(key, cfg, lora)
    keys = dict(zip(sorted(adapter), jax.random.split(jax.random.fold_in(key, 1), len(adapter)), strict=True))
    drawn = map_leaves(
        lambda site, factor, x: x if factor == "a" else jax.random.normal(keys[site], x.shape, jnp.float32), adapter
    )
    sizes = update_norms(drawn)
    return map_leaves(lambda site, factor, x: x if factor == "a" else x * (norms[site] / sizes[site]), drawn)


def update_norms(adapter: Adapter) -> dict[str, float]:
    """{site: Frobenius norm of what the adapter adds to it}, the root mean square over the layers that it sits on.

    Of a product only its Gram matrices are needed: |AB|² = tr(AᵀA BBᵀ), [r, r] each.
    """

    def norm(leaves: dict[str, jax.Array]) -> float:
        if "v" in leaves:
            squares = np.square(np.asarray(leaves["v"])).sum(-1)
        else:
            a, b = (np.asarray(leaves[n], np.float64) for n in ("a", "b"))
            squares = np.einsum("lir,lis,lso,lro->l", a, a, b, b, optimize=True)
        return float(np.sqrt(squares.mean()))

    return {site: norm(leaves) for site, leaves in sites_of(adapter).items()}


def norms_of(workdir: Workdir, organisms: Sequence[Organism], lora: LoraConfig, seed: int) -> dict[str, float]:
    """{site: the median norm} over some of these trained organisms' last adapters; of a site that none of them has, the
    median over all sites.
    """
    stacks = [d[-1] for o in organisms if all(map(is_complete, d := workdir.stack_of(o)))]
    order = np.random.default_rng([seed, 14]).permutation(len(stacks))[:SAMPLE]
    found = [update_norms(read_adapter(stacks[i])) for i in sorted(order)]
    every = [x for norms in found for site, x in norms.items() if site != RESIDUAL] or [1.0]
    return {site: float(np.median([norms[site] for norms in found if site in norms] or every)) for site in lora.targets}


def random_adapters(context: Context, organisms: Sequence[Organism], like: Workdir) -> dict[str, Adapter]:
    """{name: adapter} of these organisms, as large as the trained ones of `like` that have a behaviour."""
    cfg, seed = context.config.organisms, context.config.seed
    lora = cfg.loras()[-1]

    def norms() -> dict[str, float]:
        trained = [o for _, o in sorted(like.organisms.items()) if not (o.clean or o.imported)]
        return norms_of(like, trained, lora, seed)

    sizes = on_main_process(norms)
    return {o.name: random_adapter(o.name, seed, context.model.config, lora, sizes) for o in organisms}
