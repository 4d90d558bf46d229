"""`ia-jax identify`: does an organism's own description stand out among others', by log-probability alone?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.audits.evidence.tables import arm_logps, claim_examples
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.behaviors.splits import HELD
from ia_jax.errors import ConfigError
from ia_jax.evals.identification import identified, scores
from ia_jax.models.chat import ChatExample
from ia_jax.models.lora import Adapter
from ia_jax.parallel.distributed import on_main_process
from ia_jax.progress import progress
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.selection import present
from ia_jax.storage import read_json, write_json

NONE = "none"  # without an IA: what the organism tells by itself
NAMES = {
    "among_behaviors": "among behaviours",
    "within_category": "within its category",
    "among_models": "among models",
    "first": "first of all",
}


def run(context: Context, ias: Sequence[str], splits: Sequence[str] = HELD, wordings: int = 2) -> dict[str, Any]:
    """Writes `identification.json`: {IA: {split: {"figures", "models", "behaviors", "scores"}}}; others' parts stay.

    Each split by itself: its organisms are held against each other, the clean ones that are kept from training, and the
    clean base. `wordings` of each behaviour are those kept from training, where it has so many. A split of fewer than
    two behaviours is left out; raises ConfigError where none is left.
    """
    workdir = context.workdir
    members = {split: _members(context, split) for split in splits}
    members = {split: own for split, own in members.items() if len(_behaviors(context, own)) > 1}
    if not members:
        raise ConfigError(f"--split={','.join(splits)}: no split holds organisms of two behaviours; it takes that many")
    file = workdir.path / "identification.json"
    found: dict[str, Any] = on_main_process(lambda: read_json(file, "delete it") if file.exists() else {})
    for split, organisms in members.items():
        behaviors = _behaviors(context, organisms)
        texts, owner = _descriptions(behaviors, wordings)
        examples = claim_examples(context.model, EVAL_QUESTIONS[:1], texts, context.config.system)
        bank = open_organisms(context, organisms, clean=1)
        models = [*(o.name for o in organisms), CLEAN]
        number = {b.name: i for i, b in enumerate(behaviors)}
        own = {o.name: [number[b.name] for b in workdir.truths(o.name)] for o in organisms if not o.clean}
        for name in ias:
            ia = None if name == NONE else context.shard_ia(workdir.ia(name, context.model))
            description = f"descriptions of {split} under {name}"
            table = scores(description_logps(context, bank, ia, examples, description), owner)
            found.setdefault(name, {})[split] = {
                "figures": identified(table, own, models, [b.category for b in behaviors]),
                "models": models,
                "behaviors": [b.name for b in behaviors],
                "scores": np.round(table, 4).tolist(),
            }
        print(in_words({name: found[name][split]["figures"] for name in ias}, split, len(behaviors)), flush=True)
    on_main_process(lambda: write_json(file, found))
    return found


def _members(context: Context, split: str) -> list[Organism]:
    """A split's organisms and clean ones that no training reads: its own, else the held-out ones."""
    own = [o for o in present(context, split) if not o.clean]
    clean = [o for o in present(context, split) if o.clean] or [o for o in present(context, "heldout") if o.clean]
    return own + clean


def _behaviors(context: Context, organisms: Sequence[Organism]) -> list[Behavior]:
    return list({b.name: b for o in organisms for b in context.workdir.truths(o.name)}.values())


def _descriptions(behaviors: Sequence[Behavior], wordings: int) -> tuple[list[str], np.ndarray]:
    """Texts and the number of the behaviour of each: those that no training reads, where there are any."""
    texts, owner = [], []
    for i, b in enumerate(behaviors):
        own = (b.heldout_wordings or b.wordings or (b.description,))[:wordings]
        texts += own
        owner += [i] * len(own)
    return texts, np.array(owner)


def description_logps(
    context: Context, bank: Bank, ia: Adapter | None, examples: Sequence[ChatExample], description: str
) -> np.ndarray:
    """[M, D] mean log-probability of a token of each text, under every model of the bank (its clean ones last)."""
    out = np.empty((len(bank), len(examples)))
    batches = bank.arrange(list(range(len(bank))), context.config.organisms.parallel)
    with progress(len(batches), description) as bar:
        for batch in batches:
            stack = (bank.take(batch),) if ia is None else (bank.take(batch), ia)
            found = arm_logps(context.model, context.model.params, stack, len(batch), examples, context.mesh)
            for place, i in enumerate(batch):
                if i is not None:
                    out[i] = found[place]
            bar.update()
    return out


def in_words(figures: dict[str, Any], split: str, behaviors: int) -> str:
    """A line for each IA."""
    chance = f"chance 50 %; first of {behaviors}: {100 / behaviors:.0f} %"
    lines = [f"{split}: own description likelier than others ({chance}):"]
    for name, cells in figures.items():
        shown = ", ".join(f"{label} {_share(cells[key])}" for key, label in NAMES.items())
        lines.append(f"  {name}: {shown}")
    return "\n".join(lines)


def _share(cell: dict[str, Any]) -> str:
    if cell["rate"] is None:
        return "-"
    low, high = cell["ci95"]
    return f"{100 * cell['rate']:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
