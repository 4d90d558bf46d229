"""The table of a study for the documentation, from its study.json.

    python benchmarks/study_table.py runs/science/figures/rank_layers

Percent, 95 % intervals over behaviours (clean fine-tunes each); differences to the reference arm in points, in pairs.
"""

import argparse
from pathlib import Path
from typing import Any

from demo_table import points, row, shown

from ia_jax.storage import read_json

CELLS = {
    "named": "lenient",
    "by the judge alone": "judged",
    "strict, likewise": "strict",
    "its own sentence": "sentence",
    "seen in SFT": "seen",
    "new behaviours": "new",
    "of its categories": "inside",
    "of others": "outside",
    "clean ones with a claim": "false_claims",
    "clean ones: a known sentence": "false_sentences",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", help="directories with a study.json")
    parser.add_argument("--categories", action="store_true", help="named, by category, instead")
    args = parser.parse_args()
    for directory in args.studies:
        study = read_json(Path(directory) / "study.json", "run `ia-jax study` first")
        arms = [a for a in study["arms"] if a["finished"]]
        print(f"\n{study['title']}\n")
        by_category(arms) if args.categories else of_all(study, arms)


def of_all(study: dict[str, Any], arms: list[dict[str, Any]]) -> None:
    cells = {label: key for label, key in CELLS.items() if any(key in a for a in arms)}
    row("arm", [*cells, f"named, minus {study['reference']}"])
    print("|---|" + "---|" * (len(cells) + 1))
    for a in arms:
        against = points(a["against"]) if a["against"] else "–"
        seeds = f", {len(a['finished'])} seeds" if len(a["finished"]) > 1 else ""
        row(a["label"] + seeds, [*(shown(a.get(key)) for key in cells.values()), against])
    reference = next((a for a in arms if a["name"] == study["reference"]), arms[0])
    others = reference["controls"] | reference["baselines"]
    print("\nwithout the adapter: " + "; ".join(f"{n.replace('_', ' ')} {shown(c)}" for n, c in others.items()))


def by_category(arms: list[dict[str, Any]]) -> None:
    row("category", [a["label"] for a in arms])
    print("|---|" + "---|" * len(arms))
    for category in dict.fromkeys(c for a in arms for c in a["by_category"]):
        row(category.replace("_", " "), [shown(a["by_category"].get(category)) for a in arms])


if __name__ == "__main__":
    main()
