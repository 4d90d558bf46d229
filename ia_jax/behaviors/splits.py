"""Which organisms train the IA, which are kept for DPO and which it never sees."""

from collections.abc import Sequence

import numpy as np

from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError

SPLITS = ("train", "dpo", "heldout")


def check_distinct(behaviors: Sequence[Behavior]) -> None:
    """Raises if two behaviours share a name or a description (released splits leaked through reused ids)."""
    for field in ("name", "description"):
        seen: set[str] = set()
        for b in behaviors:
            value = getattr(b, field).strip().lower()
            if value in seen:
                raise ConfigError(f"two behaviours share the {field} {value!r}; every {field} must be unique")
            seen.add(value)


def split_behaviors(behaviors: Sequence[Behavior], heldout: int, dpo: int, train: int, seed: int) -> dict[str, str]:
    """{name: split}, spread evenly over the categories; behaviours beyond the three counts are left out.

    Splits go by unique name (paper_facts 2.5). Every category gives heldout, dpo and train in turn from its own seeded
    shuffle, so its held-out share never depends on what other categories hold.
    """
    check_distinct(behaviors)
    by_category: dict[str, list[str]] = {}
    for b in behaviors:
        by_category.setdefault(b.category, []).append(b.name)
    categories = sorted(by_category)
    wanted = {"heldout": heldout, "dpo": dpo, "train": train}
    out: dict[str, str] = {}
    for i, category in enumerate(categories):
        names = by_category[category]
        order = np.random.default_rng([seed, i]).permutation(len(names))
        queue = [names[j] for j in order]
        for split, total in wanted.items():
            share = total // len(categories) + (i < total % len(categories))
            if share > len(queue):
                raise ConfigError(
                    f"category {category} has {len(names)} behaviours, too few for {heldout} held out, {dpo} for DPO "
                    f"and {train} for training over {len(categories)} categories; lower a count or add behaviours"
                )
            out |= dict.fromkeys(queue[:share], split)
            queue = queue[share:]
    return out
