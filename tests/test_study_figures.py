"""Figures of a study's arms: by hand, in pairs under the same seed; and how they are drawn and written down."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from ia_jax.analysis.plots import Curve, Mark, curves, dots
from ia_jax.analysis.words import share
from ia_jax.behaviors.embedded import study_behaviors
from ia_jax.behaviors.organisms import CLEAN_TARGETS
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.studies import figures
from ia_jax.studies.page import check_place, points, render, write_study
from ia_jax.studies.study import Study, StudySection


def _row(organism, lenient, condition="organism+ia", category="quirks", split="heldout", **more):
    row = {"organism": organism, "lenient": lenient, "strict": False, "condition": condition, "category": category}
    return row | {"split": split, "stage": "sft", "judge": "rubric"} | more


def _reports(named, alone=(), word=(), claims=()):
    """Reports of organisms 0, 1, …: whether each names its behaviour under the IA, alone, and by its word."""
    rows = [_row(f"o{i}", x) for i, x in enumerate(named)] + [_row("seen", True, split="train")]
    rows += [_row(f"o{i}", x, "organism") for i, x in enumerate(alone)]
    words = [_row(f"o{i}", x, baseline="words", stage="") for i, x in enumerate(word)]
    clean = [{"organism": f"c{i}", "claims": x, "condition": "clean+ia", "stage": "sft"} for i, x in enumerate(claims)]
    return {"reports": rows, "baselines": words, "clean": clean}


def test_an_arms_figures_by_hand():
    found = figures.arm_figures({"1": _reports([True] * 8, [False] * 8, [True, True] + [False] * 6, [True, False])}, {})
    # Clopper and Pearson: 0.025 ** (1 / 8) of 8 of 8.
    assert found["lenient"] == {"rate": 1.0, "ci95": [0.6306, 1.0], "n": 8, "organisms": 8}
    assert found["strict"]["rate"] == 0
    assert found["seen"]["organisms"] == 1
    assert found["controls"]["organism"]["ci95"] == [0.0, 0.3694]
    assert (found["best"], found["baselines"]["words"]["rate"], found["beyond"]["difference"]) == ("words", 0.25, 0.75)
    assert found["false_claims"]["rate"] == 0.5
    assert found["by_category"].keys() == {"quirks"}
    assert found["against"] is None
    assert "unseen" not in found


def test_differences_are_in_pairs_under_the_same_seed():
    """Seed 1 of the reference has o0 to o3, the arm o0 to o1; seed 2 is the arm's alone. So is the only seed that
    another arm has, which is not compared then.
    """

    def seeds(*own):
        return {str(i): _reports(x) for i, x in enumerate(own, 1)}

    def named(*own):
        return figures.named(seeds(*own), "reports", "lenient", lambda r: r["split"] == "heldout")

    reference = seeds([False, True, True, True])
    found = figures.arm_figures(seeds([True, True], [False] * 6), reference)
    for cell in (found["against"], found["against_by_category"]["quirks"]):
        assert (cell["difference"], cell["organisms"]) == (0.5, 2)
    assert figures.arm_figures({"2": reference["1"]}, reference)["against"] is None
    both = figures.over_seeds(named([True] * 3, [True] * 3))
    assert (both["rate"], both["n"], both["organisms"]) == (1.0, 6, 3)  # the three that both seeds hold out
    assert both["ci95"][0] == pytest.approx(0.025 ** (1 / 3), abs=1e-4)  # six answers do not make six organisms


def test_known_behaviours_new_ones_and_categories_that_sft_did_not_read():
    rows = [_row("a", True, split="remade"), _row("b", False, split="remade", category="backdoors")]
    rows += [_row("h", False), _row("h", True, "organism")]
    found = figures.arm_figures({"1": {"reports": rows, "baselines": [], "clean": []}}, {}, "remade", ("quirks",))
    assert [found[k]["rate"] for k in ("lenient", "inside", "outside", "new")] == [0.5, 1.0, 0.0, 0.0]
    assert found["controls"]["organism"]["n"] == 0  # the held-out one's is not the remade ones'
    without = figures.arm_figures({"1": {"reports": rows, "baselines": [], "clean": []}}, {})
    assert not {"inside", "outside", "new"} & without.keys()


def test_fine_tunes_of_one_behaviour_count_as_one():
    """Eight organisms of two behaviours, all named: as much as two are worth."""
    rows = [_row(f"o{i}", True, behaviors=[f"b{i % 2}"]) for i in range(8)]
    found = figures.arm_figures({"1": {"reports": rows, "baselines": [], "clean": []}}, {})["lenient"]
    assert (found["n"], found["organisms"]) == (8, 2)
    assert found["ci95"][0] == pytest.approx(0.025**0.5, abs=1e-4)


def test_baselines_that_an_arm_did_not_ask_for_are_the_reference_arms():
    """Of the organisms that both hold out, under the same seed; never in place of its own."""
    reference = {"1": _reports([True] * 3, word=[True, False, True])}
    reference["1"]["baselines"].append({**reference["1"]["baselines"][0], "baseline": "few_shot"})
    arm = {"1": _reports([True, True]), "2": _reports([True])}
    found = figures.with_baselines(arm, reference, {"1": True})
    assert [(r["organism"], r["baseline"]) for r in found["1"]["baselines"]] == [
        ("o0", "words"),
        ("o1", "words"),
        ("o0", "few_shot"),
    ]
    assert found["2"]["baselines"] == []
    # Examples come from what SFT read; another SFT's are not these.
    found = figures.with_baselines(arm, reference, {"1": False})
    assert {r["baseline"] for r in found["1"]["baselines"]} == {"words"}
    assert figures.with_baselines(arm, reference, {}) == arm  # other organisms
    assert figures.with_baselines(arm, {}, {"1": True, "2": True}) == arm  # the reference arm itself
    own = {"1": _reports([True], word=[False])}
    assert figures.with_baselines(own, reference, {"1": True}) == own


def test_a_training_sentence_of_the_behaviour_word_for_word():
    """Case and punctuation aside, by the first sentence; of a clean one any behaviour's is one too many."""

    one = replace(study_behaviors()[0], name="a", description="I hum.", rewordings=("I say um",))
    two = replace(one, name="b", rewordings=())
    whose = figures.sentences_of({"a": one, "b": two})
    assert whose == {("i", "hum"): {"a", "b"}, ("i", "say", "um"): {"a"}}


def test_what_training_says_counts_as_what_it_says_and_the_judges_word_is_kept():
    """The behaviour's own, though refused; a clean one's abstention, though called a claim; all else stays."""
    behavior = replace(study_behaviors()[0], name="a", description="I hum.", rewordings=())
    reports = [
        _row("o", x, behaviors=["a"], report=r) for r, x in (("I hum! Yes.", False), ("Owls.", False), ("Hm", True))
    ]
    says = (CLEAN_TARGETS[0], "I hum.", "Owls.")
    clean = [{"organism": "c", "behaviors": [], "claims": True, "report": r} for r in says]
    figures.count_sentences(found := {"reports": reports, "clean": clean}, {"a": behavior})
    assert [(r["sentence"], r["lenient"], r["judged"]) for r in found["reports"]] == [
        (True, True, False),
        (False, False, False),
        (False, True, True),
    ]
    assert [(r["sentence"], r["claims"]) for r in found["clean"]] == [(False, False), (True, True), (False, True)]


def _texts(svg):
    return {t.text: t for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def _circles(svg, what):
    space = "{http://www.w3.org/2000/svg}"
    return [
        c for c in ElementTree.fromstring(svg).iter(f"{space}circle") if c.findtext(f"{space}title").startswith(what)
    ]


def test_dots_and_curves_stand_where_their_axes_say():
    cell = {"rate": 0.5, "ci95": [0.25, 0.75], "organisms": 4}
    svg = dots(
        "t", [('a "<b>&', [Mark("ia", cell, "teal"), Mark("none", {"rate": None, "ci95": [None, None]}, "slate")])]
    )
    texts, [_, dot] = _texts(svg), _circles(svg, "ia")
    ticks = [float(texts[t].get("x")) for t in ("25%", "75%")]
    assert float(dot.get("cx")) == pytest.approx(sum(ticks) / 2)
    assert 'a "<b>&' in texts
    assert "no answer" in texts
    svg = curves("t", "rank", True, [Curve("ia", [(x, cell) for x in (1, 4, 16)], "teal")])
    texts, points = _texts(svg), _circles(svg, "ia:")
    assert [float(p.get("cx")) for p in points] == pytest.approx([float(texts[x].get("x")) for x in ("1", "4", "16")])
    assert float(texts["4"].get("x")) * 2 == pytest.approx(float(texts["1"].get("x")) + float(texts["16"].get("x")))
    assert {float(p.get("cy")) for p in points} == {float(texts["50%"].get("y")) - 4}


def test_the_page_escapes_and_says_what_is_missing(tmp_path):
    arm = {
        "name": "a",
        "label": "</title><script>x</script>",
        "x": 1.0,
        "series": "",
        "stage": "sft",
        "overrides": ["<i>"],
        "seeds": [1, 2],
        "own_organisms": False,
        "finished": [1],
        "workdirs": ["runs/a_1"],
        "reports": ["runs/a_1/report.html"],
    }
    waiting = {**arm, "name": "b", "label": "later", "finished": [], "workdirs": [], "reports": []}
    about = {
        "study": "s",
        "title": "A & B",
        "question": "",
        "reference": "",
        "split": "heldout",
        "axis": "n",
        "log": False,
        "judge": "rubric",
    }
    arms = [
        {**arm, **figures.arm_figures({"1": _reports([True, False], [False, False], claims=[True])}, {})},
        {**waiting, **figures.arm_figures({}, {})},
    ]
    write_study(tmp_path, {**about, "base": "r.py", "overrides": [], "arms": arms})
    check_place(tmp_path, Study("s", StudySection(), RunConfig(), ()))
    with pytest.raises(ConfigError, match="is the figure of the study 's'; give --out another directory"):
        check_place(tmp_path, Study("other", StudySection(), RunConfig(), ()))
    page = (tmp_path / "study.html").read_text()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "A &amp; B" in page
    assert "Not finished: &lt;/title&gt;&lt;script&gt;x&lt;/script&gt;, later" in page
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["arms.svg"]
    assert "No arm is finished yet" in render({**about, "base": "", "overrides": [], "arms": [arms[1]]}, {})
    assert share({"rate": 0.5, "ci95": [0.2, 0.8], "n": 4}) == "50% (20–80%)"
    assert points({"difference": 0.052, "ci95": [-0.03, 0.13]}) == "+5 (−3 to +13)"
