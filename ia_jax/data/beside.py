"""Plans of what is read beside another plan's steps: mismatched answers (KTO), plain chats (a KL to the base)."""

from collections.abc import Iterator, Sequence

import numpy as np

from ia_jax.data.plans import Plan, Row, Rows, Slot, Unit, even_rows, sized, unit_length
from ia_jax.errors import ConfigError


def plan_mismatched(plan: Plan, units: Sequence[Sequence[Unit]]) -> Plan:
    """Steps that read `units[i][j]` where those of `plan` read unit j of organism i, in rows of their own."""
    steps = [
        [Slot(s.organism, _rows(units[s.organism], [u for row in s.rows for u in row], plan.rows)) for s in step]
        for step in plan.steps
    ]
    return sized(steps, units, plan.rows)


def plan_plain(
    plan: Plan, units: Sequence[Sequence[Unit]], seeds: Sequence[int], *, per_step: int, rows: int = 1
) -> Plan:
    """Steps that read `per_step` plain chats of every organism that reads something in that step of `plan`.

    units: of each organism, plain chats (the same for all, if one likes). They come in an order of the organism's own
    seed, another one each time that they are through. Raises ConfigError for an organism that has none.
    """
    for i, own in enumerate(units):
        if not own and any(s.rows for step in plan.steps for s in step if s.organism == i):
            raise ConfigError(f"organism {i} has no plain chats to be held to its base on; give some, or kl_weight=0")
    if per_step < rows:
        raise ConfigError(f"{per_step} plain chats a step do not fill {rows} rows; raise it, or lower the rows")
    streams = [_stream(len(own), seed) for own, seed in zip(units, seeds, strict=True)]

    def slot(of: Slot) -> Slot:
        taken = [next(streams[of.organism]) for _ in range(per_step)] if of.rows else []
        return Slot(of.organism, _rows(units[of.organism], taken, rows))

    return sized([[slot(s) for s in step] for step in plan.steps], units, rows)


def _rows(units: Sequence[Unit], taken: Sequence[int], count: int) -> Rows:
    """These units in at most `count` rows of about equal length."""
    lengths = [unit_length(units[u]) for u in taken]  # by place: a unit may be taken twice
    places = even_rows(lengths, range(len(taken)), count, max(1, sum(lengths)), len(taken)) if taken else []
    assert places is not None
    rows: list[Row] = [tuple(taken[p] for p in row) for row in places]
    return tuple(rows)


def _stream(count: int, seed: int) -> Iterator[int]:
    turn = 0
    while count:
        yield from np.random.default_rng([seed, turn, 3]).permutation(count).tolist()
        turn += 1
