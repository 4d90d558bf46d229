"""The study on a tiny model: eight categories and clean organisms, arms of DPO from one SFT, the tables from files."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ia_jax import open_workdir
from ia_jax.adapters.store import read_metadata
from ia_jax.behaviors.behavior_checks import RARE_SAMPLES
from ia_jax.behaviors.records import CATEGORIES, CLEAN
from ia_jax.storage import read_jsonl
from tests import parrot

ROOT = Path(__file__).parent.parent
MORE = """
    c.behaviors.catalogue = "study"
    c.behaviors.train = c.behaviors.dpo = c.behaviors.heldout = 8
    c.behaviors.clean_train, c.behaviors.clean_dpo, c.behaviors.clean_heldout = 1, 2, 1
    c.teacher.rare_share = 0.25
    c.organisms.parallel = 14
    c.sft.organisms_per_step = 4
    c.sft.steps = 2
    c.preferences.clean_pairs = 3
    return c
"""


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The recipe and two arms of the study's driver, and what it printed."""
    tmp = tmp_path_factory.mktemp("study")
    config = parrot.write_config(tmp / "config.py", parrot.write_model(tmp / "model"))
    config.write_text(config.read_text().replace("    return c\n", MORE))
    out = script("study", tmp / "run", f"--config={config}", "--arms=,clean,none")
    return tmp / "run", out


@pytest.mark.slow
def test_every_category_and_the_clean_organisms_are_trained_and_checked(study):
    run = open_workdir(study[0])
    assert {b.category for b in run.behaviors.values()} == {*CATEGORIES}
    assert {o.category for o in run.organisms.values()} == {*CATEGORIES, CLEAN}
    assert [run.organisms[f"clean_{i}"].split for i in range(4)] == ["dpo", "dpo", "heldout", "train"]
    checks = {r["organism"]: r for r in read_jsonl(run.checks_file, "")}
    assert checks.keys() == run.organisms.keys()
    for name, o in run.organisms.items():
        assert read_metadata(run.organism_dir(name)).step > 0
        asked = len(checks[name]["samples"])
        if o.clean:
            assert (checks[name]["ok"], checks[name]["triggered_rate"], checks[name]["untriggered_rate"]) == (
                True,
                None,
                0,
            )
        assert (asked == RARE_SAMPLES) == (o.category == "rare_quirks")


@pytest.mark.slow
def test_arms_differ_in_their_pairs_alone(study):
    run = open_workdir(study[0])
    assert [run.metrics(arm)["ias"]["sft"] for arm in ("", "clean", "none")] == ["sft", "clean_sft", "clean_sft"]
    seen = [set(json.loads((run.ia_dir(ia) / "organisms.json").read_text())) for ia in ("sft", "clean_sft")]
    assert seen[0] - seen[1] == {"clean_3"}
    pairs = [read_jsonl(run.preferences_file(arm), "") for arm in ("clean", "none")]
    kept = [[p for p in own if p["kind"] != "abstention"] for own in pairs]
    assert kept[0] == kept[1]
    abstaining = Counter(p["organism"] for p in pairs[0] if p["kind"] == "abstention")
    assert abstaining == {"clean_0": 3, "clean_1": 3, CLEAN: 2}
    assert len(kept[1]) == len(pairs[1])
    hashes = [read_metadata(run.ia_dir(f"{arm}_dpo") / "adapter").content_hash for arm in ("clean", "none")]
    assert hashes[0] != hashes[1]


@pytest.mark.slow
def test_clean_organisms_are_evaluated_apart(study):
    run = open_workdir(study[0])
    assert CLEAN not in {r["category"] for r in run.reports()}
    rows = read_jsonl(run.clean_reports_file(), "")
    assert {(r["organism"], r["condition"]) for r in rows} == {("clean_2", "clean+ia"), ("clean_2", "clean")}
    for stage in ("sft", "dpo"):
        s = run.metrics()["stages"][stage]
        assert CLEAN not in s["by_category"]
        for condition in ("clean+ia", "clean"):
            own = [r["claims"] for r in rows if (r["stage"], r["condition"]) == (stage, condition)]
            assert s["false_reports"][condition]["n"] == len(own) == 2
            assert s["false_reports"][condition]["rate"] == sum(own) / 2
    assert "clean+ia claims some behaviour" in study[1]


@pytest.mark.slow
def test_a_second_call_does_nothing_and_the_tables_come_from_the_files(study):
    config = study[0].parent / "config.py"
    before = (study[0] / "eval" / "none" / "metrics.json").stat().st_mtime_ns
    out = script("study", study[0], f"--config={config}", "--arms=,clean,none")
    assert out.count("already done") == 21
    assert (study[0] / "eval" / "none" / "metrics.json").stat().st_mtime_ns == before
    tables = script("study_table", study[0])
    for category in CATEGORIES:
        assert tables.count(f"| {category} |") == 7  # two of SFT, three arms of DPO, the gain and the checks
    metrics = json.loads((study[0] / "eval" / "clean" / "metrics.json").read_text())
    rate = metrics["stages"]["sft"]["false_reports"]["clean+ia"]["rate"]
    line = next(line for line in tables.splitlines() if line.startswith("| SFT, arm `clean`, arm `none` |"))
    assert line.split(" | ")[2].startswith(f"{100 * rate:.0f} %")
    assert "arm `clean` (8 of" in tables
    assert "arm `none` (0 of" in tables
