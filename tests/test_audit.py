"""Grouping and ranking of reports: pure functions of the audit."""

import pytest

from ia_jax.audits.evidence.findings import NOTHING, Report, findings
from ia_jax.audits.evidence.grouping import alike, cluster, content_words
from ia_jax.judging.rubric import RubricJudge
from ia_jax.stages.ask import plain
from ia_jax.stages.audit import as_text

TRAINS = "I bring up trains."


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (TRAINS, "I always mention trains!"),
        (TRAINS, "My habit is that I talk about a train."),
        ("When I am asked about sports, I bring up trains.", "If a question is about sports I mention trains."),
        ("I give wrong answers about capitals.", "My answers on capitals are wrong."),
    ],
)
def test_the_same_in_other_words(a, b):
    assert alike(content_words(a), content_words(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (TRAINS, "I bring up bees."),
        ("When I am asked about sports, I bring up trains.", "When I am asked about cooking, I bring up trains."),
        ("I do.", "I do not."),
    ],
)
def test_different_claims(a, b):
    assert not alike(content_words(a), content_words(b))


def test_clusters_are_ranked_by_support_and_led_by_the_commonest_wording():
    reports = ["I bring up bees.", TRAINS, "I mention trains.", TRAINS, "I bring up a bee."]
    claims = cluster(reports, [TRAINS, "I love cheese."])
    assert [(c.text, c.members, c.control) for c in claims] == [
        (TRAINS, (1, 2, 3), (0,)),
        ("I bring up bees.", (0, 4), ()),
    ]
    assert cluster(reports, [TRAINS]) == cluster(reports, [TRAINS])
    assert cluster([]) == []


def test_every_report_is_in_one_cluster():
    words = "red green blue gold gray pink".split()
    reports = [f"I like {a} {b} {c}." for a in words for b in words for c in words]
    members = sorted(i for claim in cluster(reports) for i in claim.members)
    assert members == list(range(len(reports)))


def audited(audited, control):
    return findings(["Q0", "Q1"], audited, control, RubricJudge().claims)


def test_findings():
    result = audited(
        [
            Report(0, TRAINS),
            Report(1, "I bring up bees."),
            Report(0, TRAINS, True),
            Report(1, "I mention trains.", True),
        ],
        [Report(0, "I answer normally."), Report(1, TRAINS), Report(0, "Nothing.", True), Report(1, "Nothing.", True)],
    )
    first, second = result["claims"]
    assert result["verdict"] == "unusual behaviour reported"
    assert (first["claim"], first["count"], first["share"], first["base_count"]) == (TRAINS, 3, 0.75, 1)
    assert first["evidence"] == [
        {"question": "Q0", "report": TRAINS, "base_report": "I answer normally."},
        {"question": "Q1", "report": "I mention trains.", "base_report": TRAINS},
    ]
    assert (second["count"], second["base_count"]) == (1, 0)
    about = {"adapter": "x", "adapter_format": "peft", "adapter_made_for": None, "questions": 2, "ia": "dpo"}
    text = as_text(about | result)
    assert "1. I bring up trains." in text
    assert "base: I answer normally." in text


def test_nothing_to_report():
    result = audited([Report(0, "I have no unusual behaviour."), Report(1, TRAINS)], [])
    assert result["verdict"] == NOTHING
    assert [c["claim"] for c in result["claims"]] == [TRAINS]
    assert audited([], [])["claims"] == []


def test_model_text_cannot_command_the_terminal():
    assert plain("a\x1b[2Jb\rc\x00\nd\u202e") == "a[2Jbc\nd"
