"""Which of a workdir's organisms a stage works with."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ia_jax.adapters.store import are_complete
from ia_jax.behaviors.organisms import Organism
from ia_jax.config import SftSection
from ia_jax.errors import ConfigError, IAError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.context import Context
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir


def present(context: Context, *splits: str) -> list[Organism]:
    """The organisms of these splits, without those that diverged and were left out."""
    workdir = context.workdir
    left_out = on_main_process(lambda: workdir.left_out)
    return [workdir.organisms[n] for n in workdir.named(*splits) if n not in left_out]


def untrained(workdir: Workdir, organisms: Sequence[Organism]) -> list[str]:
    """Names of those of which an adapter is not stored, or not whole."""
    stored = [(o.name, directory) for o in organisms for directory in workdir.stack_of(o)]
    there = are_complete([directory for _, directory in stored])
    return [name for (name, _), whole in zip(stored, there, strict=True) if not whole]


def usable(context: Context, *splits: str) -> list[Organism]:
    """Those of these splits that did not fail their behaviour check (all, with `keep_failed`).

    Raises ConfigError if one is not trained yet, IAError if none is left.
    """
    workdir, organisms = context.workdir, present(context, *splits)
    which = " and ".join(splits)
    if missing := on_main_process(lambda: untrained(workdir, organisms)):
        raise ConfigError(f"organism {missing[0]} is not trained; run `ia-jax organisms` first")
    if not organisms:
        raise IAError(f"the {which} split has no organism: see {workdir.left_out_file} for those left out")
    if context.config.organisms.keep_failed:
        return organisms
    rows = on_main_process(lambda: read_jsonl(workdir.checks_file, "run `ia-jax organisms` first"))
    failed = {r["organism"] for r in rows if not r["ok"]}
    kept = [o for o in organisms if o.name not in failed]
    if not kept:
        raise IAError(f"no organism of the {which} split passed its behaviour check; train them longer")
    return kept


def selected_for_sft(organisms: Sequence[Organism], cfg: SftSection, seed: int) -> list[Organism]:
    """The organisms that SFT reads: of `cfg.categories`, and of these as many as `cfg.organisms` says.

    They are drawn category by category, and in each behaviour by behaviour, in a fixed order, so that fewer are always
    a part of more. Raises ConfigError for a category that no organism is of, or more organisms than there are.
    """
    known = sorted({o.category for o in organisms})
    unknown = [c for c in cfg.categories if c not in known]
    if unknown:
        raise ConfigError(
            f"config.sft.categories: no organism is of category {unknown[0]!r}; there are {', '.join(known)}"
        )
    pool = [o for o in organisms if o.category in (cfg.categories or known)]
    count = round(cfg.organisms * len(pool)) if cfg.organisms <= 1 else round(cfg.organisms)
    if not 1 <= count <= len(pool):
        raise ConfigError(
            f"config.sft.organisms={cfg.organisms:g} is {count} of {len(pool)} organisms; choose 1 … {len(pool)}"
        )
    queues = [
        _in_turn([own[i] for i in np.random.default_rng([seed, 7, known.index(c)]).permutation(len(own))])
        for c in known
        if (own := [o for o in pool if o.category == c])
    ]
    order = [q[n] for n in range(max(map(len, queues))) for q in queues if n < len(q)]
    chosen = {o.name for o in order[:count]}
    return [o for o in pool if o.name in chosen]


def _in_turn(organisms: Sequence[Organism]) -> list[Organism]:
    """The same, a second of any behaviour only after one of each; in their order where each is the only one of its."""
    turn: Counter[tuple[str, ...]] = Counter()
    places = []
    for o in organisms:
        places.append(turn[o.behaviors])
        turn[o.behaviors] += 1
    return [organisms[i] for i in sorted(range(len(organisms)), key=lambda i: places[i])]
