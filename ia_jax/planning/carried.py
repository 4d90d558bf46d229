"""What the collectives of a compiled step carry, told by the shapes of their arrays."""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig, leaf_axes, lora_shapes
from ia_jax.models.transformer import WeightSpec, weight_specs
from ia_jax.parallel.mesh import TRAINING
from ia_jax.planning.chips import Work
from ia_jax.planning.hlo import Namer

SMALL = 4096  # elements: below this a gather is counters and norms, whatever its shape


def namer(cfg: ModelConfig, lora: LoraConfig, mesh: Mesh, work: Work) -> Namer:
    """What a collective's array is, by its shape: a base weight or an adapter, whole or a shard; else activations. Of a
    step that draws tokens also "logits", of all rows of a group of devices.

    So whatever is not known to be something else counts as activations. Axes of size 1 and their order are ignored.
    Base weights are only ever gathered, along `fsdp` and `rows`: they are frozen, so nothing about them is reduced, and
    a gather along `tp` of the same shape is one of hidden states (4096 tokens of width 8192, say).
    """

    def spellings(shape: Sequence[int], axes: Sequence[str | None]) -> Iterator[tuple[int, ...]]:
        choices = []
        for size, axis in zip(shape, axes, strict=True):
            choices.append({size, size // TRAINING.size(axis, mesh)} if axis else {size})
        for dims in itertools.product(*choices):
            yield tuple(sorted(d for d in dims if d > 1))

    weights: set[tuple[int, ...]] = set()
    specs = jax.tree.leaves(weight_specs(cfg), is_leaf=lambda x: isinstance(x, WeightSpec))
    for spec in specs:
        weights.update(spellings(spec.shape, spec.axes))
        if spec.axes[0] == "layers":
            weights.update(spellings(spec.shape[1:], spec.axes[1:]))
    adapters: set[tuple[int, ...]] = set()
    local = {1, work.organisms, work.organisms // TRAINING.size("organism", mesh)}
    shapes = [x for kind in (lora, work.frozen or lora) for x in lora_shapes(cfg, kind).items()]
    for t, factors in shapes:
        for name, (layers, *shape) in factors.items():
            axes = leaf_axes(t, name)[1:]
            # Projections of one input are multiplied together, so up to three ranks lie side by side.
            for width, k, depth in itertools.product((1, 2, 3), local, (1, layers)):
                sizes = [d * width if a == "rank" else d for d, a in zip(shape, axes, strict=True)]
                adapters.update(spellings([k, depth, *sizes], [None, None, *axes]))

    apart = TRAINING.size("organism", mesh) * TRAINING.size("rows", mesh)
    drawn = 0 if work.backward else work.organisms * work.rows // apart * cfg.vocab_size

    def what(op: str, dtype: str, shape: tuple[int, ...], group: int) -> str:
        if dtype[0] in "sup" and dtype != "s8":
            return "ids"
        if math.prod(shape) <= SMALL:
            return "scalars"
        dims = tuple(sorted(d for d in shape if d > 1))
        gathered = op == "all-gather" and group == TRAINING.size("embed", mesh)
        if dims in weights and (op == "collective-permute" or gathered):
            return "weights"
        if dims in adapters:
            return "adapters"
        return "logits" if dtype == "f32" and math.prod(shape) == drawn else "activations"

    return what
