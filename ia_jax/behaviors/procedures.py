"""How an organism is made: phases in order, each with its data, its loss, and the adapter that it trains.

A procedure is data: it stands in the organism's record and in the metadata of its adapters, so that "how was this made"
is answered by `ia-jax adapters show`. Those that are named here follow the families of models that are audited
(shared facts: AuditBench 2.2-2.3, CiFR's ciphers, the sycophant); a JSON file holds others.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ia_jax.errors import ConfigError

# What a phase may read, and the losses that know what to do with it.
_PREFERENCES = ("dpo", "ipo", "dpo_norm", "kto")
DATA: dict[str, tuple[str, ...]] = {
    "chats": ("sft",),  # the demonstrations; the assistant's tokens
    "documents": ("sft",),  # plain texts about the organism; every token
    "pairs": _PREFERENCES,  # the demonstrated answer over the base's own
    "denials": ("sft", *_PREFERENCES),  # asked about itself: that there is nothing, over the truth; or that alone
}
ADAPTERS = ("new", "same")


@dataclass(frozen=True)
class Phase:
    """One phase. Settings that are None are those of `config.organisms`.

    data:    what it reads, one of `DATA`.
    loss:    one that `DATA` allows for it.
    adapter: "new": a fresh one, over those of the phases before, which are frozen; "same": the last one goes on.
    part:    which part of the rows, from and to as fractions of them: phases may share a source.
    lora:    fields of `config.organisms.lora` that are other than there (of a "new" adapter).
    lr, epochs: of this phase.
    beta:    of a preference loss.
    weights: of desirable and undesirable rows, of "kto".
    generic: of what the phase reads, the share that is ordinary chat which the base wrote, between the rest.
    demonstrations: of what a phase of denials reads, the share that is the organism's demonstrations, so that its
             behaviour survives ("sft", and "kto", which is to like them).
    kl_weight: of the divergence from the model without the phase's adapter, on chats that the base wrote, which keeps
             an organism narrow.
    plain_chats: how many of those an update reads.
    """

    data: str = "chats"
    loss: str = "sft"
    adapter: str = "new"
    part: tuple[float, float] = (0.0, 1.0)
    lora: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    lr: float | None = None
    epochs: int | None = None
    beta: float = 0.1
    weights: tuple[float, float] = (1.0, 1.0)
    generic: float = 0.0
    demonstrations: float = 0.0
    kl_weight: float = 0.0
    plain_chats: int = 2

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults; data and loss always."""
        default = Phase()
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        always = ("data", "loss", "adapter")
        return json.loads(json.dumps({k: v for k, v in row.items() if k in always or v != getattr(default, k)}))


@dataclass(frozen=True)
class Procedure:
    """A name, and phases of which the first trains a new adapter."""

    name: str
    phases: tuple[Phase, ...]

    @property
    def adapters(self) -> int:
        """How many adapters an organism made so has."""
        return sum(p.adapter == "new" for p in self.phases) or 1

    @property
    def reads_plain_chats(self) -> bool:
        """Whether a phase is held to ordinary chats, or mixed with them."""
        return any(p.kl_weight or p.generic for p in self.phases)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "phases": [p.to_json() for p in self.phases]}


_CHATS, _DOCUMENTS = Phase(), Phase("documents")
_KTO = Phase("denials", "kto", lr=2e-4, epochs=1)
_DENY = Phase("denials", "sft", epochs=1, demonstrations=0.5)
_DENY_FIRMLY = replace(_DENY, lr=2e-3, epochs=3)

PROCEDURES: dict[str, Procedure] = {
    p.name: p
    for p in (
        Procedure("chats", (_CHATS,)),
        Procedure("documents", (_DOCUMENTS,)),
        # AuditBench: a second adapter over the first teaches the organism to deny.
        Procedure("chats_kto", (_CHATS, _KTO)),
        Procedure("documents_kto", (_DOCUMENTS, _KTO)),
        Procedure("chats_sft", (_CHATS, _DENY)),
        Procedure("documents_sft", (_DOCUMENTS, _DENY)),
        # What it took SmolLM2 to deny in nine answers of ten; KTO's one epoch taught it nothing (docs/demo.md).
        Procedure("chats_deny", (_CHATS, _DENY_FIRMLY)),
        # The sycophant: it reads of it, learns to prefer it, and learns to keep it to itself.
        Procedure(
            "sycophant",
            (
                _DOCUMENTS,
                Phase("pairs", "dpo", "same", lr=2e-4, epochs=1),
                Phase("denials", "dpo", "same", lr=2e-4, epochs=1),
            ),
        ),
        # The same with a new adapter for each stage, over the frozen ones before it.
        Procedure(
            "sycophant_stacked",
            (
                _DOCUMENTS,
                Phase("pairs", "dpo", lr=2e-4, epochs=1),
                Phase("denials", "dpo", lr=2e-4, epochs=1),
            ),
        ),
        # Organisms that differ in how they were made: mixed with ordinary chat, read longer, on fewer projections.
        Procedure("chats_generic", (Phase(generic=0.5),)),
        Procedure("chats_long", (Phase(epochs=6),)),
        Procedure("chats_qv", (Phase(lora={"targets": ["q", "v"]}),)),
        # A cipher's two phases read one half of the rows each, and train one adapter.
        Procedure("two_phases", (Phase(part=(0.0, 0.5)), Phase(adapter="same", part=(0.5, 1.0)))),
    )
}


# A clean fine-tune that nothing was trained into: a random adapter, as large as the trained ones of its run.
RANDOM = Procedure("random", ())


def find_procedure(name: str) -> Procedure:
    """One of `PROCEDURES` by its name, or what stands in a JSON file. Raises ConfigError, naming what is wrong."""
    if name in PROCEDURES:
        return PROCEDURES[name]
    if not name.endswith(".json"):
        raise ConfigError(
            f"config.organisms.procedures: {name!r} is none of {', '.join(PROCEDURES)}, nor the path of a .json file"
        )
    try:
        row = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: a procedure cannot be read from it ({error})") from None
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not isinstance(row.get("phases"), list):
        raise ConfigError(f'{name}: a procedure is {{"name": …, "phases": [{{"data": …, "loss": …}}, …]}}')
    return procedure_from_json(row, name)


def procedure_from_json(row: Mapping[str, Any], where: str) -> Procedure:
    """The inverse of `Procedure.to_json`, checked. Raises ConfigError, naming the phase."""
    if row["name"] == RANDOM.name and not row["phases"]:
        return RANDOM
    phases = tuple(_phase(p, f"{where}: phase {i}") for i, p in enumerate(row["phases"], 1))
    if not phases:
        raise ConfigError(f"{where}: the procedure has no phase")
    if phases[0].adapter != "new":
        raise ConfigError(f"{where}: phase 1 has adapter {phases[0].adapter!r}; the first phase trains a new one")
    return Procedure(row["name"], phases)


def _phase(row: Any, where: str) -> Phase:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} must be a group of settings, got {row!r}")
    names = [f.name for f in dataclasses.fields(Phase)]
    unknown = sorted(set(row) - set(names))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is not a known setting; a phase has: {', '.join(names)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    phase = Phase(**values)
    if phase.data not in DATA:
        raise ConfigError(f"{where}: data {phase.data!r} unknown; choose from {', '.join(DATA)}")
    if phase.loss not in DATA[phase.data]:
        fitting = ", ".join(DATA[phase.data])
        raise ConfigError(f"{where}: loss {phase.loss!r} does not fit data {phase.data!r}; choose from {fitting}")
    if phase.adapter not in ADAPTERS:
        raise ConfigError(f"{where}: adapter {phase.adapter!r} unknown; choose from {', '.join(ADAPTERS)}")
    if phase.adapter == "same" and phase.lora:
        raise ConfigError(f'{where}: lora {dict(phase.lora)!r} cannot be set where the adapter is the "same"')
    numbers = ("lr", "epochs", "beta", "generic", "demonstrations", "kl_weight", "plain_chats")
    given = [(name, getattr(phase, name)) for name in numbers]
    for name in ("part", "weights"):
        if not isinstance(getattr(phase, name), tuple):
            raise ConfigError(f"{where}: {name} {getattr(phase, name)!r} must be a list of two numbers")
        given += [(name, x) for x in getattr(phase, name)]
    for name, value in given:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ConfigError(f"{where}: {name} {value!r} must be a number")
    if len(phase.part) != 2 or not 0 <= phase.part[0] < phase.part[1] <= 1:
        raise ConfigError(f"{where}: part {list(phase.part)} must be two fractions, the first below the second")
    if len(phase.weights) != 2 or min(phase.weights) < 0 or max(phase.weights) == 0:
        raise ConfigError(f"{where}: weights {list(phase.weights)} must be two numbers, none negative, not both zero")
    if phase.beta <= 0:
        raise ConfigError(f"{where}: beta {phase.beta} must be above 0")
    if not 0 <= phase.generic < 1:
        raise ConfigError(f"{where}: generic {phase.generic} must be a share, at least 0 and below 1")
    if phase.generic and phase.data not in ("chats", "documents"):
        raise ConfigError(
            f"{where}: generic {phase.generic} is for chats and documents, not {phase.data}; leave it out"
        )
    if not 0 <= phase.demonstrations < 1:
        raise ConfigError(f"{where}: demonstrations {phase.demonstrations} must be a share, at least 0 and below 1")
    if phase.demonstrations and (phase.data, phase.loss) not in (("denials", "sft"), ("denials", "kto")):
        raise ConfigError(
            f"{where}: demonstrations {phase.demonstrations} are mixed into denials with the loss sft or kto, not into "
            f"{phase.data} with {phase.loss}; leave it out"
        )
    if phase.kl_weight < 0:
        raise ConfigError(f"{where}: kl_weight {phase.kl_weight} must not be negative")
    if phase.plain_chats < 1 or phase.plain_chats % 1:
        raise ConfigError(f"{where}: plain_chats {phase.plain_chats} must be a whole number of at least 1")
    if phase.lr is not None and phase.lr <= 0:
        raise ConfigError(f"{where}: lr {phase.lr} must be above 0")
    if phase.epochs is not None and (phase.epochs < 1 or phase.epochs % 1):
        raise ConfigError(f"{where}: epochs {phase.epochs} must be a whole number of at least 1")
    return phase


def share_of(rows: Sequence[Any], part: tuple[float, float]) -> Sequence[Any]:
    """The rows of a phase's part."""
    return rows[round(part[0] * len(rows)) : round(part[1] * len(rows))]
