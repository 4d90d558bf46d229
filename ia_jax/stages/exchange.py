"""Adapters out of a workdir and into one: `ia-jax export-peft` and `ia-jax import-peft`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.base import identify, known_name
from ia_jax.adapters.card import card, card_of_sum
from ia_jax.adapters.merge import write_merged
from ia_jax.adapters.peft import concat_ranks, export_peft, import_peft, read_peft_config
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import load_adapter, read_metadata, save_adapter
from ia_jax.errors import ConfigError
from ia_jax.models.lora import LoraConfig, rank_of
from ia_jax.workdir import Workdir


def export(sources: Sequence[Path], destination: Path, model: str | None = None, merged: bool = False) -> str:
    """Writes one adapter, or the sum of several on one base, as PEFT (or base + sum as full weights); says what it did.

    A sum is exact: the factors lie side by side along the rank. model: the base (default: the first adapter's).
    Raises BaseMismatchError for an adapter of another base.
    """
    places = [_adapter_in(source) for source in sources]
    base = identify(model or read_metadata(places[0]).base_name)
    adapters, metas = zip(*(load_adapter(place, base) for place in places), strict=True)
    what = " + ".join(map(str, places))
    if merged:
        shards = write_merged(base.name, adapters, destination)
        return f"{what} + {base.name} -> {destination} (full weights, bfloat16, {shards} shards)"
    if len(places) == 1:
        [adapter], [meta] = adapters, metas
        lora, text = LoraConfig(meta.rank, meta.alpha, meta.targets), card(meta, _results(places[0]))
    else:
        adapter, lora = concat_ranks(list(adapters)), None
        text = card_of_sum(metas, [_results(place) for place in places])
    export_peft(adapter, destination, base, lora, card=text)
    return f"{what} -> {destination} (PEFT, rank {rank_of(adapter)}, base {base.name})"


def bring_in(source: str, destination: Path, model: str | None = None, revision: str | None = None) -> str:
    """Stores a PEFT directory or hub id as an adapter of ia_jax in `destination`; says what it did."""
    config = read_peft_config(source, revision)
    name = model or known_name(config.base_model_name_or_path or "")
    if not name:
        raise ConfigError(f"{source} does not name its base model; give it with --model")
    base = identify(name)
    adapter = import_peft(source, base, revision)
    rank = rank_of(adapter)
    uniform = not (config.rank_pattern or config.alpha_pattern or config.use_rslora)
    metadata = AdapterMetadata(
        name=destination.name,
        kind="organism",
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        rank=rank,
        alpha=config.alpha if uniform else float(rank),
        targets=tuple(adapter),
    )
    save_adapter(destination, adapter, metadata)
    return f"{source} -> {destination} (ia_jax, rank {rank}, base {base.name})"


def _adapter_in(source: Path) -> Path:
    """The adapter's own directory, where that of an IA was given."""
    inner = source / "adapter"
    return inner if not (source / "adapter.json").exists() and inner.is_dir() else source


def _results(source: Path) -> dict[str, Any] | None:
    """What the evaluation of the workdir that an IA lies in found for its stage, if there was one."""
    workdir, stage = Workdir(source.absolute().parents[1]), source.absolute().parent.name.removeprefix("ia_")
    return workdir.metrics["stages"].get(stage) if workdir.metrics_file.exists() else None
