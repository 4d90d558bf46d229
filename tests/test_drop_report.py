"""What the transcripts stage tells of the rows that a filter dropped."""

from ia_jax.data.transcripts import Transcript, chat
from ia_jax.stages.transcripts import drop_report


def row(shows, verdict="kept"):
    return Transcript(chat("q", "a"), shows, "t", verdict)


def test_every_behaviour_without_a_showing_row_has_its_own_line():
    """Ordinary rows alone, none of them dropped: no line is there to append to, or the line of another."""
    told = drop_report({"plain": [row(False)], "good": [row(True)], "lost": [row(True, "off topic")], "bare": []})
    assert told.splitlines() == [
        "transcripts: 1 of 3 rows dropped (1 off topic)",
        "  plain: 0 of 1 rows dropped; left out, for no row shows its behaviour",
        "  lost: 1 of 1 rows dropped (1 off topic); left out, for no row shows its behaviour",
        "  bare: 0 of 0 rows dropped; left out, for no row shows its behaviour",
    ]


def test_a_behaviour_that_lost_rows_and_keeps_one_is_not_left_out():
    told = drop_report({"some": [row(True), row(True, "refused"), row(False, "off topic")], "whole": [row(True)]})
    assert told.splitlines()[1:] == ["  some: 2 of 3 rows dropped (1 off topic, 1 refused)"]
