"""What organisms say without an IA, which is the same whatever IA is trained on them: asked for once."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.bank import Bank
from ia_jax.behaviors.organisms import Organism
from ia_jax.models.replies import Reply
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_organisms
from ia_jax.stages.context import Context
from ia_jax.storage import path_of, read_jsonl, write_jsonl


def ask_alone(
    context: Context,
    bank: Bank,
    organisms: Sequence[Organism | None],
    questions: Sequence[Sequence[str]],
    *,
    max_new_tokens: int,
    temperature: float,
    description: str,
    key: Any,
) -> list[list[Reply]]:
    """As `asking.ask_organisms` without an IA. Greedy replies are asked for once for all workdirs with
    the same `organisms.shared`: a reply goes by its organism's weights, its system message and its question.
    """
    how = {"max_new_tokens": max_new_tokens, "description": description, "key": key}
    place = context.config.organisms.shared
    if temperature or not place:
        return ask_organisms(context, bank, organisms, questions, (), temperature=temperature, **how)
    c = context.config
    settings = [c.model.name, c.model.revision, c.model.dtype, c.model.quantization, context.model.fingerprint]
    name = hashlib.sha256(json.dumps([settings, max_new_tokens]).encode()).hexdigest()[:16]
    file = path_of(place) / f"said_alone_{name}.jsonl"
    kept = on_main_process(lambda: _read(file))
    systems = [o.system if o is not None and o.system is not None else c.system for o in organisms]
    keys = [[(h, s, q) for q in own] for h, s, own in zip(bank.hashes, systems, questions, strict=True)]
    missing = [list(dict.fromkeys(k for k in own if k not in kept)) for own in keys]
    if any(missing):
        said = ask_organisms(
            context, bank, organisms, [[q for _, _, q in own] for own in missing], (), temperature=0.0, **how
        )
        kept |= {k: r for own, replies in zip(missing, said, strict=True) for k, r in zip(own, replies, strict=True)}
        on_main_process(lambda: _write(file, kept))
    return [[kept[k] for k in own] for own in keys]


Key = tuple[str, str | None, str]  # content hash of the organism, its system message, the question


def _read(file: Path) -> dict[Key, Reply]:
    rows = read_jsonl(file, "delete it: it is asked for again") if file.exists() else []
    return {(r["organism"], r["system"], r["question"]): Reply(r["text"], r["stopped"]) for r in rows}


def _write(file: Path, kept: dict[Key, Reply]) -> None:
    """All that is known, with what another process has written meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(
        file,
        (
            {"organism": o, "system": s, "question": q, "text": r.text, "stopped": r.stopped}
            for (o, s, q), r in (_read(file) | kept).items()
        ),
    )
