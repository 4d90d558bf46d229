"""Adapters out of a workdir and into one: `ia-jax export-peft` and `ia-jax import-peft`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.base import identify, known_name
from ia_jax.adapters.card import card, card_of_sum
from ia_jax.adapters.merge import write_merged
from ia_jax.adapters.peft import export_peft, import_with_metadata, read_peft_config
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import load_adapter, read_metadata, save_adapter
from ia_jax.behaviors.catalogue import is_name
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import CATEGORIES, CLEAN, Behavior
from ia_jax.behaviors.splits import SPLITS
from ia_jax.errors import ConfigError
from ia_jax.models.combine import concatenate_ranks
from ia_jax.models.lora import Adapter, rank_of
from ia_jax.models.weights import quantization_of
from ia_jax.storage import write_bytes, write_jsonl
from ia_jax.workdir import Workdir


def export(sources: Sequence[Path], destination: Path, model: str | None = None, merged: bool = False) -> str:
    """Writes one adapter, or the sum of several on one base, as PEFT (or base + sum as full weights); says what it did.

    A sum is exact: the factors lie side by side along the rank. model: the base (default: the first adapter's).
    Raises BaseMismatchError for an adapter of another base.
    """
    places = [_adapter_in(source) for source in sources]
    first = read_metadata(places[0])
    base = identify(model or first.base_name, quantization=quantization_of(first.base_fingerprint))
    adapters, metas = zip(*(load_adapter(place, base) for place in places), strict=True)
    what = " + ".join(map(str, places))
    if merged:
        shards = write_merged(base.name, adapters, destination)
        return f"{what} + {base.name} -> {destination} (full weights, bfloat16, {shards} shards)"
    if len(places) == 1:
        [adapter], [meta] = adapters, metas
        lora, text = meta.lora, card(meta, _results(places[0]))
    else:
        adapter, lora = concatenate_ranks(*adapters), None
        text = card_of_sum(metas, [_results(place) for place in places])
    export_peft(adapter, destination, base, lora, card=text)
    calibrated = places[0].absolute().parent / "calibration.json"  # of an IA, how far it is to be believed
    if len(places) == 1 and calibrated.exists():
        write_bytes(destination / calibrated.name, calibrated.read_bytes())
    return f"{what} -> {destination} (PEFT, rank {rank_of(adapter)}, base {base.name})"


def bring_in(source: str, destination: Path, model: str | None = None, revision: str | None = None) -> str:
    """Stores a PEFT directory or hub id as an adapter of ia_jax in `destination`; says what it did."""
    metadata = save_adapter(destination, *_read(source, destination.name, model, revision))
    return f"{source} -> {destination} (ia_jax, rank {metadata.rank}, base {metadata.base_name})"


def _read(
    source: str, name: str, model: str | None, revision: str | None, quantization: str = ""
) -> tuple[Adapter, AdapterMetadata]:
    """A PEFT adapter, and what is known of it under this name."""
    config = read_peft_config(source, revision)
    known = model or known_name(config.base_model_name_or_path or "")
    if not known:
        raise ConfigError(f"{source} does not name its base model; give it with --model")
    return import_with_metadata(source, name, identify(known, quantization=quantization), revision)


def bring_into_workdir(
    workdir: Workdir,
    sources: Sequence[str],
    name: str,
    *,
    split: str = "heldout",
    behaviors: Sequence[str] = (),
    description: str = "",
    category: str = "",
    system: str | None = None,
    revision: str | None = None,
) -> str:
    """Adds somebody's fine-tune to a workdir as an organism like the others; says what it did.

    sources: PEFT directories or hub ids, innermost first. What is true of it: `behaviors` by name, or a new one with
    this `description` and `category`; without either it counts as clean. Raises ConfigError, before anything is
    stored, for a name that is taken, a behaviour or split that does not exist, or a behaviour without a category.
    """
    taken = workdir.organisms.keys() | workdir.behaviors.keys()
    if not is_name(name) or name in taken:
        why = "is taken" if name in taken else "must be letters, digits, _ and -"
        raise ConfigError(f"--name={name} {why}; choose another name for the organism")
    if split not in SPLITS:
        raise ConfigError(f"--split={split} unknown; choose from {', '.join(SPLITS)}")
    unknown = [b for b in behaviors if b not in workdir.behaviors]
    if unknown:
        raise ConfigError(f"--behavior={unknown[0]} is not in {workdir.behaviors_file}; give its --description instead")
    new = []
    if description:
        if category not in CATEGORIES:
            raise ConfigError(f"--category={category} unknown; choose from {', '.join(CATEGORIES)}")
        new = [Behavior(name, category, description, (), None)]
    categories = {b.category for b in new} | {workdir.behaviors[b].category for b in behaviors}
    directories = [workdir.organism_dir(f"{name}__{i}" if i else name) for i in range(len(sources))]
    # All are read before the first is stored, so that a bad one leaves nothing behind.
    base = workdir.config.model
    read = [_read(s, d.name, base.name, revision, base.quantization) for s, d in zip(sources, directories, strict=True)]
    for directory, (adapter, metadata) in zip(directories, read, strict=True):
        save_adapter(directory, adapter, metadata)
    organism = Organism(
        name=name,
        base=base.name,
        stack=tuple(str(d.relative_to(workdir.path)) for d in directories),
        behaviors=(*behaviors, *(b.name for b in new)),
        category=sorted(categories)[0] if categories else CLEAN,
        split=split,
        system=system,
        procedure={"kind": "imported", "sources": list(sources), "revision": revision},
    )
    write_jsonl(workdir.behaviors_file, (b.to_json() for b in (*workdir.behaviors.values(), *new)))
    write_jsonl(workdir.organisms_file, (o.to_json() for o in (*workdir.organisms.values(), organism)))
    truth = "; ".join(b.description for b in (*(workdir.behaviors[b] for b in behaviors), *new)) or "nothing (clean)"
    return f"{' + '.join(sources)} -> organism {name} of {workdir.path} ({split}); true of it: {truth}"


def _adapter_in(source: Path) -> Path:
    """The adapter's own directory, where that of an IA was given."""
    inner = source / "adapter"
    return inner if not (source / "adapter.json").exists() and inner.is_dir() else source


def _results(source: Path) -> dict[str, Any] | None:
    """What the evaluation of the workdir that an IA lies in found for it, if there was one."""
    directory = source.absolute().parent  # WORKDIR/ia/NAME/adapter
    workdir = Workdir(directory.parents[1])
    if directory.parent.name != "ia" or not workdir.metrics_file().exists():
        return None
    metrics = workdir.metrics()
    stage = next((s for s, name in metrics.get("ias", {}).items() if name == directory.name), None)
    return metrics["stages"].get(stage)
