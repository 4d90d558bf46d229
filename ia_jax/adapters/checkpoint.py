"""What people ship: a merged or fully fine-tuned checkpoint, read against the base that it came from.

Both are read tensor by tensor; at no time does the host hold more of them than one layer. A fine-tune is either taken
as it is (its weights in place of the base's), or its difference is cut to a rank, as a LoRA that works wherever an
adapter does, with the error of the cut stated.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.adapters.align import Layer, Undone, align_final, align_layer
from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, Adapter
from ia_jax.models.sources import TensorSource, open_source
from ia_jax.models.transformer import Params, weight_specs
from ia_jax.models.weights import NameTable, hf_name_table, name_table

# Where the remaining distance is larger, relative to the base, this is no fine-tune in the base's basis. Fine-tunes
# stand below 0.1; weights that have nothing to do with each other at about 1.4.
TOO_FAR = 0.5
# What may differ between the configurations of a base and its fine-tune.
_FREE = ("max_position_embeddings",)


@dataclass(frozen=True)
class Pair:
    """A fine-tune's stored tensors beside those of its base."""

    base: TensorSource
    model: TensorSource
    base_names: NameTable
    model_names: NameTable

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    def leaf(self, name: str, layer: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """A weight of the base and of the fine-tune, fp32 in our layout. Raises ConfigError if it is not finite."""
        path = (name,) if layer is None else ("layers", name)
        found = []
        for source, names in ((self.base, self.base_names), (self.model, self.model_names)):
            stored, transposed = names[path, layer]
            value = source.read(stored, (slice(None),) * len(source.shapes[stored])).astype(np.float32)
            if not np.isfinite(value).all():
                bad = int((~np.isfinite(value)).sum())
                raise ConfigError(f"{source.where}: {stored} has {bad} values that are not finite; export it again")
            found.append(value.T if transposed else value)
        return found[0], found[1]

    def layer(self, number: int) -> tuple[Layer, Layer]:
        return self._of(tuple(weight_specs(self.config)["layers"]), number)

    def top(self, *names: str) -> tuple[Layer, Layer]:
        return self._of(names, None)

    @property
    def top_names(self) -> tuple[str, ...]:
        return tuple(n for n in weight_specs(self.config) if n != "layers")

    def _of(self, names: tuple[str, ...], layer: int | None) -> tuple[Layer, Layer]:
        pairs = {n: self.leaf(n, layer) for n in names}
        return {n: b for n, (b, _) in pairs.items()}, {n: m for n, (_, m) in pairs.items()}


def open_pair(
    base: str | Path,
    model: str | Path,
    revision: str | None = None,
    of_model: str | None = None,
    cache: str = "",
) -> Pair:
    """Opens a fine-tune beside its base; revisions of either, where they are on the hub, and its `cache` for all.

    Raises ConfigError, naming what differs, for a checkpoint of another architecture or size, with an enlarged
    vocabulary, quantised, with a shard missing, or none at all.
    """
    ours, theirs = open_source(base, revision, cache), open_source(model, of_model, cache)
    wanted, got = (dataclasses.asdict(source.config) for source in (ours, theirs))
    if got["vocab_size"] > wanted["vocab_size"] and {**got, "vocab_size": wanted["vocab_size"]} == wanted:
        raise ConfigError(
            f"{model}: the vocabulary was enlarged from {wanted['vocab_size']} to {got['vocab_size']} tokens, which "
            f"the adapters of {base} know nothing of; cut its embedding back to {wanted['vocab_size']} rows"
        )
    for name, value in wanted.items():
        if got[name] != value and name not in _FREE:
            raise ConfigError(
                f"{model}: {name} is {got[name]!r} and that of {base} is {value!r}; give a fine-tune of {base}"
            )
    return Pair(ours, theirs, name_table(ours), name_table(theirs))


# ---------------------------------------------------------------------------------------------------------------------
# The difference
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """A fine-tune's difference as a LoRA.

    adapter: of rank `rank` on all projections, fp32 numpy.
    error:   |difference - a b| / |difference| over all projections (Frobenius); 0 where nothing was cut.
    size:    |difference| / |base| over all projections.
    kept:    {leaf path: values} of weights beside the projections that changed, which no LoRA can hold: embeddings,
             norms, biases, output matrix.
    """

    adapter: Adapter
    rank: int
    error: float
    size: float
    kept: dict[tuple[str, ...], np.ndarray]


def low_rank(pair: Pair, rank: int) -> LowRank:
    """The best approximation of this rank of every projection's difference (Eckart and Young 1936), by SVD.

    The singular values are shared out evenly between the factors. Raises ConfigError for a rank that no matrix has.
    """
    cfg = pair.config
    most = min(cfg.hidden_size, cfg.kv_size)
    if not 1 <= rank <= most:
        raise ConfigError(f"rank {rank} of the difference must lie in 1 … {most} for this base")
    factors: dict[str, dict[str, list[np.ndarray]]] = {t: {"a": [], "b": []} for t in PROJECTIONS}
    left = total = own = 0.0
    kept: dict[tuple[str, ...], np.ndarray] = {}
    rest = [n for n in weight_specs(cfg)["layers"] if n not in PROJECTIONS]
    for number in range(cfg.num_hidden_layers):
        for target in PROJECTIONS:
            base, model = pair.leaf(target, number)
            u, s, v = np.linalg.svd(model - base, full_matrices=False)
            share = np.sqrt(s[:rank])
            factors[target]["a"].append(u[:, :rank] * share)
            factors[target]["b"].append(share[:, None] * v[:rank])
            squares = s.astype(np.float64) ** 2
            left, total, own = left + squares[rank:].sum(), total + squares.sum(), own + float((base**2).sum())
    for name in rest:
        base, model = zip(*(pair.leaf(name, n) for n in range(cfg.num_hidden_layers)), strict=True)
        if any((b != m).any() for b, m in zip(base, model, strict=True)):
            kept["layers", name] = np.stack(model)
    for name in pair.top_names:
        base, model = pair.leaf(name)
        if (base != model).any():
            kept[name,] = model
    adapter = {t: {n: np.stack(rows) for n, rows in ab.items()} for t, ab in factors.items()}
    return LowRank(adapter, rank, float(np.sqrt(left / total)) if total else 0.0, float(np.sqrt(total / own)), kept)


def with_kept(params: Params, kept: dict[tuple[str, ...], np.ndarray], place: Any) -> Params:
    """The base's weights with those that changed beside the projections. place(value, old): onto old's devices."""
    out = {**params, "layers": dict(params["layers"])}
    for path, value in kept.items():
        node = out["layers"] if path[0] == "layers" else out
        node[path[-1]] = place(value, node[path[-1]])
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Alignment of a whole checkpoint
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Alignment:
    """What became of a checkpoint: what was undone, and |model - base| / |base| over all weights before and after."""

    undone: Undone = dataclasses.field(default_factory=Undone)
    squares: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))

    @property
    def before(self) -> float:
        return float(np.sqrt(self.squares[1] / self.squares[0]))

    @property
    def after(self) -> float:
        return float(np.sqrt(self.squares[2] / self.squares[0]))

    def add(self, base: Layer, model: Layer, aligned: Layer) -> None:
        for name, b in base.items():
            sums = (float((x.astype(np.float64) ** 2).sum()) for x in (b, model[name] - b, aligned[name] - b))
            self.squares += np.fromiter(sums, np.float64)


def aligned_tensors(pair: Pair, found: Alignment) -> Iterator[tuple[str, np.ndarray]]:
    """The fine-tune's tensors in the base's basis, by their Hugging Face names, a layer at a time; `found` is filled.

    Raises ConfigError for an embedding or a layer that is still `TOO_FAR` from the base's: another model, or one whose
    residual stream has another basis, which is not undone.
    """
    names = hf_name_table(pair.config)
    for number in [None, *range(pair.config.num_hidden_layers)]:
        if number is None:
            base, model = pair.top(*pair.top_names)
            head = {n: (base[n], model[n]) for n in base if n != "embed"}
            aligned, undone = align_final({n: b for n, (b, _) in head.items()}, {n: m for n, (_, m) in head.items()})
            aligned |= {"embed": model["embed"]}
            own = Alignment()
            own.add({"embed": base["embed"]}, model, aligned)
            place = "embedding"
        else:
            base, model = pair.layer(number)
            aligned, undone = align_layer(base, model, pair.config)
            own = Alignment()
            own.add(base, model, aligned)
            place = f"layer {number}"
        if own.after > TOO_FAR:
            raise ConfigError(
                f"{pair.model.where} cannot be aligned: its {place} is {100 * own.after:.0f} % away from the base's "
                f"after all that can be undone; it is no fine-tune of {pair.base.where}, or the basis of its residual "
                "stream was changed"
            )
        found.add(base, model, aligned)
        found.undone += undone
        for name, value in aligned.items():
            stored, transposed = names[((name,) if number is None else ("layers", name)), number]
            yield stored, value.T if transposed else value
