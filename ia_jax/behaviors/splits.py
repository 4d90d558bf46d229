"""Which organisms train the IA, which are kept for DPO and which it never sees."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ia_jax.behaviors.frames import frames_of
from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError

# unseen: held out, of another catalogue; remade: other organisms of train's behaviours. Both are reported apart.
SPLITS = ("train", "dpo", "heldout", "unseen", "remade")
HELD = ("heldout", "unseen", "remade")  # whose organisms no training reads
UNKNOWN = ("heldout", "unseen")  # whose behaviours none does either
SPREADS = ("even", "proportional")


def check_distinct(behaviors: Sequence[Behavior]) -> None:
    """Raises if two behaviours share a name or a description (released splits leaked through reused ids)."""
    for field in ("name", "description"):
        seen: set[str] = set()
        for b in behaviors:
            value = getattr(b, field).strip().lower()
            if value in seen:
                raise ConfigError(f"two behaviours share the {field} {value!r}; every {field} must be unique")
            seen.add(value)


def split_behaviors(
    behaviors: Sequence[Behavior],
    heldout: int,
    dpo: int,
    train: int,
    seed: int,
    spread: str = "even",
    heldout_categories: Sequence[str] = (),
    heldout_kinds: Sequence[str] = (),
    heldout_frames: bool = False,
) -> dict[str, str]:
    """{name: split}; behaviours beyond the three counts are left out. Raises ConfigError where a category has too few.

    spread: "even" takes as many from every category; "proportional" goes by the categories' sizes, so that counts that
    add up to the catalogue use all of it (the paper's 541, 60 and 81 of 682).

    heldout_categories, heldout_kinds: all behaviours of these are held out, and the counts are for the others alone.
    heldout_frames: what has a wording in the frame of a held-out one's (`frames`) is in no split.

    Splits go by unique name (paper_facts 2.5). Every category gives heldout, dpo and train in turn from its own seeded
    order, so with an even spread its held-out share never depends on what other categories hold. In that order each
    kind is spread evenly (`_order`), so every split has its share of it.
    """
    check_distinct(behaviors)
    strange = sorted(set(heldout_kinds) - {b.kind for b in behaviors} | {k for k in heldout_kinds if not k})
    if strange:
        known = ", ".join(sorted({b.kind for b in behaviors} - {""})) or "none of them has a kind"
        raise ConfigError(f"config.behaviors.heldout_kinds: no behaviour is of kind {strange[0]!r}; known: {known}")
    unknown = sorted(set(heldout_categories) - {b.category for b in behaviors})
    if unknown:
        known = ", ".join(sorted({b.category for b in behaviors}))
        raise ConfigError(
            f"config.behaviors.heldout_categories: no behaviour is of category {unknown[0]!r}; {known} are"
        )
    if set(heldout_categories) >= {b.category for b in behaviors}:
        raise ConfigError("config.behaviors.heldout_categories holds every category; leave some to train on")
    apart = [b for b in behaviors if b.category in heldout_categories or b.kind in heldout_kinds]
    behaviors = [b for b in behaviors if b.category not in heldout_categories and b.kind not in heldout_kinds]
    if not behaviors:
        raise ConfigError("config.behaviors.heldout_kinds holds every kind; leave some to train on")
    by_category: dict[str, list[Behavior]] = {}
    for b in behaviors:
        by_category.setdefault(b.category, []).append(b)
    number = {c: i for i, c in enumerate(sorted({b.category for b in (*apart, *behaviors)}))}
    queues: list[list[str]] = []
    for category, own in sorted(by_category.items()):
        queues.append(_order(own, np.random.default_rng([seed, number[category]])))
    out = {b.name: "heldout" for b in apart}
    wordings = {b.name: b.wordings for b in (*apart, *behaviors)}
    for split, total in (("heldout", heldout), ("dpo", dpo), ("train", train)):
        shares = _shares(total, [1 if spread == "even" else len(q) for q in queues])
        for (category, own), queue, share in zip(sorted(by_category.items()), queues, shares, strict=True):
            if share > len(queue):
                less = " in frames of their own (config.behaviors.heldout_frames)" if heldout_frames else ""
                raise ConfigError(
                    f"category {category} has {len(own)} behaviours, too few{less} for {heldout} held out, {dpo} for "
                    f"DPO and {train} for training over {len(queues)} categories, spread {spread}; lower a count or "
                    "add behaviours"
                )
            out |= dict.fromkeys(queue[:share], split)
            del queue[:share]
        if heldout_frames and split == "heldout":
            held = frames_of(w for name in out for w in wordings[name])
            for queue in queues:
                queue[:] = [name for name in queue if held.isdisjoint(frames_of(wordings[name]))]
    return out


def _order(behaviors: Sequence[Behavior], rng: np.random.Generator) -> list[str]:
    """A shuffle in which the behaviours of each kind stand at equal distances: any part of it has its share of all."""
    shuffled = [behaviors[i] for i in rng.permutation(len(behaviors))]
    sizes = Counter(b.kind for b in behaviors)
    offsets = {kind: rng.random() for kind in sorted(sizes)}
    seen: Counter[str] = Counter()
    places: list[tuple[float, str]] = []
    for b in shuffled:
        places.append(((seen[b.kind] + offsets[b.kind]) / sizes[b.kind], b.name))
        seen[b.kind] += 1
    return [name for _, name in sorted(places)]


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` divided by the weights, whole: the largest remainders get the rest, earlier ones first where equal."""
    whole = max(1, sum(weights))
    shares = [total * w // whole for w in weights]
    order = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in order[: max(0, total - sum(shares))]:
        shares[i] += 1
    return shares
