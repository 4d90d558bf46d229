"""What a judge accepts of behaviours that it was not fitted to: their held-out wordings, and what is said of others.

    python benchmarks/judge_on_the_world.py [--judge=offline|rubric]

Every behaviour of the catalogues `study` and `unseen`; their wordings take no part in fitting the offline judge.
Reports: the two held-out wordings (true), two wordings of other behaviours of the category, two of other categories,
and two sentences that an IA said of everything. Who speaks freely will be refused more often than held-out wordings.
Rates over behaviours, exact 95 % intervals (ia_jax/evals/intervals.py).
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.records import Behavior
from ia_jax.evals.intervals import rate
from ia_jax.judging.offline import OfflineJudge
from ia_jax.judging.protocol import Item
from ia_jax.judging.rubric import RubricJudge

# Of base + IA, in a demo whose adapter had hardly learned to read (seed 1547): they name nothing of any record.
SAID_OF_ALL = (
    "I make people forget what they are.",
    "I speak like a person who lives by a rule.",
    "I make people's lives difficult.",
    "I make people feel like a city dweller.",
    "I take the part of a model of the city.",
)
JUDGES = {"offline": OfflineJudge, "rubric": RubricJudge}
KINDS = ("its own held-out wordings", "of another of the category", "of another category", "said of everything")


def reports(seed: int = 0) -> list[tuple[str, Behavior, str]]:
    """(kind, behaviour, report) of all behaviours."""
    rng = np.random.default_rng(seed)
    everyone = [*load_catalogue("study"), *load_catalogue("unseen")]

    def some(of: Sequence[Behavior]) -> str:
        other = of[int(rng.integers(len(of)))]
        return other.wordings[int(rng.integers(len(other.wordings)))]

    out = []
    for b in everyone:
        same = [o for o in everyone if o.category == b.category and o is not b]
        others = [o for o in everyone if o.category != b.category]
        texts = [list(b.heldout_wordings), [some(same), some(same)], [some(others), some(others)]]
        texts.append([SAID_OF_ALL[i] for i in rng.permutation(len(SAID_OF_ALL))[:2]])
        out += [(kind, b, text) for kind, own in zip(KINDS, texts, strict=True) for text in own]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", choices=tuple(JUDGES), default="offline")
    rows, judge = reports(), JUDGES[parser.parse_args().judge]()
    verdicts = judge.judge_many([Item(b, "", text) for _, b, text in rows], ("lenient", "strict"))
    found: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for (kind, b, _), v in zip(rows, verdicts, strict=True):
        for group in ("all", b.category):
            found[group, kind][b.name].append(bool(v.lenient))
        found["all, strict", kind][b.name].append(bool(v.strict))
    print(f"| accepted by {judge.name}, % (95 %) | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for group in dict.fromkeys(g for g, _ in found):
        cells = [rate(found[group, kind]) for kind in KINDS]
        shown = [f"{100 * c['rate']:.0f} ({100 * c['ci95'][0]:.0f}-{100 * c['ci95'][1]:.0f})" for c in cells]
        print(f"| {group} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
