"""The command line without a run: help, versions, overrides, messages, and what importing costs."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ia_jax
from ia_jax import cli, recipes
from ia_jax.cli.commands import COMMANDS
from ia_jax.config import parse_config
from ia_jax.errors import ConfigError
from ia_jax.progress import duration
from ia_jax.stages import settings
from ia_jax.stages.order import STAGES
from ia_jax.stages.settings import start_workdir
from ia_jax.workdir import Workdir, open_workdir

ROOT = Path(__file__).parent.parent
DEMO = str(ROOT / "configs" / "smollm2_demo.py")
BF16 = "--config.model.dtype=bfloat16"
RECIPE = """from ia_jax.config import default_config


def get_config():
    c = default_config()
    {}
    return c
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for wanted in ("writes:", "example", f"ia-jax {command} ", "--traceback"):
        assert wanted in text, wanted


def test_every_stage_is_a_command():
    assert {s.name for s in STAGES} < COMMANDS.keys()


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        assert any(line.startswith("    ") and line.split()[0] == command for line in lines if line.strip()), command


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, ia_jax, ia_jax.cli\n"
        "assert ia_jax.cli.main(['--help']) == 0\n"
        "heavy = {'jax', 'numpy', 'orbax', 'transformers', 'ml_collections', 'absl', 'grain'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--category=sandbaggers"]])
def test_a_reader_that_leaves_early_is_no_error(arguments, buffered):
    """As in `| head`, whether every print reaches the pipe at once or the flush at exit does."""
    command = [sys.executable, "-m", "ia_jax.cli", "behaviors", *arguments]
    env = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == cli.PIPE_CLOSED


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ia-jax {ia_jax.__version__}\n"


def test_overrides_are_typed():
    config = recipes.load_config(
        DEMO,
        [
            "--config.sft.steps=7",
            "--config.organisms.optimizer.lr=1",
            "--config.sft.clean_slot=false",
            "--config.organisms.lora.targets=('q', 'v')",
            "--config.organisms.ranks=(8, 16)",
            "--config.system=Be brief.",
        ],
    )
    assert config.sft.steps == 7
    assert config.organisms.optimizer.lr == 1.0
    assert isinstance(config.organisms.optimizer.lr, float)
    assert config.sft.clean_slot is False
    assert config.organisms.lora.targets == ("q", "v")
    assert [(x.rank, x.alpha) for x in config.organisms.loras()] == [(8, 16.0), (16, 32.0)]
    assert config.system == "Be brief."


@pytest.mark.parametrize("recipe", ["", None])
def test_no_system_message_is_none_in_words(tmp_path, recipe):
    """Whether a recipe has a text or None there, the command line may say either."""
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE.format(f"c.system = {recipe!r}"))
    assert recipes.load_config(str(file)).system == recipe
    for said, meant in (("None", None), ("", ""), ("Be brief.", "Be brief.")):
        config = recipes.load_config(str(file), [f"--config.system={said}"])
        assert config.system == meant
        assert recipes.override(config, ["--config.system=Other."]).system == "Other."
        assert parse_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ConfigError, match=r"config\.system must be str, got 3"):
        parse_config({"system": 3})


def test_the_recipes_of_the_repository_are_valid():
    files = sorted((ROOT / "configs").glob("*.py"))
    assert files
    for file in files:
        recipes.load_config(str(file))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sft.stepz=5", r"config\.sft\.stepz is not a known setting; config\.sft has: .*steps"),
        ("--config.sft.steps.more=5", "config.sft.steps.more is not a known setting"),
        ("--config.sft=5", "config.sft is a group of settings; override one of: .*steps"),
        ("--config.sft.steps", "--config.sft.steps needs a value"),
        ("--config.sft.steps=many", r"config\.sft\.steps.*many"),
        ("--config.sft.steps=1.5", r"config\.sft\.steps.*1\.5"),
        ("--config.organisms.parallel=0", "config.organisms.parallel must be positive, got 0"),
        (
            "--config.behaviors.clean_dpo=0",
            "clean_pairs is 4, but there is no clean organism",
        ),
        ("--config.dpo.beta=-1", r"config\.dpo\.beta must be positive, got -1"),
        ("--config.dpo.beta=nan", r"config\.dpo\.beta must be positive, got nan"),
        ("--config.sft.lora.rank=0", "rank.*0"),
        ("--config.sft.lora.targets=('q', 'qkv')", "qkv.*choose from q, k"),
        ("--config.sft.lora.init=ones", "config.sft.lora: .*'ones'"),
        ("--config.model.dtype=float16", "config.model.dtype 'float16' unknown; choose from float32"),
        ("--config.behaviors.catalogue=none", "catalogue 'none' unknown; choose from demo"),
        ("--config.behaviors.heldout=400", "category .* too few for 400 held out"),
    ],
)
def test_refused_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        recipes.load_config(DEMO, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", r"c\.py:1: "),
        ("x = 1\n", "defines no function get_config"),
        ("def get_config():\n    return {}\n", "returned dict, not a ConfigDict"),
        ("def get_config():\n    return 1 / 0\n", r"c\.py:2: ZeroDivisionError"),
        (RECIPE.format("c.sft.steps = 'many'"), r"c\.py:6: .*steps"),
        (RECIPE.format("c.sft.stepz = 5"), "config.sft.stepz is not a known setting"),
    ],
)
def test_refused_config_files(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        recipes.load_config(str(tmp_path / "c.py"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def replace_ask(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setitem(COMMANDS, "ask", dataclasses.replace(COMMANDS["ask"], run=fail))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped; run the same command to continue"),
        (OSError(28, "No space left on device", "runs/x"), 1, "ia-jax: error: runs/x: No space left on device"),
        (
            RuntimeError("first\nsecond"),
            1,
            "ia-jax: error: unexpected RuntimeError: first second; run again with --traceback to see where",
        ),
        (ConfigError("a\n  b"), 2, "ia-jax: error: a b"),
    ],
)
def test_what_is_printed_about_an_error(monkeypatch, capsys, error, status, line):
    replace_ask(monkeypatch, error)
    assert cli.main(["ask", "--workdir=x", "q"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == line


def test_traceback_on_request(monkeypatch, capsys):
    replace_ask(monkeypatch, RuntimeError("deep"))
    assert cli.main(["--traceback", "ask", "--workdir=x", "q"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("ia-jax: error: unexpected RuntimeError: deep")
    assert cli.main(["ask", "--traceback", "--workdir=x", "q"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_stored_config_is_read_back(tmp_path):
    config = recipes.load_config(DEMO, ["--config.seed=3", BF16])
    start_workdir(tmp_path / "w", config)
    assert open_workdir(tmp_path / "w").config == config
    assert json.loads((tmp_path / "w" / "config.json").read_text())["config"]["seed"] == 3


@pytest.mark.parametrize("override", ["--config.seed=4", "--config.mesh.fsdp=2", "--config.claude.cap_dollars=1"])
@pytest.mark.parametrize("made", [(), ("behaviors.jsonl",)])
def test_a_workdir_in_use_keeps_its_config(tmp_path, refused, made, override):
    """Also while the first run has made nothing yet, when a mended config could take the place of the old one."""
    workdir = start_workdir(tmp_path / "w", recipes.load_config(DEMO, ["--config.seed=3"])).path
    for name in made:
        (workdir / name).write_text("")
    before = (workdir / "config.json").read_bytes()
    with (workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        argv = ["run", f"--config={DEMO}", "--config.seed=3", override, f"--workdir={workdir}"]
        refused(argv, 1, "another ia-jax is working in", workdir)
    assert (workdir / "config.json").read_bytes() == before
    assert {p.name for p in workdir.iterdir()} == {"config.json", ".lock", *made}


def test_a_workdir_that_is_being_started(tmp_path, refused):
    """The first run has the lock and is about to write its config."""
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(["run", f"--config={DEMO}", f"--workdir={tmp_path}"], 1, "another ia-jax is working in", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".lock"}


def test_a_mended_config_takes_the_place_of_one_that_made_nothing(tmp_path):
    """And at no instant is there none, for those who read without the lock."""
    first, second = (recipes.load_config(DEMO, [f"--config.seed={seed}", BF16]) for seed in (3, 4))
    start_workdir(tmp_path, first)
    (tmp_path / ".lock").touch()
    file = (tmp_path / "config.json").open()
    start_workdir(tmp_path, second)
    with file:
        assert json.load(file)["config"]["seed"] == 3  # replaced, not written over
    assert open_workdir(tmp_path).config == second
    settings.write_stage_record(Workdir(tmp_path), second, "transcripts")
    (tmp_path / "organisms.jsonl").touch()
    start_workdir(tmp_path, first)
    assert open_workdir(tmp_path).config == second
    with pytest.raises(ConfigError, match=r"config\.seed was 4 and is now 3"):
        settings.check_same(Workdir(tmp_path), first, "transcripts")
    with pytest.raises(ConfigError, match=r"config\.model\.name was 'smollm2' and is now 'elsewhere'"):
        start_workdir(tmp_path, recipes.load_config(DEMO, ["--config.model.name=elsewhere"]))


@pytest.mark.parametrize("old", ["none", "dots"])
def test_remat_may_change_on_the_way(tmp_path, old):
    """As the mesh may; so a workdir whose policy is not known any more can be continued."""
    config = recipes.load_config(DEMO, [BF16])
    stored = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=old))
    workdir = start_workdir(tmp_path, stored)
    settings.write_stage_record(workdir, stored, "transcripts")
    workdir.organisms_file.touch()
    before = [(p, p.stat().st_mtime_ns) for p in (tmp_path / "settings").iterdir()]
    config = recipes.override(open_workdir(tmp_path).config, ["--config.model.remat=mlp"])
    assert config.model.remat == "mlp"
    settings.check_same(start_workdir(tmp_path, config), config, "transcripts")
    settings.write_stage_record(workdir, config, "transcripts")
    assert [(p, p.stat().st_mtime_ns) for p in (tmp_path / "settings").iterdir()] == before
    assert open_workdir(tmp_path).config == config
    with pytest.raises(ConfigError, match=r"config\.model\.dtype was 'bfloat16' and is now 'float32'"):
        settings.check_same(workdir, recipes.override(config, ["--config.model.dtype=float32"]), "transcripts")
