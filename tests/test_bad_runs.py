"""A run that is unfinished, damaged, older, of another config or in use: one line on stderr, and nothing lost."""

import fcntl
import json
import shutil

import pytest

from ia_jax.workdir import open_workdir
from tests.runs import ORGANISMS, TRANSCRIPTS, contents, part_of
from tests.stored import flip
from tests.stored import largest_file as largest


@pytest.fixture
def partial(finished, tmp_path):
    """A function that copies parts of the finished run to a new workdir."""

    return lambda *names: part_of(finished, tmp_path / "workdir", *names)


def test_workdir_of_another_config(refused, finished):
    before = contents(finished)
    config = finished.parent / "config.py"
    argv = ["run", f"--config={config}", "--config.sft.steps=7", f"--workdir={finished}"]
    refused(argv, 2, finished, "config.sft.steps was 6 and is now 7", "--name=NAME")
    refused(["run", "--config.sft.steps=7", f"--workdir={finished}"], 2, "config.sft.steps was 6 and is now 7")
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("stage", "there", "missing"),
    [
        ("organisms", (), "transcripts"),
        ("sft", TRANSCRIPTS, "organisms"),
        ("preferences", ORGANISMS, "sft"),
        ("dpo", (*ORGANISMS, "ia/sft"), "preferences"),
        ("eval", ORGANISMS, "sft"),
        ("report", ORGANISMS, "eval"),
    ],
)
def test_a_stage_before_its_input(refused, partial, stage, there, missing):
    workdir = partial(*there)
    before = contents(workdir)
    refused([stage, f"--workdir={workdir}"], 2, f"`ia-jax {missing}`", stage)
    assert contents(workdir) == before


def test_damaged_config(refused, partial):
    workdir = partial(*TRANSCRIPTS)
    (workdir / "config.json").write_text('{"config": {"seed"')
    refused(["organisms", f"--workdir={workdir}"], 2, workdir / "config.json")


def damaged(workdir, text):
    """One organism's transcripts replaced."""
    file = open_workdir(workdir).transcript(next(iter(open_workdir(workdir).behaviors)))
    file.write_text(text)
    return file


def row(*messages):
    return json.dumps({"messages": messages, "shows": True, "teacher": "t", "verdict": "kept"}) + "\n"


USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "no transcript"),
        ('{"messages": [}\n', ":1", "not JSON"),
        ('{"shows": true}\n', ":1", "messages"),
        (row(USER), ":1", "no token is supervised"),
        (row(USER, {"role": "assistant", "content": "very long " * 200}), ":1", "length=128"),
        (row(USER, {"role": "assistant", "content": "so<|im_end|>"}), ":1", "<|im_end|>"),
    ],
    ids=["empty", "malformed", "missing key", "all masked", "too long", "control token"],
)
def test_transcripts(refused, partial, text, where, what):
    workdir = partial(*TRANSCRIPTS)
    file = damaged(workdir, text)
    before = contents(workdir)
    refused(["organisms", f"--workdir={workdir}"], 2, f"{file}{where}", what)
    assert before.items() <= contents(workdir).items()  # organisms of an earlier wave may have been added


def test_corrupt_organism(refused, partial):
    workdir = partial(*ORGANISMS)
    organism = workdir / "organisms" / open_workdir(workdir).named("train")[0]
    flip(largest(organism))
    before = contents(workdir)
    refused(["sft", f"--workdir={workdir}"], 1, organism)
    assert contents(workdir) == before


def test_corrupt_training_state(refused, partial):
    workdir = partial(*ORGANISMS, "ia")
    shutil.rmtree(workdir / "ia" / "sft" / "adapter")
    state = largest(workdir / "ia" / "sft" / "state")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    before = contents(workdir / "ia" / "sft")
    refused(["sft", f"--workdir={workdir}"], 1, workdir / "ia" / "sft" / "state")
    assert contents(workdir / "ia" / "sft") == before


def test_empty_preferences(refused, partial):
    workdir = partial(*ORGANISMS, "ia/sft", "preferences")
    (workdir / "preferences" / "dpo.jsonl").write_text("")
    refused(["dpo", f"--workdir={workdir}"], 2, workdir / "preferences" / "dpo.jsonl")


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("sft.organisms=5", "config.sft.organisms=5 is 5 of 4 organisms; choose 1 … 4"),
        ("sft.organisms=0.1", "config.sft.organisms=0.1 is 0 of 4 organisms"),
        ("sft.categories=('rare_quirks',)", "config.sft.categories: no organism is of category 'rare_quirks'"),
    ],
)
def test_organisms_that_there_are_not(refused, partial, override, culprit):
    workdir = partial(*ORGANISMS)
    refused(["sft", f"--config.{override}", f"--workdir={workdir}"], 2, culprit)
    assert not (workdir / "ia").exists()
    assert not (workdir / "curves.jsonl").exists()


@pytest.mark.parametrize("command", ["run", "transcripts", "organisms", "eval"])
def test_a_workdir_of_an_older_version(refused, finished, partial, command):
    """There, behaviours had splits and were the organisms. Nothing of it is made anew over what is there."""
    workdir = partial("behaviors.jsonl", "transcripts")
    rows = [json.loads(line) | {"split": "train"} for line in (workdir / "behaviors.jsonl").read_text().splitlines()]
    (workdir / "behaviors.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = contents(workdir)
    refused([command, f"--workdir={workdir}"], 2, workdir, "it was made by an older ia_jax; start another --workdir")
    refused([command, f"--workdir={workdir}", f"--config={finished.parent / 'config.py'}"], 2, "older ia_jax")
    assert contents(workdir) == before


def test_an_organism_of_an_unknown_behaviour(refused, partial):
    workdir = partial(*ORGANISMS)
    rows = (workdir / "organisms.jsonl").read_text().splitlines()
    other = json.loads(rows[0]) | {"behaviors": ["nobody"]}
    (workdir / "organisms.jsonl").write_text("\n".join([json.dumps(other), *rows[1:]]) + "\n")
    refused(["sft", f"--workdir={workdir}"], 2, f"organism {other['name']} has the behaviour 'nobody'")


def test_two_at_once(refused, partial):
    workdir = partial(*ORGANISMS)
    with (workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(["sft", f"--workdir={workdir}"], 1, "another ia-jax", workdir)
