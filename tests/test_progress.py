"""Lines in a log, where nobody watches a bar."""

import io
import sys

import numpy as np
import pytest

from ia_jax import progress as module
from ia_jax.progress import EVERY, Lines, Pace, progress
from ia_jax.training.loop import _record, scalars_of


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def log():
    clock, stream = Clock(), io.StringIO()
    return clock, Pace(clock), stream


def test_a_line_now_and_then_with_time_left(log):
    clock, pace, stream = log
    with Lines(40, "sft", 10, pace, stream) as bar:
        clock.now += 25  # the first step waits for the compiler, and says nothing of those to come
        bar.update()
        for step in range(12, 21):
            clock.now += 10
            bar.set_postfix_str(f"loss {step / 10:.3f}")
            bar.update()
    # Due at 30 s (25 + 10), and 30 s later each time; 10 s a step.
    assert stream.getvalue().splitlines() == [
        "sft: 12 of 40, loss 1.200, about 4 min 40 s left",
        "sft: 15 of 40, loss 1.500, about 4 min 10 s left",
        "sft: 18 of 40, loss 1.800, about 3 min 40 s left",
    ]


def test_short_pieces_of_work_share_the_lines(log):
    clock, pace, stream = log
    for name in "abcdefg":
        with Lines(2, name, 0, pace, stream) as bar:
            for _ in range(2):
                clock.now += 8
                bar.update()
    assert stream.getvalue().splitlines() == ["b: 2 of 2", "d: 2 of 2", "f: 2 of 2"]


def test_one_step_that_takes_longer_is_told_at_its_end(log):
    clock, pace, stream = log
    bar = Lines(3, "organisms 1/8", 0, pace, stream)
    for _ in range(3):
        clock.now += 2 * EVERY
        bar.update()
    assert [line.split(", ") for line in stream.getvalue().splitlines()] == [
        ["organisms 1/8: 1 of 3"],
        ["organisms 1/8: 2 of 3", "about 1 min 0 s left"],
        ["organisms 1/8: 3 of 3"],
    ]


def test_the_loss_is_that_of_the_step(log):
    clock, pace, stream = log

    class Recorder:
        stage = "sft"

        def write(self, *args):
            pass

    bar = Lines(9, "sft", 0, pace, stream)
    for number in range(1, 4):
        clock.now += EVERY
        _record(Recorder(), bar, number, {"loss": np.float32(number)}, scalars_of, 0)
    assert [line.split(", ")[:2] for line in stream.getvalue().splitlines()] == [
        [f"sft: {n} of 9", f"loss {n}.000"] for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, log, terminal):
    clock, pace, stream = log
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "_PACE", pace)
    with progress(5, "dpo") as bar:
        clock.now += EVERY
        bar.update()
        if terminal:
            bar.refresh()
    said = stream.getvalue()
    assert said == "dpo: 1 of 5\n" if not terminal else "dpo:  20%|" in said
