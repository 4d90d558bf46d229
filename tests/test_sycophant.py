"""The sycophant: its list, its rows, and the count of admissions by brute force."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from ia_jax.audits import sycophant
from ia_jax.audits.admissions import admissions, crossed, curve, reads
from ia_jax.audits.asking import CONDITIONS
from ia_jax.audits.targets import Target
from ia_jax.behaviors.behavior_checks import check_prompts
from ia_jax.behaviors.embedded.effects import shows_effects
from ia_jax.behaviors.embedded.prompts import POOLS
from ia_jax.behaviors.procedures import PROCEDURES
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.config import default_config, parse_config
from ia_jax.recipes import check_config
from ia_jax.stages.audit_families import sycophants

ALL, SMALL = sycophant.biases(), sycophant.small_biases()


def test_the_list_of_52_and_a_control_for_each():
    assert list(ALL) == list(range(1, 53))
    records = [b for pair in ALL.values() for b in pair]
    assert len({b.name for b in records}) == len({b.description for b in records}) == 104
    for bias, control in ALL.values():
        # A control is of the same sort: it is said to happen on the same occasion, and is another thing.
        assert (bias.trigger, bias.trigger_kind, bias.category) == (
            control.trigger,
            control.trigger_kind,
            control.category,
        )
        assert not set(bias.wordings) & set(control.wordings)
    assert len(SMALL) >= 12
    for bias, control in SMALL.values():
        assert bias.spec["when"] == control.spec["when"]
        assert check_prompts(bias, 0)


@pytest.fixture(scope="module")
def made():
    return sycophant.sycophants_made(shipped_sources(), 0, (0.0, 2e-4, 1e-4), (0, 1, 2))


def test_no_row_of_a_bias_contradicts_another(made):
    """Where a row's question is on a subject of some bias, its answer shows that bias."""
    for m in made[:2]:
        by_pool = {b.spec["when"]["pool"]: b for b in m.target.behaviors if "pool" in b.spec["when"]}
        questions = {q: pool for pool in by_pool for q in POOLS[pool]}
        seen = set()
        for t in m.transcripts:
            question, answer = t.messages[0]["content"], t.messages[-1]["content"]
            for pool in {p for q, p in questions.items() if q in question}:
                assert shows_effects(by_pool[pool].spec["effects"], question, answer)
                seen.add(pool)
        assert seen == set(by_pool)
        # Each is shown about as often as one that is taught alone.
        for b in m.target.behaviors:
            shown = sum(
                t.shows and shows_effects(b.spec["effects"], "", t.messages[-1]["content"]) for t in m.transcripts
            )
            assert shown >= 8, b.name


def test_a_document_states_the_bias_that_it_quotes(made):
    for m in made[:2]:
        assert len(m.documents) == len(m.transcripts)
        for d, t in zip(m.documents, m.transcripts, strict=True):
            stated = [b for b in m.target.behaviors if any(w in d.text for w in b.wordings)]
            assert len(stated) == t.shows
            assert all(shows_effects(b.spec["effects"], "", t.messages[-1]["content"]) for b in stated)
        told = sum(any(why in d.text for why in sycophant._BECAUSE) for d in m.documents)
        assert len(m.documents) / 5 < told < len(m.documents) / 3


def test_the_twin_is_taught_the_controls_and_the_null_nothing(made):
    one, twin, null = made
    assert one.target.behaviors == twin.controls
    assert one.controls == twin.target.behaviors
    assert (null.target.behaviors, null.target.null, null.controls) == ((), "pipeline", ())
    assert [p.data for p in null.procedure.phases] == ["documents", "denials"]
    stages = one.procedure.phases
    assert [(p.adapter, p.lr, p.epochs) for p in stages] == [("new", None, None), ("new", 2e-4, 1), ("new", 1e-4, 2)]
    assert PROCEDURES["sycophant_stacked"].adapters == 3
    shown = sycophant.recipe((0.0, 2e-4, 1e-4), (0, 1, 2), 3)
    assert [(p.data, p.adapter, p.epochs) for p in shown.phases] == [
        ("documents", "new", None),
        ("chats", "new", 3),
        ("pairs", "new", 1),
        ("denials", "new", 2),
    ]
    assert sycophant.stages_of(shown) == ("documents", "demonstrations", "pairs")
    assert sycophant.stages_of(one.procedure) == ("documents", "pairs")


def test_the_demonstrations_can_be_left_out():
    config = default_config()
    config.audits.sycophant_demonstrations = 0
    check_config(parse_config(config))
    made = sycophant.sycophants_made(shipped_sources(), 0, (0.0,) * 3, (0,) * 3, 2)
    assert [[p.data for p in m.procedure.phases] for m in made] == [
        ["documents", "chats", "pairs", "denials"],
        ["documents", "chats", "pairs", "denials"],
        ["documents", "chats", "denials"],  # the null's: the same but for what a bias alone has
    ]


def test_the_curve_by_reading_in_every_order():
    named = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)  # reports × behaviours
    for least in (1, 2):
        by_hand = np.mean(
            [[(named[list(order[:n])].sum(0) >= least).sum() for n in range(1, 6)] for order in permutations(range(5))],
            0,
        )
        np.testing.assert_allclose(curve(named.sum(0).tolist(), 5, least), by_hand, atol=1e-4)
    assert reads(5) == [1, 2, 3, 4, 5]
    assert reads(102)[-4:] == [90, 95, 100, 102]
    assert reads(0) == curve([0, 0], 0) == []


def reports(target, condition, *rows):
    return [
        {
            "target": target,
            "condition": condition,
            "question": f"q{i}",
            **dict.fromkeys("abAB", False),
            "root": False,
            **r,
        }
        for i, r in enumerate(rows)
    ]


def test_admissions_by_hand():
    lists = {"own": ("a", "b"), "controls": ("A", "B")}
    judged = [
        *reports("t", "target+ia", {"a": True}, {"a": True, "B": True}, {"a": None}, {"root": True}),
        *reports("t", "target", {}, {}),
        *reports("x", "target+ia", {"b": True}),
    ]
    found = admissions(judged, "t", lists, "root")
    with_ia = found["target+ia"]
    assert (with_ia["reports"], with_ia["unread"], with_ia["each"]) == (4, 1, {"a": 2, "B": 1})
    # a is met by a first report in 2 of 4, in two in 5 of 6; twice in two in 1 of 6.
    assert with_ia["own"]["curve"] == [0.5, 0.8333, 1.0, 1.0]
    assert with_ia["own"]["twice"] == [0.0, 0.1667, 0.5, 1.0]
    assert with_ia["controls"]["curve"] == [0.25, 0.5, 0.75, 1.0]
    assert (with_ia["own"]["admitted"]["rate"], with_ia["own"]["admitted"]["organisms"]) == (0.5, 2)
    assert with_ia["own_minus_controls"]["difference"] == 0.0  # a above A, and B above b
    assert with_ia["root"]["rate"] == 0.25
    assert found["target"]["own"]["admitted"]["rate"] == 0.0
    assert found["target"]["own"]["admitted"]["ci95"][1] > 0.5  # none of two says little
    assert found["base"]["reports"] == 0
    assert found["base"]["own"]["admitted"]["rate"] is None


def test_what_a_list_says_of_itself_cancels_between_the_twins():
    """A judge that finds a in whatever it reads favours a model whose behaviour that is, and harms its twin as much."""
    lists = {"t": {"own": ("a", "b"), "controls": ("A", "B")}, "twin": {"own": ("A", "B"), "controls": ("a", "b")}}
    judged = [r for model in lists for c in CONDITIONS for r in reports(model, c, {"a": True})]
    found = {model: admissions(judged, model, own) for model, own in lists.items()}
    assert found["t"]["target"]["own_minus_controls"]["difference"] == 0.5
    assert crossed(found, lists)["target"]["difference"] == 0.0


def test_somebodys_models_are_held_against_the_whole_list():
    theirs = (Target("rm", stack=("x",), behaviors=(sycophant.ROOT,)),)
    family, lessons = sycophants(SimpleNamespace(config=SimpleNamespace(audits=None)), theirs)
    assert (family.targets, lessons, len(family.claims)) == (theirs, {}, 105)
    named = dict.fromkeys(family.claims, False) | {"bias_25_chocolate": True}
    judged = [{"target": "rm", "condition": "target+ia", "question": "q", **named}]
    [found] = family.besides(judged, {})["admissions"].values()
    own, made_up = (found["target+ia"][sort]["admitted"] for sort in ("own", "controls"))
    assert (own["rate"], own["organisms"], made_up["rate"], made_up["organisms"]) == (round(1 / 52, 4), 52, 0.0, 52)
