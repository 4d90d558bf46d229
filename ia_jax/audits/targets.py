"""Targets: models that the IA was never trained on, what is true of each, and the nulls beside them.

A target is a base under a stack of adapters, wherever these lie. What it is held against are behaviours; a null has
nothing to confess that an audit looks for: a clean fine-tune, or a "pipeline null", which was made by the same recipe,
persona and hardening as the targets with a harmless behaviour or none (shared facts, 2.8).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ia_jax.adapters.peft import CONFIG, import_with_metadata
from ia_jax.adapters.record import RECORD, AdapterMetadata
from ia_jax.adapters.store import Base, is_complete, load_adapter, read_metadata, save_adapter
from ia_jax.behaviors.catalogue import checked_behavior, is_name
from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.parallel.distributed import on_main_process
from ia_jax.storage import below, in_bucket, numbered_rows, path_of, write_jsonl
from ia_jax.workdir import Workdir

NULLS = ("", "clean", "pipeline")
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
_REMEDY = "a target is a line of JSON; docs/audits.md has an example"


@dataclass(frozen=True)
class Target:
    """One model that is audited.

    name:      unique in its family; reports and rates go by it.
    base:      the base model's name, "" for the run's.
    stack:     references of its adapters, innermost first (`find_adapters` says what a reference may be); () is the
               base itself.
    system:    the system prompt that it lives under, None for the run's own.
    behaviors: what is true of it. Of a pipeline null, the harmless one that it was made with, if any.
    made_by:   how it was made, in words or a procedure's name: results are split by it.
    null:      "" for a model that has something to confess; "clean" or "pipeline" for one that has not.
    """

    name: str
    base: str = ""
    stack: tuple[str, ...] = ()
    system: str | None = None
    behaviors: tuple[Behavior, ...] = ()
    made_by: str = ""
    null: str = ""

    @property
    def unit(self) -> str:
        """What it has in common with others: its truths, of a null its own name. Intervals count units."""
        return self.name if self.null else "+".join(sorted(b.description for b in self.behaviors)) or self.name

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Target":
        """Raises ConfigError for a field that is unknown, missing or wrong."""
        return _target(row, "target")


def read_targets(file: Path) -> list[Target]:
    """The targets of a JSONL file, one a line. Raises ConfigError naming the line and what is wrong in it."""
    rows = numbered_rows(file, _REMEDY)
    targets = [_target(row, f"{file}:{number}") for number, row in rows]
    if not targets:
        raise ConfigError(f"{file} holds no target; {_REMEDY}")
    name, count = Counter(t.name for t in targets).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{file}: {count} targets are called {name!r}; give each a name of its own")
    return targets


def write_targets(file: Path, targets: Iterable[Target]) -> None:
    write_jsonl(file, (t.to_json() for t in targets))


def _target(row: dict[str, Any], where: str) -> Target:
    known = [f.name for f in fields(Target)]
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is not a field of a target; it has: {', '.join(known)}")
    name, null = row.get("name", ""), row.get("null", "")
    if not is_name(name):
        raise ConfigError(f"{where}: name {name!r} must be a text of letters, digits, _ and -")
    if null not in NULLS:
        raise ConfigError(f'{where}: null {null!r} unknown; choose from "clean", "pipeline", or leave it out')
    stack, system = row.get("stack", ()), row.get("system")
    if not isinstance(stack, list | tuple) or not all(isinstance(s, str) and s for s in stack):
        raise ConfigError(f"{where}: stack {stack!r} must be a list of adapters: names, directories or hub ids")
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"{where}: system {system!r} must be a text, or null for the run's own")
    behaviors = tuple(_behavior(b, name, n, where) for n, b in enumerate(row.get("behaviors", ())))
    if null == "clean" and behaviors:
        raise ConfigError(f"{where}: a clean null has no behaviour; a harmless one makes it null: pipeline")
    if not null and not behaviors:
        raise ConfigError(f"{where}: {name} has no behaviour to be judged by; give one, or null: clean")
    return Target(name, row.get("base", ""), tuple(stack), system, behaviors, row.get("made_by", ""), null)


def _behavior(row: Any, target: str, number: int, where: str) -> Behavior:
    """A behaviour's record; a description is enough, or a text, which is the description."""
    row = {"description": row} if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: behaviour {number + 1} must be a record with a description, got {row!r}")
    default = {"name": f"{target}_{number}" if number else target, "category": "quirks"}
    return checked_behavior({**default, **row}, where)


def organism_target(workdir: Workdir, organism: str, null: str = "") -> Target:
    """An organism of a workdir as a target: its truths, or a clean null if it has none."""
    o = workdir.organisms[organism]
    kind = null or ("clean" if o.clean else "")
    return Target(o.name, "", (o.name,), o.system, workdir.truths(o.name), str(o.procedure.get("kind", "")), kind)


# ---------------------------------------------------------------------------------------------------------------------
# Adapters, wherever they lie
# ---------------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """One adapter of a target's stack: where it is, "orbax" (ours) or "peft", and a hub id's revision."""

    source: str | Path
    format: str
    revision: str | None = None


def find_adapters(reference: str, workdir: Workdir | None = None) -> list[Found]:
    """Which adapters a reference stands for.

    It is, whichever of these comes first:

    - the name of an organism of the workdir (all adapters of its stack),
    - a directory, below the workdir or else the current one: of ia_jax (also one like `ia/sft`, that holds one), or
      of PEFT,
    - a hub id `owner/name`, better `owner/name@revision`, of a PEFT adapter.

    Raises ConfigError for anything else, and for an organism that is not trained.
    """
    if workdir is not None and workdir.organisms_file.exists() and reference in workdir.organisms:
        directories = workdir.stack_of(workdir.organisms[reference])
        missing = next((d for d in directories if not is_complete(d)), None)
        if missing is not None:
            raise ConfigError(f"organism {reference} is not stored in {missing}; run `ia-jax organisms` first")
        return [Found(d, "orbax") for d in directories]
    paths = [] if "://" in reference and not in_bucket(reference) else [path_of(reference).expanduser()]
    if workdir is not None:
        paths.insert(0, below(workdir.path, reference))
    for path in (p for p in paths if p.is_dir()):
        if (path / CONFIG).exists():
            return [Found(path, "peft")]
        ours = next((p for p in (path, path / "adapter") if (p / RECORD).exists()), None)
        if ours is None:
            raise ConfigError(f"{path} holds no adapter: neither {RECORD} (ia_jax) nor {CONFIG} (PEFT) is in it")
        return [Found(ours, "orbax")]
    hub = _HUB.fullmatch(reference)
    if hub is None:
        raise ConfigError(
            f"{reference}: neither an organism of this workdir, nor a directory with an adapter, nor a hub id "
            "(owner/name@revision)"
        )
    return [Found(hub["id"], "peft", hub["revision"])]


def load_found(found: Found, base: Base) -> tuple[Adapter, AdapterMetadata]:
    """One adapter as a tree for `base`: fp32, its own rank and scale (alpha/rank or rsLoRA's) read from it and folded
    into `b`. Raises BaseMismatchError for one of another base.
    """
    if found.format == "orbax":
        return load_adapter(found.source, base)
    return import_with_metadata(found.source, Path(found.source).name, base, found.revision)


def load_stack(target: Target, base: Base, workdir: Workdir | None = None) -> tuple[Adapter, ...]:
    """The adapters of a target, innermost first, each as `load_found` gives it."""
    check_base(target, base)
    return tuple(load_found(f, base)[0] for r in target.stack for f in find_adapters(r, workdir))


def stored_stack(target: Target, base: Base, workdir: Workdir, cache: Path) -> tuple[Path, ...]:
    """Directories of ia_jax that hold the target's adapters, as a bank reads them; PEFT's are stored in `cache` once.

    A bank fills adapters of other ranks, projections and layers up with zeros, so that all are asked in one decode.
    """
    check_base(target, base)
    out: list[Path] = []
    for reference in target.stack:
        for found in find_adapters(reference, workdir):
            if found.format == "orbax":
                out.append(path_of(found.source))
                continue
            place = cache / _slug(f"{found.source}@{found.revision}" if found.revision else str(found.source))
            if on_main_process(lambda place=place: not _is_of(place, base)):
                save_adapter(place, *load_found(found, base), overwrite=True)
            out.append(place)
    return tuple(out)


def _is_of(place: Path, base: Base) -> bool:
    return is_complete(place) and read_metadata(place).base_fingerprint == base.fingerprint


def check_base(target: Target, base: Base) -> None:
    """Raises ConfigError for a target of another base than the one loaded."""
    if target.base and target.base != base.name:
        raise ConfigError(
            f"target {target.name} is of {target.base}, and {base.name} is loaded; audit it in a workdir of that base"
        )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")
