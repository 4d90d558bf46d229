"""`ia-jax config`, and that docs/config.md says what the docstrings of the sections say."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.cli import config_reference
from ia_jax.config import RunConfig, flat
from ia_jax.models.number_type import Choice
from ia_jax.recipes import CHOICES, load_config
from ia_jax.stages.settings import start_workdir

ROOT = Path(__file__).parent.parent
DEMO = str(ROOT / "configs" / "smollm2_demo.py")


def sections(node):
    yield type(node)
    for field in dataclasses.fields(node):
        if dataclasses.is_dataclass(value := getattr(node, field.name)):
            yield from sections(value)


def test_the_reference_is_up_to_date():
    there = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert there == config_reference.markdown(), "run `make config-docs`"


@pytest.mark.parametrize("section", sorted(set(sections(RunConfig())), key=lambda c: c.__name__))
def test_every_setting_is_explained(section):
    about, entries = config_reference.documented(section)
    assert about
    assert entries.keys() == {f.name for f in dataclasses.fields(section)}


def test_docstrings_are_taken_apart():
    @dataclass
    class Section:
        """What it is,
        on two lines. Note: this is prose.

        one: a first thing,
            and more of it.
        two, three: pairs.

        Prose again.
        """

        one: int = 1
        two: int = 2
        three: int = 3

    about, entries = config_reference.documented(Section)
    assert about == "What it is, on two lines. Note: this is prose. Prose again."
    assert entries == {"one": "A first thing, and more of it.", "two": "Pairs.", "three": "Pairs."}


def test_every_choice_is_of_a_setting_and_holds_its_default():
    settings = flat(RunConfig())
    for name, known in CHOICES.items():
        value = settings[name]
        assert set(value if isinstance(value, tuple) else (value,)) <= set(known), name


def test_show_marks_what_is_not_at_its_default(capsys):
    assert cli.main(["config", "show", f"--config={DEMO}", "--config.sft.optimizer.lr=0.5"]) == 0
    lines = {line[2:].split()[0]: line for line in capsys.readouterr().out.splitlines()}
    config = load_config(DEMO, ["--config.sft.optimizer.lr=0.5"])
    assert lines.keys() == flat(config).keys()
    assert lines["sft.optimizer.lr"].split() == ["*", "sft.optimizer.lr", "0.5", "(default", "0.0001)"]
    starred = {name for name, line in lines.items() if line.startswith("*")}
    assert starred == {name for name, value in flat(config).items() if value != flat(RunConfig())[name]}
    assert starred > {"sft.optimizer.lr"}  # the demo changes some of its own


def test_show_as_json_can_be_read_back(tmp_path, capsys):
    assert cli.main(["config", "show", f"--config={DEMO}", "--config.seed=7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["changed"]["seed"] == {"default": RunConfig().seed, "value": 7}
    (tmp_path / "c.json").write_text(json.dumps(shown))
    assert cli.main(["config", "diff", str(tmp_path / "c.json"), DEMO, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"seed": [7, load_config(DEMO).seed]}


def fp32():
    return Choice("float32", "a test")


def test_diff_of_a_workdir_and_a_recipe(tmp_path, capsys):
    start_workdir(tmp_path / "w", load_config(DEMO, ["--config.sft.steps=3", "--config.organisms.lora.rank=2"]), fp32)
    assert cli.main(["config", "diff", str(tmp_path / "w"), DEMO]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [str(tmp_path / "w"), DEMO]
    demo = load_config(DEMO)
    assert [row.split() for row in rows] == [
        ["model.dtype", "'float32'", "'auto'"],
        ["organisms.lora.rank", "2", str(demo.organisms.lora.rank)],
        ["sft.steps", "3", str(demo.sft.steps)],
    ]
    assert cli.main(["config", "diff", DEMO, DEMO]) == 0
    assert "the same in every setting" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (["config"], "action"),
        (["config", "list"], "'list'"),
        (["config", "show"], "--config=FILE"),
        (["config", "show", DEMO], "--config=FILE"),
        (["config", "show", f"--config={DEMO}", "--config.sft.stepz=1"], "config.sft.stepz"),
        (["config", "show", "--config={tmp}"], "no config.json"),
        (["config", "show", "--config={tmp}/none.py"], "none.py does not exist"),
        (["config", "diff", DEMO], "takes two of"),
        (["config", "diff", DEMO, DEMO, "--config.seed=1"], "no overrides"),
        (["config", "diff", DEMO, "{tmp}/none.json"], "none.json does not exist"),
        (["config", "diff", DEMO, "{tmp}/other.json"], "other.json holds no 'config'"),
        (["config", "diff", DEMO, "{tmp}/half.json"], "half.json:1: not JSON"),
        (["config", "diff", DEMO, "{tmp}/old.json"], "old.json: config.stepz is not a known setting"),
        (["config", "diff", DEMO, "{tmp}/notes.txt"], "notes.txt:1"),
        (["config", "reference", "--json"], "takes no arguments"),
    ],
)
def test_bad_arguments(refused, tmp_path, argv, culprit):
    (tmp_path / "other.json").write_text('{"rows": []}')
    (tmp_path / "half.json").write_text('{"config": ')
    (tmp_path / "old.json").write_text('{"config": {"stepz": 1}}')
    (tmp_path / "notes.txt").write_text("no recipe at all")
    refused([a.replace("{tmp}", str(tmp_path)) for a in argv], 2, culprit)
