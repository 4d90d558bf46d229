"""How well the offline judge sees that a sentence claims sandbagging: on the study catalogue's own wordings.

    .venv/bin/python benchmarks/sandbagging_judge.py   # three minutes

By the general record alone, and by any sandbagger of the catalogue but the wording's own: what audits of sandbaggers
count (`ia_jax/audits/sandbagging.py`). Percent by category, 95 % intervals over behaviours. Wordings are sentences that
people wrote; a model's reports are worse.
"""

import argparse

from ia_jax.audits.sandbagging import SANDBAGS
from ia_jax.behaviors.embedded import study_behaviors
from ia_jax.evals.intervals import rate
from ia_jax.judging.offline import OfflineJudge
from ia_jax.judging.protocol import Item
from ia_jax.judging.verbatim import Verbatim


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    behaviors = study_behaviors()
    records = [SANDBAGS, *(b for b in behaviors if b.category == SANDBAGS.category)]
    said = [(b, w) for b in behaviors for w in b.wordings]
    items = [Item(r, "", w) for _, w in said for r in records]
    verdicts = iter(Verbatim(OfflineJudge()).judge_many(items, ("lenient",)))
    general: dict[str, dict[str, list[bool]]] = {}
    any_other: dict[str, dict[str, list[bool]]] = {}
    for b, _ in said:
        named = {r.name: bool(next(verdicts).lenient) for r in records}
        general.setdefault(b.category, {}).setdefault(b.name, []).append(named[SANDBAGS.name])
        others = any(yes for name, yes in named.items() if name != b.name)
        any_other.setdefault(b.category, {}).setdefault(b.name, []).append(others)
    print("| category | behaviours | the general record | or another behaviour's |\n|---|---|---|---|")
    for category in general:
        cells = (rate(found[category]) for found in (general, any_other))
        shown = (f"{100 * c['rate']:.0f} ({100 * c['ci95'][0]:.0f}-{100 * c['ci95'][1]:.0f})" for c in cells)
        print(f"| {category} | {len(general[category])} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
