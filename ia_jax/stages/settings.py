"""What each stage was made with: its own settings and its inputs, written down in `settings/`.

A stage depends on a few settings only. So a finished run can be evaluated by another judge, or have another IA trained
on its organisms, by giving the new thing a name; and what is there is never passed off as made with other settings:
where they differ, the stage says which one, and what to do about it.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ia_jax.adapters.store import are_complete, is_complete, read_metadata
from ia_jax.behaviors.splits import HELD
from ia_jax.config import RunConfig, flat, with_dtype
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.number_type import AUTO, Choice, choose_here
from ia_jax.storage import path_of, read_json, write_json
from ia_jax.workdir import Workdir

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "ml-collections")

# The settings that a stage's outcome depends on: fields, or groups of fields.
DEPENDS: dict[str, tuple[str, ...]] = {
    "transcripts": ("seed", "system", "model", "behaviors", "teacher", "organisms.source", "organisms.procedures"),
    "organisms": ("seed", "system", "model", "organisms", "teacher"),
    "sft": ("seed", "system", "questions", "model", "sft", "organisms.keep_failed"),
    "preferences": ("seed", "system", "questions", "model", "preferences", "judge", "organisms.keep_failed"),
    "dpo": ("seed", "system", "model", "dpo", "sft.lora"),
    "eval": ("seed", "system", "questions", "model", "eval", "judge", "organisms.keep_failed"),
}
# Of those, what says how or under which name it is made and not what. It may change while a run goes on.
FREE = (
    *("sft.name", "preferences.name", "dpo.name", "eval.name", "model.remat", "model.cache", "sft.shuffled_null"),
    *("organisms.shared", "organisms.checkpoint_every", "sft.checkpoint_every", "dpo.checkpoint_every"),
    *("organisms.accumulate", "sft.accumulate", "dpo.accumulate", "organisms.bank_gib", "organisms.cache_gib"),
)
# Settings that came later, and what every run before them was made with.
LATER = {
    "sft.contrast": 0.0,
    "sft.contrast_beta": 0.1,
    "sft.answers_per_question": 1,
    "dpo.kind": "sigmoid",
    "preferences.verbatim": False,
    "model.quantization": "",
    "teacher.amount": 1,
    "behaviors.unseen": "",
    "behaviors.copies": 1,
    "behaviors.dpo_copies": 0,
    "behaviors.remade": 0,
    "behaviors.heldout_frames": False,
}
_NOT_OF_TRAINING = ("organisms.keep_failed", "organisms.source")  # what later stages make of organisms


def stage_settings(config: RunConfig, stage: str) -> dict[str, Any]:
    """{"sft.optimizer.lr": 0.001, …}: the settings that decide what a stage makes."""
    left_out = FREE + (_NOT_OF_TRAINING if stage == "organisms" else ())
    return {
        key: value
        for key, value in json.loads(json.dumps(flat(config))).items()
        if key not in left_out and any(key == part or key.startswith(f"{part}.") for part in DEPENDS[stage])
    }


def stage_hash(config: RunConfig, stage: str) -> str:
    """Short hash of `stage_settings`; adapters carry it. So "auto" has to be what it comes to by now."""
    if config.model.dtype == AUTO:
        raise ValueError("config.model.dtype is auto: `start_workdir` has to decide it before a stage is run")
    return _digest(stage_settings(config, stage))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def name_of(config: RunConfig, stage: str) -> str:
    """The name under which a stage writes; "" where it has none."""
    return {
        "sft": config.sft.name,
        "preferences": config.preferences.name,
        "dpo": config.dpo.name,
        "eval": config.eval.name,
    }.get(stage, "")


def with_name(config: RunConfig, stage: str, name: str) -> RunConfig:
    """The config with a stage's name set. Raises ConfigError for a stage that has none, or the other IA's name."""
    if stage not in ("sft", "preferences", "dpo", "eval"):
        raise ConfigError(f"--name={name}: `ia-jax {stage}` writes to one place only; leave --name out")
    if name == {"sft": config.dpo.name, "dpo": config.sft.name}.get(stage):
        raise ConfigError(f"--name={name} is what the other IA is called; choose another name")
    return dataclasses.replace(config, **{stage: dataclasses.replace(getattr(config, stage), name=name)})


def place_of(workdir: Workdir, config: RunConfig, stage: str) -> Path:
    """What a stage writes, as people name it in messages."""
    return {
        "transcripts": workdir.organisms_file,
        "organisms": workdir.organisms_dir,
        "sft": workdir.ia_dir(config.sft.name),
        "preferences": workdir.preferences_file(config.preferences.name),
        "dpo": workdir.ia_dir(config.dpo.name),
        "eval": workdir.metrics_file(config.eval.name),
    }[stage]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs: what a stage reads, by its content
# ---------------------------------------------------------------------------------------------------------------------


def inputs_of(workdir: Workdir, config: RunConfig, stage: str) -> dict[str, str]:
    """{what it reads: hash of its content}. The model itself is named by the settings and checked by every adapter."""
    splits = {
        "sft": config.sft.splits,
        "preferences": ("dpo",),
        "dpo": ("dpo",),
        "eval": (*HELD, *config.sft.splits),
    }.get(stage, ())
    out = {"organisms": _organisms(workdir, splits)} if splits else {}
    if stage in ("preferences", "dpo", "eval"):
        out[f"ia/{config.sft.name}"] = _adapter(workdir.ia_dir(config.sft.name) / "adapter")
    if stage == "dpo":
        file = workdir.preferences_file(config.preferences.name)
        out[f"preferences/{file.name}"] = _digest(file.read_text()) if file.exists() else "-"
    if stage == "eval" and is_complete(workdir.ia_dir(config.dpo.name) / "adapter"):
        out[f"ia/{config.dpo.name}"] = _adapter(workdir.ia_dir(config.dpo.name) / "adapter")
    shuffled = workdir.ia_dir(config.sft.shuffled_name) / "adapter"
    if stage == "eval" and is_complete(shuffled):
        out[f"ia/{config.sft.shuffled_name}"] = _adapter(shuffled)
    return out


def _adapter(directory: Path) -> str:
    return read_metadata(directory).content_hash[:16] if is_complete(directory) else "-"


def _organisms(workdir: Workdir, splits: Iterable[str]) -> str:
    """Of the organisms of these splits: their adapters and what is true of them."""
    names = workdir.named(*splits)
    return _digest(
        [
            [n, [_adapter(d) for d in workdir.stack_of(workdir.organisms[n])], [b.to_json() for b in workdir.truths(n)]]
            for n in sorted(names)
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------------------


def record_file(workdir: Workdir, config: RunConfig, stage: str) -> Path:
    name = name_of(config, stage)
    kind = "ia" if stage in ("sft", "dpo") else stage
    return workdir.path / "settings" / (f"{kind}.{name}.json" if name else f"{kind}.json")


def read_stage_record(workdir: Workdir, config: RunConfig, stage: str) -> dict[str, Any] | None:
    """What a stage was made with: {"stage", "hash", "settings", "inputs", "versions", "git_commit"}; None if nothing is
    there.
    """
    file = record_file(workdir, config, stage)
    if not file.exists():
        return None
    remedy = "delete it, and what the stage made, to make it again"
    record = read_json(file, remedy)
    if not {"stage", "settings", "inputs"} <= record.keys():
        raise ConfigError(f"{file} is not a stage's record; {remedy}")
    return record


def differences(workdir: Workdir, config: RunConfig, stage: str) -> str | None:
    """How what is there differs from what this config would make, in words; None where it is the same or nothing."""
    record = read_stage_record(workdir, config, stage)
    if record is None:
        return None
    if record["stage"] != stage:
        return f"it was made by `ia-jax {record['stage']}`"
    wanted = stage_settings(config, stage)
    for key in sorted(wanted.keys() | record["settings"].keys()):
        old, new = (x.get(key, LATER.get(key, "not there")) for x in (record["settings"], wanted))
        if old != new:
            return f"config.{key} was {old!r} and is now {new!r}"
    for key, value in inputs_of(workdir, config, stage).items():
        if stage == "eval" and key == f"ia/{config.dpo.name}" and not _has_second_ia(record["inputs"]):
            continue  # made before DPO: it lacks that IA, and is not another evaluation
        if record["inputs"].get(key) != value:
            return "it was made from " + (
                "other organisms than there are now" if key == "organisms" else f"another {key} than there is now"
            )
    return None


def _has_second_ia(inputs: Mapping[str, str]) -> bool:
    return sum(name.startswith("ia/") for name in inputs) > 1


def has_begun(workdir: Workdir, config: RunConfig, stage: str) -> bool:
    """Whether a stage has made anything that depends on its settings. Until then a mended one may take its place."""
    if stage == "organisms":
        trained = (o for o in workdir.organisms.values() if not o.imported)
        stored = (d for o in trained for d in workdir.stack_of(o) if d.is_relative_to(workdir.organisms_dir))
        return (workdir.path / "organisms_state").is_dir() or any(are_complete(list(stored)))
    place = place_of(workdir, config, stage)
    if stage in ("sft", "dpo"):
        return is_complete(place / "adapter") or ((place / "state").is_dir() and any((place / "state").iterdir()))
    return place.exists()


def check_same(workdir: Workdir, config: RunConfig, stage: str) -> None:
    """Raises ConfigError if what a stage has made was made with other settings, or from other inputs."""
    if not has_begun(workdir, config, stage):
        return
    changed = differences(workdir, config, stage)
    if changed is None:
        return
    where = place_of(workdir, config, stage)
    if stage in ("transcripts", "organisms"):
        remedy = "use another --workdir or the old config"
        if stage == "organisms":
            remedy += ", or `ia-jax adapters rm` the organisms"
    else:
        remedy = f"give the new one a name (--name=NAME), or remove {where} to make it again"
    raise ConfigError(f"{where} belongs to a run with other settings: {changed}; {remedy}")


def write_stage_record(workdir: Workdir, config: RunConfig, stage: str) -> None:
    """Notes what a stage that begins, or goes on, is made with."""
    file = record_file(workdir, config, stage)
    body = {
        "stage": stage,
        "hash": stage_hash(config, stage),
        "settings": stage_settings(config, stage),
        "inputs": inputs_of(workdir, config, stage),
    }
    record = read_stage_record(workdir, config, stage)
    if record is not None and all(record.get(k) == v for k, v in body.items()):
        return
    body |= {"versions": {p: _version(p) for p in PACKAGES}, "git_commit": _git_commit()}
    write_json(file, body)


def start_workdir(directory: str | Path, config: RunConfig, choose: Callable[[], Choice] = choose_here) -> Workdir:
    """Creates the directory, or goes on in it with the config that it was started with.

    Until a stage has begun, a mended config takes the place of the old one; after that, only what says how and not what
    is made: mesh, claude, model.remat and model.cache. The caller sees to it that nobody else works there. Readers need
    no lock: they find the old config or the new one. Raises ConfigError where the workdir belongs to another base
    model, or was made by an older version.

    The workdir's config never says model.dtype="auto": `choose` decides it, once, and config.json says why ("dtype").
    Elsewhere the workdir goes on in that type, and a line says so where that machine would choose another.
    """
    workdir = Workdir(path_of(directory))
    file = workdir.config_file
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        workdir.check_layout()
        begun = file.exists() and has_begun(workdir, config, "transcripts")  # the first one
        config, note = _decided(workdir, config, begun, choose)
        if begun:
            stored = workdir.config
            for key in ("name", "revision", "quantization"):
                old, new = (getattr(c.model, key) for c in (stored, config))
                if old != new:
                    raise ConfigError(
                        f"{workdir.path} belongs to a run with other settings: config.model.{key} was {old!r} and is "
                        f"now {new!r}; use another --workdir or the old config"
                    )
            model = dataclasses.replace(stored.model, remat=config.model.remat, cache=config.model.cache)
            kept = dataclasses.replace(stored, mesh=config.mesh, claude=config.claude, model=model)
            if kept != stored:
                write_json(file, {**json.loads(file.read_text()), "config": dataclasses.asdict(kept)})
            return Workdir(workdir.path)
        body = {
            "config": dataclasses.asdict(config),
            **({"dtype": note} if note else {}),
            "versions": {p: _version(p) for p in PACKAGES},
            "git_commit": _git_commit(),
        }
        write_json(file, body)
    except OSError as error:
        raise IAError(
            f"cannot write to the workdir {workdir.path}: {error.strerror}; choose another --workdir"
        ) from None
    return Workdir(workdir.path)


def _decided(
    workdir: Workdir, config: RunConfig, begun: bool, choose: Callable[[], Choice]
) -> tuple[RunConfig, dict[str, str] | None]:
    """The config with what "auto" comes to in this workdir, and what config.json notes of it; None where it was given.

    Decided before, it stays; so does the dtype of a run that has begun in one that was given.
    """
    note, asked = _noted_dtype(workdir), config.model.dtype
    if asked != AUTO and (note is None or asked != note["chosen"]):
        return config, None
    kept = note["chosen"] if note else workdir.config.model.dtype if begun else None
    choice = choose()
    if kept is None:
        return with_dtype(config, choice.dtype), {"asked": AUTO, "chosen": choice.dtype, "why": choice.why}
    if kept != choice.dtype:
        since = f" (there {note['why']})" if note else ""
        print(
            f"{workdir.path} goes on in {kept}, in which it was begun{since}; a new one would be in {choice.dtype} "
            f"here: {choice.why}",
            flush=True,
        )
    return with_dtype(config, kept), note


def _noted_dtype(workdir: Workdir) -> dict[str, str] | None:
    """What config.json says of how the dtype was decided; None where it says nothing, or is not there or damaged."""
    try:
        note = json.loads(workdir.config_file.read_text())["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if isinstance(note, dict) and {"chosen", "why"} <= note.keys() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        root = Path(__file__).parent
        out = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None
