"""What organisms say without an IA, which is the same whatever IA is trained on them: asked for once."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ia_jax.adapters.bank import Bank
from ia_jax.behaviors.organisms import Organism
from ia_jax.data.transcripts import conversation
from ia_jax.models.chat import encode_prompt
from ia_jax.models.replies import Reply
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_organisms
from ia_jax.stages.context import Context
from ia_jax.storage import path_of, read_jsonl, write_jsonl

Key = tuple[str, str]  # content hash of the organism, hash of the prompt's tokens


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
    """As `asking.ask_organisms` without an IA. Greedy replies are asked for once for all workdirs with the same
    `organisms.shared`: a reply goes by its organism's weights and its prompt.
    """
    how = {"max_new_tokens": max_new_tokens, "description": description, "key": key}
    place = context.config.organisms.shared
    if temperature or not place:
        return ask_organisms(context, bank, organisms, questions, (), temperature=temperature, **how)
    name = _name(context, max_new_tokens)
    kept = {(r["organism"], r["prompt"]): Reply(r["text"], r["stopped"]) for r in on_main_process(lambda: _read(name))}
    run = context.config.system
    systems = [o.system if o is not None and o.system is not None else run for o in organisms]
    keys = [
        [(h, _prompt(context, q, s)) for q in own] for h, s, own in zip(bank.hashes, systems, questions, strict=True)
    ]
    wanted = [
        {k: q for k, q in zip(ks, own, strict=True) if k not in kept} for ks, own in zip(keys, questions, strict=True)
    ]
    if any(wanted):
        said = ask_organisms(
            context, bank, organisms, [list(own.values()) for own in wanted], (), temperature=0.0, **how
        )
        new = {k: r for own, replies in zip(wanted, said, strict=True) for k, r in zip(own, replies, strict=True)}
        kept |= new
        on_main_process(lambda: _write(context, name, new))
    return [[kept[k] for k in own] for own in keys]


def _name(context: Context, max_new_tokens: int) -> str:
    """The files' name without their end, in the directory for what is shared."""
    m = context.config.model
    settings = [m.name, m.revision, m.dtype, m.quantization, context.model.fingerprint, max_new_tokens]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return str(path_of(context.config.organisms.shared) / f"said_alone_{digest}")


def _prompt(context: Context, question: str, system: str | None) -> str:
    tokens = encode_prompt(context.model.tokenizer, conversation([question], system))
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]


def _read(name: str) -> list[dict[str, Any]]:
    """Of all workdirs."""
    place = path_of(name)
    files = sorted(place.parent.glob(f"{place.name}_*.jsonl"))
    return [row for file in files for row in read_jsonl(file, "delete it: it is asked for again")]


def _write(context: Context, name: str, new: dict[Key, Reply]) -> None:
    """Each workdir, which is locked while it is worked in, has a file of its own."""
    workdir = hashlib.sha256(str(context.workdir.path.resolve()).encode()).hexdigest()[:8]
    file = path_of(f"{name}_{workdir}.jsonl")
    rows = read_jsonl(file, "delete it") if file.exists() else []
    rows += [{"organism": o, "prompt": p, "text": r.text, "stopped": r.stopped} for (o, p), r in new.items()]
    write_jsonl(file, rows)
