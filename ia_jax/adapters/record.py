"""What is written down about a stored adapter, and how its leaves and files are checked against it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from etils import epath

from ia_jax.errors import CheckpointError
from ia_jax.models.lora import RESIDUAL, Adapter, LoraConfig, layers_of, on_layers
from ia_jax.parallel.mesh import to_host
from ia_jax.storage import write_json

FORMAT = 2  # 1 had one behaviour where there is an organism and its behaviours now
RECORD = "adapter.json"
KINDS = ("organism", "ia")

Leaves = dict[str, np.ndarray]  # {"q.a": [L, in, r], "q.b": [L, r, out], "residual.v": [L, D], ...}
Table = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class AdapterMetadata:
    """What a later reader must know of an adapter.

    kind:     "organism" or "ia".
    base_*:   the model that it belongs to (`Model.name`, `Model.fingerprint`).
    alpha:    as trained; alpha/rank is already folded into `b`. A vector alone has rank and alpha 0.
    layers:   those that it sits on; None for all.
    organism: the organism's record (`behaviors.organisms.Organism`), None for an IA.
    behaviors: records of what is true of it.
    check:    outcome of the behaviour check, None before it ran; its `ok` is None until all replies are read
              (`store.update_metadata` adds that).
    content_hash, format, created: filled in by the store.
    """

    name: str
    kind: str
    base_name: str
    base_fingerprint: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    organism: dict[str, Any] | None = field(default=None, hash=False)
    behaviors: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    step: int = 0
    config_hash: str = ""
    check: dict[str, Any] | None = field(default=None, hash=False)
    content_hash: str = ""
    format: int = FORMAT
    created: str = ""
    layers: tuple[int, ...] | None = None

    @property
    def lora(self) -> LoraConfig:
        """The kind of adapter that it is."""
        return LoraConfig(self.rank, self.alpha, self.targets, layers=self.layers)

    @property
    def checked(self) -> str:
        """What became of the behaviour check, in words; "" without one."""
        if self.check is None:
            return ""
        return {True: "passed", False: "not passed", None: "not read yet"}[self.check.get("ok")]

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(row: dict[str, Any]) -> "AdapterMetadata":
        layers = row.get("layers")  # absent from older records
        known = {"targets": tuple(row["targets"]), "behaviors": tuple(row["behaviors"])}
        return AdapterMetadata(**{**row, **known, "layers": None if layers is None else tuple(layers)})


@dataclass(frozen=True)
class Record:
    """The contents of `adapter.json`.

    leaves: dtype, shape and sha256 of every leaf.
    files:  size and sha256 (None for remote directories) of every file, by its path below the directory.
    """

    metadata: AdapterMetadata
    leaves: Table
    files: Table


def write_record(path: epath.Path, record: Record) -> None:
    body = {"metadata": record.metadata.to_json(), "leaves": record.leaves, "files": record.files}
    write_json(path / RECORD, {**body, "seal": _hash_json(body)})


def read_record(path: epath.Path) -> Record:
    """`adapter.json` of a complete adapter; its seal covers every character that matters."""
    try:
        body = json.loads((path / RECORD).read_text())
        seal = body.pop("seal")
        if body["metadata"]["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: {RECORD} has format {body['metadata']['format']}; upgrade ia_jax to read it"
            )
        if body["metadata"]["format"] < FORMAT:
            raise CheckpointError(
                f"{path}: {RECORD} has format {body['metadata']['format']}, of an older ia_jax; make the adapter again"
            )
        if seal != _hash_json(body):
            raise ValueError("its seal does not fit")
        return Record(AdapterMetadata.from_json(body["metadata"]), body["leaves"], body["files"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: {RECORD} was altered or truncated ({one_line(error)}); restore the directory from a copy, or "
            "delete it and run its stage again"
        ) from error


def host_leaves(adapter: Mapping[str, Mapping[str, Any]]) -> Leaves:
    """The adapter's leaves by name, as numpy and whole on every process."""
    return {f"{target}.{factor}": to_host(x) for target, ab in adapter.items() for factor, x in ab.items()}


def nest(leaves: Leaves, layers: tuple[int, ...] | None = None) -> Adapter:
    """The inverse of `host_leaves`, of an adapter on these layers (None: all)."""
    tree: dict[str, dict[str, Any]] = {}
    for name, x in leaves.items():
        target, factor = name.split(".")
        tree.setdefault(target, {})[factor] = x
    return on_layers(tree, layers)


def describe_leaves(leaves: Leaves) -> Table:
    return {
        name: {"dtype": str(x.dtype), "shape": list(x.shape), "sha256": _sha256(np.ascontiguousarray(x).view(np.uint8))}
        for name, x in sorted(leaves.items())
    }


def describe_files(path: epath.Path) -> Table:
    hashed = is_local(path)  # a remote file would have to be fetched again
    return {
        str(f.relative_to(path)): {"bytes": f.stat().length, "sha256": _sha256(f.read_bytes()) if hashed else None}
        for f in _files(path)
    }


def content_hash_of(described: Table, layers: tuple[int, ...] | None) -> str:
    return _hash_json(described if layers is None else {"layers": layers, "leaves": described})


def content_hash(adapter: Adapter) -> str:
    """sha256 over the adapter's leaf names, shapes, dtypes and bytes, and its layers where these are not all."""
    return content_hash_of(describe_leaves(host_leaves(adapter)), layers_of(adapter))


def first_nonfinite(leaves: Leaves) -> str | None:
    """Where the first NaN or infinity is, in words, or None."""
    for name, x in leaves.items():
        bad = ~np.isfinite(x)
        if bad.any():
            where = np.unravel_index(int(bad.argmax()), x.shape)
            return f"leaf {name} is not finite at {[int(i) for i in where]} ({int(bad.sum())} of {x.size} values)"
    return None


def mismatch(metadata: AdapterMetadata, leaves: Leaves) -> str | None:
    """How the leaves contradict the metadata's rank, targets and layers, in words, or None."""
    names = {f"{t}.{n}" for t in metadata.targets for n in ("v" if t == RESIDUAL else "ab")}
    if names != leaves.keys():
        odd = min(names ^ leaves.keys())
        return f"leaf {odd} is missing" if odd in names else f"leaf {odd} is not among targets {metadata.targets}"
    layers = {x.shape[0] for x in leaves.values()}
    for name, x in leaves.items():
        factor = name[-1]
        if x.ndim != (2 if factor == "v" else 3):
            axes = "[layers, hidden]" if factor == "v" else "[layers, in, rank]"
            return f"leaf {name} has shape {x.shape}, not {axes} (organisms of a stack are saved one by one)"
        if len(layers) != 1 or (factor != "v" and x.shape[2 if factor == "a" else 1] != metadata.rank):
            return f"leaf {name} has shape {x.shape}, which does not fit rank {metadata.rank} or the other leaves"
        if metadata.layers is not None and len(metadata.layers) != x.shape[0]:
            return f"leaf {name} has {x.shape[0]} layers, not the {len(metadata.layers)} of {metadata.layers}"
    return None


def leaf_problems(record: Record, leaves: Leaves) -> list[str]:
    """What is wrong with leaves that were read back; a leaf not finite is named before its digest is."""
    found = mismatch(record.metadata, leaves) or first_nonfinite(leaves)
    problems = [found] if found else []
    described = describe_leaves(leaves)
    for name in sorted(record.leaves.keys() | described.keys()):
        if record.leaves.get(name) != described.get(name):
            problems.append(f"leaf {name} is not what was saved")
    if not problems and content_hash_of(described, record.metadata.layers) != record.metadata.content_hash:
        problems.append("the content hash is not that of the leaves")
    return problems


def file_problems(path: epath.Path, files: Table) -> list[str]:
    """Files that are missing, of another length, or (in local directories) of other content than written."""
    problems = []
    for name, want in files.items():
        file = path / name
        if not file.exists():
            problems.append(f"file {name} is missing")
        elif file.stat().length != want["bytes"]:
            problems.append(f"file {name} has {file.stat().length} bytes instead of {want['bytes']}")
        elif want["sha256"] is not None and is_local(path) and _sha256(file.read_bytes()) != want["sha256"]:
            problems.append(f"file {name} has other bytes than were written")
    return problems


def is_local(path: epath.Path) -> bool:
    return "://" not in str(path)


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error, without the specification that tensorstore appends to its own."""
    lines = str(error).strip().splitlines()
    text = lines[0].split(" [")[0] if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"  # the end says why


def _files(path: epath.Path) -> Iterator[epath.Path]:
    for p in sorted(path.iterdir()):
        if p.is_dir():
            yield from _files(p)
        elif not p.name.startswith(RECORD):
            yield p


def _hash_json(value: Any) -> str:
    return _sha256(json.dumps(value, sort_keys=True).encode())


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
