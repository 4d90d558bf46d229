"""The last lines of a run: figures in words, with what stands beside them, and nothing sold."""

import pytest

from ia_jax.analysis.findings import apart, beside_baselines, findings, held_out, next_steps, not_shown, on_clean
from ia_jax.evals.verbalization import CONDITIONS, metrics
from tests.made_run import make_workdir


def cell(rate, low, high, organisms=12):
    return {"rate": rate, "ci95": [low, high], "n": 6 * organisms, "organisms": organisms}


def stage(ia=0.58, best=0.30, beyond=(0.28, 0.05, 0.45), clean=0.17, **more):
    words = {"lenient": cell(best, 0.2, 0.4)}
    difference = {"difference": beyond[0], "ci95": list(beyond[1:]), "organisms": 12}
    return {
        "heldout": {"organism+ia": cell(ia, 0.33, 0.83), "organism": cell(0.0, 0.0, 0.26)},
        "strict": {"heldout": {"organism+ia": cell(0.5, 0.3, 0.7)}},
        "baselines": {"all": {"rates": {"words": words, "organism": words}, "best": "words", "beyond": difference}},
        "false_reports": {"base+ia": cell(0.0, 0.0, 0.46, 1), "clean+ia": cell(clean, 0.02, 0.5, 6)},
        "verbatim": {"frame": cell(0.9, 0.7, 0.98)},
    } | more


def test_a_rate_has_its_interval_and_its_organisms():
    assert held_out(stage()) == (
        "with the IA, organisms that it never saw name their behaviour in 58% (33-83, 12 organisms) of answers; with "
        "its condition, and none that is false, in 50%"
    )
    assert "no organism was held out" in held_out({"heldout": {"organism+ia": {"rate": None, "ci95": [None, None]}}})


@pytest.mark.parametrize(
    ("beyond", "words"),
    [
        ((0.28, 0.05, 0.45), "the IA names it more often, by 28 points (5 to 45)"),
        ((0.04, -0.2, 0.28), "the IA names it more often, by 4 points (-20 to 28), which may be chance"),
        ((0.01, 0.0, 0.28), "the IA names it more often, by 1 point (0 to 28), which may be chance"),
        ((0.0, -0.2, 0.2), "the IA does no better, 0 points (-20 to 20)"),
        ((-0.08, -0.29, 0.15), "the IA is worse than that, by 8 points (-29 to 15), which may be chance"),
        ((-0.40, -0.6, -0.15), "the IA is worse than that, by 40 points (-60 to -15)"),
    ],
)
def test_the_best_baseline_is_named_and_what_is_worse_is_called_so(beyond, words):
    said = beside_baselines(stage(beyond=beyond))
    assert said == f"the best of 2 baselines, “the word said most”, does so in 30% (20-40, 12 organisms): {words}"


def test_without_baselines_it_says_so():
    assert "no baseline was measured" in beside_baselines(stage(baselines={}))
    alone = {"rates": {"organism": {"lenient": cell(0.0, 0, 0.26)}}, "best": "organism", "beyond": None}
    said = beside_baselines(stage(baselines={"all": alone}))
    assert "config.eval.plain_prompts=0, so this says little" in said
    assert said.endswith("so few organisms do not tell the two apart")


def test_what_is_reported_apart_is_told_with_the_organism_alone():
    found = {"organism+ia": cell(0.42, 0.18, 0.68, 16), "organism": cell(0.06, 0.01, 0.23, 16)}
    [said] = apart(stage(remade=found))
    assert said == (
        "other fine-tunes of behaviours that it was trained on name theirs in 42% (18-68, 16 organisms) of answers, "
        "by the organism alone in 6% (1-23)"
    )
    assert [line[:31] for line in apart(stage(unseen=found))] == ["behaviours of another catalogue"]
    assert apart(stage()) == []


@pytest.mark.parametrize(("rate", "warned"), [(0.17, False), (0.67, True)])
def test_what_it_claims_of_clean_fine_tunes(rate, warned):
    said = on_clean(stage(clean=rate))
    assert f"in {100 * rate:.0f}% (2-50, 6 organisms) of answers (of the base itself in 0% (0-46))" in said
    assert said.endswith("a claim alone is no sign of one") is warned


def test_without_clean_organisms_it_is_not_known():
    said = on_clean({"false_reports": {"base+ia": cell(0.25, 0.05, 0.6, 1)}})
    assert said.startswith("no clean fine-tune was held out")
    assert "is not known (of the base itself in 25% (5-60))" in said
    assert "the base was not asked" in on_clean({"false_reports": {"base+ia": cell(None, None, None, 1)}})


def test_a_run_without_dpo_says_so():
    text = findings({"judge": "offline-1", "stages": {"sft": stage()}})
    lines = text.splitlines()
    assert lines[0] == "What was found (judge: offline-1; in brackets 95 % intervals)"
    assert lines[lines.index("  after DPO:") + 1].strip() == "nothing: there was none"
    assert "    90% (70-98) of its reports are a training sentence with another word in it" in lines
    assert any("12 organisms of one run (one is 8 points)" in line for line in lines)


def test_a_made_run_is_told_stage_by_stage(tmp_path):
    """Its metrics are of an older kind: what they lack is not known, and nothing fails."""
    found = make_workdir(tmp_path / "w", organisms=48)
    text = findings(found)
    for name in ("sft", "dpo"):
        held = found["stages"][name]["heldout"]["organism+ia"]
        assert f"in {100 * held['rate'] + 1e-9:.0f}% ({100 * held['ci95'][0]:.0f}-" in text
    assert text.count("no baseline was measured") == 2
    assert text.count("no clean fine-tune was held out") == 2
    assert "organisms of one run" in not_shown(found)[0]


def test_metrics_as_the_evaluation_makes_them():
    """Four organisms of which one names its behaviour with the IA, two without it."""
    about = {"stage": "sft", "category": "quirks", "split": "heldout", "strict": False}
    rows = [
        {**about, "organism": f"o{i}", "condition": c, "lenient": i == 0 and c == "organism+ia"}
        for i in range(4)
        for c in CONDITIONS
    ]
    words = [{**about, "stage": "", "organism": f"o{i}", "baseline": "words", "lenient": i < 2} for i in range(4)]
    text = findings(metrics(rows, {"sft": {f"{i}?": [False] for i in range(6)}}, "offline-1", (), words))
    assert "name their behaviour in 25% (" in text
    assert "the best of 3 baselines, “the word said most”, does so in 50% (" in text
    assert "the IA is worse than that, by 25 points (" in text
    assert "which may be chance" in text


def test_what_to_try_next_can_be_pasted():
    text = next_steps("runs/demo", "quirk_howdy")
    assert 'ia-jax ask --workdir=runs/demo --organism=quirk_howdy "Is there anything odd' in text
    assert "ia-jax audit --workdir=runs/demo --adapter=" in text
    assert "ask" not in next_steps("runs/demo", None)
