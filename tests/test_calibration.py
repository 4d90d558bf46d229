"""Probabilities from evidence: simulations with a known truth, scikit-learn, and cases by hand."""

import dataclasses
import json

import numpy as np
import pytest

from ia_jax.audits.evidence.calibrating import calibrate, threshold_nulls
from ia_jax.audits.evidence.calibrating import figures_on as figures_of
from ia_jax.audits.evidence.calibration import (
    CONFIRMED,
    NOTHING,
    REPORTED,
    UNSURE,
    Calibration,
    Row,
    judged,
    overall,
)
from ia_jax.audits.evidence.calibration_words import in_words
from ia_jax.errors import ConfigError
from ia_jax.evals import calibration as stats

SORTS = ("own", "style", "domain", "documents")
IDENTITY = {"ia": "sft", "ia_hash": "aaaa", "base": "tiny", "base_fingerprint": "ffff"}


def simulated(organisms=48, nulls=60, seed=0, shift=0.0):
    """Rows whose evidence says as much as it should: a right claim's contrast is drawn around 2, a wrong one's around 0
    (a null's around `shift`), the support says nothing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    models = {f"o{i}": "abcd"[i % 4] for i in range(organisms)}
    clean = {f"n{i}": SORTS[i % 4] for i in range(nulls)}
    for name, group in {**models, **clean}.items():
        for k in range(2):
            right = name in models and k == 0
            contrast = rng.normal(2.0 if right else shift if name in clean else 0.0)
            support = rng.uniform()
            values = {"support": support, "support_beyond": support, "privilege": rng.normal(), "privilege_nulls": 0.1}
            values |= {"contrast": contrast, "contrast_nulls": contrast, "contrast_rank": 0.5}
            rows.append(Row(name, group, name in clean, f"claim {k}", right, values))
    return rows, models, clean


def made(rows, models, nulls, **more):
    return calibrate(
        rows, models, nulls, **{"alpha": 0.05, "identity": IDENTITY, "made_of": {}, "measure": False} | more
    )


def test_probabilities_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 3)), rng.uniform(size=80) < 0.4
    ours = stats.fit(x, y.tolist(), [str(i) for i in range(80)])
    theirs = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    np.testing.assert_allclose(ours.probability(x), theirs.predict_proba(x)[:, 1], atol=1e-3)


def test_threshold_by_hand_and_its_promise_in_simulation():
    # 19 scores, alpha 5 %: the ceil(20 * 0.95) = 19th, the largest; 10 %: the 18th.
    scores = [i / 100 for i in range(19)]
    assert stats.conformal_threshold(scores, 0.05) == 0.18
    assert stats.conformal_threshold(scores, 0.1) == 0.17
    assert (stats.needed(0.05), stats.needed(0.1)) == (19, 9)
    with pytest.raises(ConfigError, match="18 nulls are too few"):
        stats.conformal_threshold(scores[:-1], 0.05)
    rng = np.random.default_rng(2)
    over = [rng.uniform() > stats.conformal_threshold(rng.uniform(size=19), 0.1) for _ in range(4000)]
    assert 0.085 < np.mean(over) < 0.115  # exactly 1/10 in expectation for 19 scores


def test_measures_by_hand():
    p, right = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    assert stats.auroc(p, right) == 0.75  # of 4 pairs right over wrong: .9>.8, .9>.1, .3>.1
    assert stats.brier(p, right) == pytest.approx((0.01 + 0.64 + 0.49 + 0.01) / 4)
    assert stats.expected_error(p, right, 2) == pytest.approx(0.5 * abs(0.5 - 0.85) + 0.5 * abs(0.5 - 0.2))
    curve = stats.risk_coverage(p, right, list("abcd"), 4)
    # The surest are .9 (told right, is), .1 (told wrong, is), .8 (told right, is not), .3 (told wrong, is not).
    assert [c["risk"]["rate"] for c in curve["curve"]] == [0, 0, pytest.approx(1 / 3, abs=1e-4), 0.5]
    assert curve["area"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_intervals_hold_the_truth_and_have_a_width():
    rng, inside = np.random.default_rng(3), 0
    for _ in range(40):  # 30 models of 3 claims each that are all alike: the worst case for counting claims
        p = np.repeat(rng.uniform(size=30), 3)
        right = np.repeat(rng.uniform(size=30) < p[::3], 3)
        low, high = stats.measured(stats.brier, p, right, np.repeat(np.arange(30), 3).astype(str))["ci95"]
        inside += low <= 1 / 6 <= high  # E[p(1-p)] for uniform p
    assert inside >= 34
    perfect = stats.measured(stats.auroc, np.array([0.9, 0.8, 0.1, 0.2]), np.array([1, 1, 0, 0], bool), list("abcd"))
    assert perfect["rate"] == 1.0
    assert perfect["ci95"][0] < 0.5  # of two right and two wrong models nothing is known


@pytest.mark.parametrize("kind", ["logistic", "isotonic"])
def test_the_truth_of_a_simulation_is_found(kind):
    from sklearn.metrics import roc_auc_score

    rows, models, nulls = simulated()
    found = made(rows, models, nulls, kind=kind, measure=True)
    truth = roc_auc_score([r.right for r in rows], [r.values["contrast"] for r in rows])
    assert found.kinds == ("support", "contrast", "privilege")  # what not every row has is left out
    for name in ("in_distribution", "left_out"):
        figures = found.figures[name]
        assert figures["auroc"]["ci95"][0] < truth < figures["auroc"]["ci95"][1]
        assert figures["auroc"]["rate"] == pytest.approx(truth, abs=0.08)
        assert figures["false_reports"]["ci95"][0] <= 0.05
        assert figures["expected_calibration_error"]["rate"] < 0.12
        assert figures["too_few"] == []
    ablation = found.figures["ablation"]
    assert ablation["contrast"]["alone"]["rate"] > 0.8
    assert ablation["support"]["alone"]["rate"] < 0.65
    assert ablation["contrast"]["without"]["rate"] < 0.65
    # No evidence is a rule too: what a left-out category of right claims leaves behind is less sure, so below a half.
    assert ablation["nothing"]["alone"]["rate"] < 0.5
    assert ablation["nothing"]["without"] is None


def test_a_sort_that_differs_is_seen_when_it_is_left_out():
    """Nulls of one sort look like right claims: no fit that has not seen them can hold the rate there."""
    rows, models, nulls = simulated(seed=4)
    odd = SORTS[0]
    rows = [
        dataclasses.replace(r, values=r.values | {"contrast": 3.0, "contrast_nulls": 3.0}) if r.group == odd else r
        for r in rows
    ]
    figures = made(rows, models, nulls, measure=True).figures
    assert figures["left_out"]["false_reports"]["rate"] > 0.2 > figures["in_distribution"]["false_reports"]["rate"]


def test_what_nothing_like_it_was_seen_of_is_not_reported():
    """As an audit couldn't tell, a category whose evidence is far from all others' is not kept when it is left out."""
    rows, models, nulls = simulated()
    far = {"contrast": 99.0, "contrast_nulls": 99.0}
    rows = [dataclasses.replace(r, values=r.values | far) if r.group == "a" and r.right else r for r in rows]
    figures = made(rows, models, nulls, measure=True).figures
    left = figures["left_out"]
    assert figures["in_distribution"]["kept"]["rate"] - left["kept"]["rate"] > 0.2
    assert left["kept"]["rate"] == left["found"]["rate"]
    assert left["kept"]["organisms"] == 48


def test_the_threshold_rests_on_nulls_that_nothing_was_fitted_on():
    rows, models, nulls = simulated(nulls=30)
    resting = threshold_nulls(nulls)
    assert 19 <= len(resting) < 30
    # Whatever they claim, the fit stays as it is.
    other = [dataclasses.replace(r, values=dict.fromkeys(r.values, 9.9)) if r.model in resting else r for r in rows]
    assert made(rows, models, nulls).model == made(other, models, nulls).model
    with pytest.raises(ConfigError, match=r"11 nulls are too few.*19"):
        made(*simulated(nulls=18))
    with pytest.raises(ConfigError, match="are wrong: both right and wrong"):
        made([dataclasses.replace(r, right=False) for r in rows], models, nulls)


def test_with_just_enough_nulls_nothing_can_be_left_out():
    """Then it can be used, and not measured: its figures are empty, and say why."""
    rows, models, nulls = simulated(nulls=30)
    few = {n: f"s{i}" for i, n in enumerate(nulls)}
    while len(threshold_nulls(few)) > 19:
        few.popitem()
    rows = [dataclasses.replace(r, group=few.get(r.model, r.group)) for r in rows if not r.null or r.model in few]
    found = made(rows, models, few, measure=True)
    for name in ("in_distribution", "left_out"):
        assert found.figures[name]["too_few"]
        assert set(found.figures[name]) >= {"false_reports", "wrong_reports", "kept", "found"}
    found = dataclasses.replace(found, made_of={"claims": len(rows), "organisms": models, "nulls": few})
    assert "too few nulls are left" in in_words(found)


def test_verdicts():
    rows, models, nulls = simulated()
    found = made(rows, models, nulls)
    good = {**rows[0].values, "contrast": 3.0, "contrast_nulls": 3.0}
    sure = judged(found, good)
    assert sure.verdict == REPORTED
    assert sure.probability > found.threshold
    assert judged(found, good | {"deed": 0.5, "deed_rank": 0.001}).verdict == CONFIRMED
    assert judged(found, good | {"deed": 0.0, "deed_rank": 0.9}).verdict == REPORTED
    low = judged(found, good | {"contrast": -1.0, "contrast_nulls": -1.0})
    assert (low.verdict, low.p_null > 0.2) == (NOTHING, True)
    out = judged(found, good | {"contrast": 40.0})
    assert (out.verdict, out.probability) == (UNSURE, None)
    assert "contrast is 40.00" in out.why
    assert "contrast_rank" in judged(found, {k: v for k, v in good.items() if k != "contrast_rank"}).why
    assert judged(None, good).verdict == UNSURE
    assert overall([NOTHING, UNSURE, REPORTED]) == REPORTED
    assert overall([]) == NOTHING


def test_it_is_plain_json_for_one_ia_and_base(tmp_path):
    found, file = made(*simulated()), tmp_path / "calibration.json"
    found.save(file)
    again = Calibration.load(file)
    assert again.model == found.model
    assert judged(again, simulated()[0][0].values) == judged(found, simulated()[0][0].values)
    again.check(file, "sft", "aaaa", "tiny", "ffff")
    with pytest.raises(ConfigError, match="calibrated for the IA sft"):
        again.check(file, "dpo", "bbbb", "tiny", "ffff")
    with pytest.raises(ConfigError, match="on the base tiny, not other"):
        again.check(file, "sft", "aaaa", "other", "eeee")
    row = json.loads(file.read_text())
    for damage in ({"format": 9}, {"model": 3}, {"features": ["support"]}):
        file.write_text(json.dumps(row | damage))
        with pytest.raises(ConfigError, match=r"calibration\.json"):
            Calibration.load(file)


def test_a_finished_calibration_on_models_that_it_never_saw():
    found = made(*simulated())
    rows, models, nulls = simulated(20, 24, seed=5, shift=0.5)
    far = dataclasses.replace(rows[-1], values=rows[-1].values | {"contrast": 99.0})  # of the last null
    rows = [*rows[:-1], far]
    splits = {m: "remade" if i % 2 else "heldout" for i, m in enumerate(models)}
    test = figures_of(found, rows, models, nulls, splits)

    def reported(model, right=None):
        own = [judged(found, r.values) for r in rows if r.model == model and right in (None, r.right)]
        return any(v.verdict in (CONFIRMED, REPORTED) for v in own)

    def near(share):
        return pytest.approx(share, abs=1e-4)

    wanted = {n: reported(n) for n in nulls}
    assert 0 < sum(wanted.values()) < len(nulls)
    assert test["false_reports"]["rate"] == near(np.mean(list(wanted.values())))
    assert test["false_reports"]["organisms"] == 24
    for sort in SORTS:
        assert test["by_sort"][sort]["rate"] == near(np.mean([wanted[n] for n in nulls if nulls[n] == sort]))
    kept = {m: reported(m, right=True) for m in models}
    assert test["kept"]["rate"] == test["found"]["rate"] == near(np.mean(list(kept.values())))
    wrong = {m: reported(m, right=False) for m in models}
    assert test["wrong_reports"]["rate"] == near(np.mean(list(wrong.values())))
    loud = [dataclasses.replace(r, right=False) if r.model in ("o0", "o1") else r for r in rows]
    more = figures_of(found, loud, models, nulls, splits)["wrong_reports"]
    assert more["rate"] == near(np.mean([wrong[m] or (m in ("o0", "o1") and kept[m]) for m in models]))
    for split in ("heldout", "remade"):
        assert test["kept_by"][split]["rate"] == near(np.mean([kept[m] for m in models if splits[m] == split]))
    verdicts = [(r, judged(found, r.values)) for r in rows]
    unsure = {r.model for r, v in verdicts if v.verdict == UNSURE}
    assert far.model in unsure
    assert test["unsure"]["rate"] == near(len(unsure & models.keys()) / 20)
    assert test["unsure_nulls"]["rate"] == near(len(unsure & nulls.keys()) / 24)
    # What it can't tell is not counted as told to be wrong.
    told = [(r.right, v.probability) for r, v in verdicts if v.verdict != UNSURE]
    right, p = (np.array(x) for x in zip(*told, strict=True))
    assert test["auroc"]["rate"] == pytest.approx(stats.auroc(p, right), abs=1e-3)

    # One that makes none is among all organisms, and not among those whose claim could be kept.
    silent = [r for r in rows if not (r.model == "o0" and r.right)]
    of = figures_of(found, silent, models, nulls, splits)
    assert (of["kept"]["organisms"], of["found"]["organisms"]) == (19, 20)

    # A right claim of which it can't tell is not kept, and does not vanish from what could be.
    lost = next(i for i, r in enumerate(rows) if r.right and kept[r.model])
    rows[lost] = dataclasses.replace(rows[lost], values=rows[lost].values | {"contrast": 99.0})
    without = figures_of(found, rows, models, nulls, splits)["kept"]
    assert without["organisms"] == test["kept"]["organisms"]
    assert without["rate"] < test["kept"]["rate"]
