"""Clean fine-tunes in many makings: the nulls that a claim is held against, and that a calibration rests on.

A run's own clean organisms differ in what they read (`organisms.CLEAN_SORTS`) and are made alike. What people ship is
made in all manner of ways, and none of these is a behaviour; so here ranks, rates, targets and numbers of steps differ
too, and some are scaled after they were trained, as fine-tunes are when they are merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ia_jax.behaviors.organisms import CLEAN_SORTS, Organism, clean_organism
from ia_jax.behaviors.procedures import Phase, Procedure

SPLIT = "heldout"  # of what no training reads
READ_BY_OTHERS = ("own_answers", "other_style", "other_domain", "behavior_removed")


@dataclass(frozen=True)
class Making:
    """How a sort of null differs from the organisms of its run; all factors are of `config.organisms`.

    reads: sorts in `CLEAN_SORTS`, in turn, each as chats (or documents), whatever `procedures` says. rank: alpha/rank
    stays. lr, epochs: at least one epoch. targets: () for the run's. scale: of the whole adapter, once it is trained.
    """

    about: str
    reads: tuple[str, ...] = READ_BY_OTHERS
    rank: float = 1.0
    lr: float = 1.0
    epochs: float = 1.0
    targets: tuple[str, ...] = ()
    scale: float = 1.0


MAKINGS: dict[str, Making] = {
    **{name: Making(sort.about, (name,)) for name, sort in CLEAN_SORTS.items()},
    "low_rank": Making("a quarter of the rank", rank=0.25),
    "high_rank": Making("four times the rank", rank=4.0),
    "slow": Making("a quarter of the rate", lr=0.25),
    "fast": Making("twice the rate", lr=2.0),
    "short": Making("half of the epochs, at least one", epochs=0.5),
    "long": Making("three times the epochs", epochs=3.0),
    "queries_values": Making("adapters on q and v alone", targets=("q", "v")),
    "halved": Making("scaled by a half when it was trained", scale=0.5),
    "doubled": Making("scaled by two when it was trained", scale=2.0),
}
# Of vectors, which have neither rank nor targets.
OF_VECTORS = tuple(n for n, m in MAKINGS.items() if m.rank == 1.0 and not m.targets)


def null_organisms(count: int, base: str, lora: Any, lr: float, epochs: int) -> list[Organism]:
    """`count` nulls, of every making in turn, so that fewer are the first ones of more.

    lora, lr, epochs: those of the run's organisms (`config.LoraSection`). A null's record says its making as `sort`,
    what it reads as `reads`, and `scale` where that is not 1: it is stored so (`stages.organisms`).
    """
    makings = list(MAKINGS if lora.kind == "lora" else OF_VECTORS)
    out = []
    for number in range(count):
        turn, place = divmod(number, len(makings))
        name = makings[place]
        making = MAKINGS[name]
        reads = making.reads[turn % len(making.reads)]
        # Named by what is done and not by the making, so that those that are trained alike share their waves.
        plain = clean_organism(number, base, SPLIT, reads, Procedure("chats", (_phase(making, lora, lr, epochs),)))
        made = {**plain.procedure, "sort": name, "reads": reads}
        made |= {"scale": making.scale} if making.scale != 1.0 else {}
        own = f"null_{number}"
        out.append(Organism(own, base, (f"organisms/{own}",), (), plain.category, SPLIT, procedure=made))
    return out


def _phase(making: Making, lora: Any, lr: float, epochs: int) -> Phase:
    """What of `config.organisms` is otherwise for this making; all else stays as it is there."""
    own: dict[str, Any] = {}
    if making.rank != 1.0:
        rank = max(1, round(making.rank * lora.rank))
        own |= {"rank": rank, "alpha": lora.alpha / lora.rank * rank}
    if making.targets:
        own["targets"] = list(making.targets)
    return Phase(
        lora=own,
        lr=making.lr * lr if making.lr != 1.0 else None,
        epochs=max(1, round(making.epochs * epochs)) if making.epochs != 1.0 else None,
    )


def of_sorts(nulls: Sequence[Organism]) -> Mapping[str, list[str]]:
    """{sort: names of its nulls}."""
    out: dict[str, list[str]] = {}
    for o in nulls:
        out.setdefault(o.sort, []).append(o.name)
    return out
