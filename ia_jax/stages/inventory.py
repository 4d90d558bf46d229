"""`ia-jax adapters`: what a workdir's store holds, whether it is sound, and taking something out of it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.record import Record
from ia_jax.adapters.store import are_complete, is_complete, read_record, remove_adapter, verify_adapter
from ia_jax.errors import CheckpointError, ConfigError
from ia_jax.models.lora import PROJECTIONS, layers_in_words
from ia_jax.progress import progress
from ia_jax.storage import directories as in_directory
from ia_jax.storage import each, in_bucket, remove_tree
from ia_jax.workdir import Workdir


def directories(workdir: Workdir) -> dict[str, Path]:
    """{name: directory} of all that is or should be stored: organisms in the order of organisms.jsonl, others, IAs."""
    found: dict[str, Path] = {}
    if workdir.organisms_file.exists():
        for name, organism in workdir.organisms.items():
            stack = workdir.stack_of(organism)
            found |= {f"{name}__{i}" if i else name: directory for i, directory in enumerate(stack)}
    others = (name for name in in_directory(workdir.organisms_dir) if "." not in name)
    found |= {n: workdir.organism_dir(n) for n in others if n not in found}
    trained = in_directory(workdir.path / "ia")
    return found | {f"ia/{name}": workdir.ia_dir(name) / "adapter" for name in trained}


def chosen(workdir: Workdir, names: Sequence[str]) -> dict[str, Path]:
    """Those of these names, or all without any. Raises ConfigError naming one that is not there."""
    known = directories(workdir)
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(f"no adapter {unknown[0]!r} in {workdir.path}; `ia-jax adapters ls` lists {len(known)}")
    return {n: known[n] for n in names} if names else known


def table(workdir: Workdir) -> str:
    """One line for every adapter: what it is, and what its behaviour check said."""
    head = ("NAME", "KIND", "RANK", "ALPHA", "TARGETS", "LAYERS", "STEP", "CHECK", "MIB", "CONTENT")
    rows: list[tuple[str, ...]] = [head]
    stored, size = 0, 0
    left_out = workdir.left_out
    paths = directories(workdir)
    complete = dict(zip(paths, are_complete(list(paths.values())), strict=True))
    wanted = [name for name in paths if name not in left_out and complete[name]]
    records = dict(zip(wanted, each(lambda n: _record(paths[n]), wanted, many=in_bucket(workdir.path)), strict=True))
    for name in paths:
        if name in left_out:
            rows.append((name, *["-"] * 6, "left out", "-", "-"))
        elif not complete[name]:
            rows.append((name, *["-"] * 6, "not stored", "-", "-"))
        elif (record := records[name]) is None:
            rows.append((name, *["-"] * 6, "damaged", "-", "-"))
        else:
            rows.append(_row(name, record))
            stored, size = stored + 1, size + _bytes(record)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"{stored} of {len(rows) - 1} adapters stored, {size / 2**20:.0f} MiB"])


def _record(path: Path) -> Record | None:
    """None where it is damaged."""
    try:
        return read_record(path)
    except CheckpointError:
        return None


def _row(name: str, record: Record) -> tuple[str, ...]:
    m = record.metadata
    targets = "all" if m.targets == PROJECTIONS else ",".join(m.targets)
    kind = (str(m.rank), f"{m.alpha:g}") if m.rank else ("-", "-")  # a vector has neither
    checked = m.checked or "-"
    checked += " (2nd try)" if m.check and m.check.get("retry") else ""
    size = f"{_bytes(record) / 2**20:.1f}"
    layers = layers_in_words(m.layers)
    return (name, m.kind, *kind, targets, layers, str(m.step), checked, size, m.content_hash[:12])


def _bytes(record: Record) -> int:
    return sum(f["bytes"] for f in record.files.values())


def show(workdir: Workdir, name: str) -> dict[str, Any]:
    """Everything that is written down about one adapter, without the arrays. Raises for one left out or not stored."""
    path = chosen(workdir, [name])[name]
    if name in workdir.left_out:
        raise ConfigError(f"organism {name} was left out: {workdir.left_out[name]}")
    record = read_record(path)
    leaves = {n: f"{x['dtype']}{x['shape']}" for n, x in record.leaves.items()}
    return {**record.metadata.to_json(), "directory": str(path), "bytes": _bytes(record), "leaves": leaves}


def as_text(shown: dict[str, Any]) -> str:
    """`show` for a person: one field a line, nested ones as JSON."""
    width = max(map(len, shown))
    values = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in shown.items()}
    return "\n".join(f"{k.ljust(width)}  {v}" for k, v in values.items())


def verify(workdir: Workdir, names: Sequence[str] = ()) -> dict[str, list[str]]:
    """{name: what is wrong with it}, for every adapter asked for that is stored, or was and is not whole any more.

    Every file and leaf is read and compared with its digest; an organism not trained yet is no problem, unless asked.
    """
    found: dict[str, list[str]] = {}
    wanted = {n: p for n, p in chosen(workdir, names).items() if names or (_is_there(p) and n not in workdir.left_out)}
    with progress(len(wanted), "verify") as bar:
        for name, path in wanted.items():
            found[name] = verify_adapter(path)
            bar.update(1)
    return found


def _is_there(path: Path) -> bool:
    """Whether something is stored, be it damaged or, after an overwrite that was killed, under another name."""
    return path.exists() or is_complete(path)


def report(found: dict[str, list[str]]) -> str:
    bad = {n: problems for n, problems in found.items() if problems}
    lines = [f"{n}: {p}" for n, problems in bad.items() for p in problems]
    return "\n".join([*lines, f"{len(found)} adapters read, {len(found) - len(bad)} sound, {len(bad)} damaged"])


def remove(workdir: Workdir, names: Iterable[str]) -> None:
    """Deletes these adapters, an IA with its training state (or that alone), so that their stages make them anew.

    Names are all checked before anything is deleted.
    """
    names = list(names)
    if not names:
        raise ConfigError("name the adapters to delete; `ia-jax adapters ls` lists them")
    paths = chosen(workdir, names)
    for name, path in paths.items():
        if not (_is_there(path) or (name.startswith("ia/") and (path.parent / "state").is_dir())):
            raise ConfigError(f"{path} is not stored, so there is nothing to delete")
    outside = [p for p in paths.values() if not p.resolve().is_relative_to(workdir.path.resolve())]
    if outside:
        raise ConfigError(f"{outside[0]} belongs to another workdir, which this one only uses; delete it there")
    for name, path in paths.items():
        if name.startswith("ia/"):
            # Its stage would restore the final state, and store the old IA once more. First, or a kill may leave it.
            remove_tree(path.parent / "state")
        remove_adapter(path)
