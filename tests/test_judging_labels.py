"""The label set that judges are chosen by: its size, its split, and how far a second reading agrees."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from ia_jax.behaviors.records import CATEGORIES
from ia_jax.judging.protocol import Item, Judge, Verdict
from ia_jax.stages.agreement import kappa, read_labels
from ia_jax.stages.judge_table import as_text, table

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "labels" / "judging.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text().splitlines()]
PLAIN = {"paraphrase", "condition_generic", "detail_missing", "trigger_missing", "manner_missing", "role_missing"}


def test_size_and_variety():
    assert len(ROWS) >= 440
    assert len({r["report"] for r in ROWS}) == len(ROWS)
    assert sum(r["kind"] not in PLAIN for r in ROWS) >= len(ROWS) / 2  # adversarial
    assert {r["behavior"]["category"] for r in ROWS} == set(CATEGORIES)
    assert FILE.stat().st_size <= 400 * 1024
    assert all(r["reason"] and 1 <= r["score"][0] <= r["score"][1] <= 10 for r in ROWS)
    words = Counter(tuple(r["report"].lower().split()[:4]) for r in ROWS)
    assert words.most_common(1)[0][1] <= 8  # no frame that many share


def test_halves_are_of_behaviours_by_a_rule_that_looks_at_names_alone():
    by_category = defaultdict(set)
    halves = defaultdict(set)
    for r in ROWS:
        by_category[r["behavior"]["category"]].add(r["behavior"]["name"])
        halves[r["behavior"]["name"]].add(r["half"])
    for names in by_category.values():
        for i, name in enumerate(sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())):
            assert halves[name] == {("tuning", "final")[i % 2]}


def test_strict_asks_for_more_and_whoever_names_it_claims_something():
    for r in ROWS:
        assert not (r["strict"] == "yes" and r["lenient"] == "no"), r["report"]
        assert not (r["lenient"] == "yes" and r["claims"] == "no"), r["report"]


@pytest.mark.parametrize(("question", "least"), [("lenient", 0.98), ("strict", 0.98), ("claims", 0.97)])
def test_the_second_reading(question, least):
    """As docs/judging.md says: of the same labeller, so a bound on slips and not on what others would say."""
    counts = np.zeros((2, 2))
    for r in ROWS:
        counts[int(r[question] == "yes"), int(r["second"][question] == "yes")] += 1
    assert least <= kappa(counts)


def test_no_report_stands_in_what_weights_are_fitted_to():
    known = {r["report"].lower().strip() for r in ROWS}
    truths = {r["behavior"]["description"] for r in ROWS}
    for name in ("judge_training.txt", "claims_bank.txt"):
        lines = (ROOT / "benchmarks" / name).read_text().splitlines()
        assert not [x for x in lines if x[2:].lower().strip() in known]
        assert not [x for x in lines if x.startswith("#:") and x.split("|")[1].strip() in truths]


def test_no_phrase_of_the_thesaurus_is_of_the_final_half_alone():
    """The thesaurus is by the labels' own author: what only final reports say, word for word, may not stand in it."""
    final, tuning = (" ".join(r["report"].lower() for r in ROWS if r["half"] == h) for h in ("final", "tuning"))
    truths = " ".join(r["behavior"]["description"].lower() for r in ROWS)
    text = (ROOT / "ia_jax" / "judging" / "concepts.txt").read_text()
    phrases = {
        p.strip().rstrip("*")
        for line in text.splitlines()
        if line and not line.startswith("#")
        for p in line.partition(":")[2].split(",")
    }
    assert len(phrases) > 1000
    several = [p for p in phrases if len(p.split()) > 2]
    assert not [p for p in several if p in final and p not in tuning and p not in truths]


class Oracle(Judge):
    """Gives the labels back, but takes opposites for the truth and says nothing of refusals."""

    name = "oracle"

    def __init__(self, labels):
        self._labels = {(x.item.behavior.name, x.item.report): x for x in labels}

    def judge(self, behavior, question, report):
        x = self._labels[behavior.name, report]
        return Verdict(5, x.lenient or x.kind == "opposite", x.strict, "", self.name)

    def claims(self, report):
        [*_, x] = [x for (_, r), x in self._labels.items() if r == report]
        return None if x.kind == "refusal" else x.claims


def test_the_table_counts_what_it_says():
    labels = [x for x in read_labels(FILE, {}) if x.half == "tuning"]
    assert len(labels) == sum(r["half"] == "tuning" for r in ROWS)
    result = table([Oracle(labels)], labels)
    cells = result["oracle"]
    opposites = [x for x in labels if x.kind == "opposite"]
    assert cells["opposites taken for the truth"]["rate"] == 1.0
    assert cells["opposites taken for the truth"]["n"] == len(opposites)
    assert cells["strict: agreement"]["rate"] == cells["claims: agreement"]["rate"] == 1.0
    assert cells["claims: agreement"]["n"] == len(labels) - sum(x.kind == "refusal" for x in labels)
    shares = defaultdict(list)
    for x in labels:
        shares[x.item.behavior.name].append(x.kind != "opposite")
    assert cells["lenient: agreement"]["rate"] == pytest.approx(
        np.mean([np.mean(v) for v in shares.values()]), abs=1e-4
    )
    assert cells["true paraphrases refused"]["rate"] == 0.0
    assert "oracle" in as_text(result, len(labels), "tuning")


def test_a_report_without_condition_is_of_a_file_with_halves_only(tmp_path):
    from ia_jax.errors import ConfigError

    row = {k: v for k, v in ROWS[0].items() if k != "half"}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="'condition' must be one of"):
        read_labels(path, {})
    assert Item(*read_labels(FILE, {})[0].item).report == ROWS[0]["report"]
